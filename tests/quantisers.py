"""GGUF's quantisers, written from the format descriptions, as a stand-in for llama.cpp's tools.

`pack(kind, values)` returns the bytes of a file, `[blocks, bytes]`; `unpack` returns the values. The scales
come from the range of each block, without the search that llama.cpp adds."""

import numpy as np

NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)
BLOCKS = {"Q8_0": 32, "Q4_0": 32, "Q4_1": 32, "IQ4_NL": 32, "Q4_K": 256, "Q2_K": 256}  # values per block


def half(x):
    return np.asarray(x, dtype=np.float16)


def over(a, b):
    """Return a / b, and 0 where b is 0."""
    b = np.asarray(b, dtype=np.float32)
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), b.shape), np.float32), where=b != 0)


def as_bytes(*parts):
    flat = [np.ascontiguousarray(p).view(np.uint8).reshape(len(p), -1) for p in parts]
    return np.concatenate(flat, axis=1)


def extreme(x):
    """Return the value of each row that is furthest from 0, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)


def nibbles(q):
    """Pack the first half of each row into the low four bits and the second half into the high four bits."""
    low, high = np.split(q.astype(np.uint8), 2, axis=-1)
    return low | high << 4


def pack(kind, values):
    x = np.asarray(values, dtype=np.float32).reshape(-1, BLOCKS[kind])
    if kind == "Q8_0":
        d = np.abs(x).max(-1, keepdims=True) / 127
        return as_bytes(half(d), np.round(over(x, d)).astype(np.int8))
    if kind == "Q4_0":
        d = extreme(x) / -8
        return as_bytes(half(d), nibbles(np.clip(np.trunc(over(x, d) + 8.5), 0, 15)))
    if kind == "Q4_1":
        least = x.min(-1, keepdims=True)
        d = (x.max(-1, keepdims=True) - least) / 15
        return as_bytes(half(d), half(least), nibbles(np.clip(np.trunc(over(x - least, d) + 0.5), 0, 15)))
    if kind == "IQ4_NL":
        d = extreme(x) / NL[0]
        nearest = np.abs(over(x, d)[..., None] - NL).argmin(-1)
        return as_bytes(half(d), nibbles(nearest))
    levels, most, size = (15, 63, 32) if kind == "Q4_K" else (3, 15, 16)
    sub = x.reshape(len(x), -1, size)
    least = np.minimum(sub.min(-1), 0)
    step = (sub.max(-1) - least) / levels
    d, dmin = step.max(-1, keepdims=True) / most, -least.min(-1, keepdims=True) / most
    sc, m = np.round(over(step, d)).astype(np.uint8), np.round(over(-least, dmin)).astype(np.uint8)
    d, dmin = half(d), half(dmin)
    scale, low = (d * sc.astype(np.float32))[..., None], (dmin * m.astype(np.float32))[..., None]
    q = np.clip(np.round(over(sub + low, scale)), 0, levels).astype(np.uint8)
    if kind == "Q4_K":
        first = sc[:, :4] & 63 | (sc[:, 4:] >> 4) << 6
        second = m[:, :4] & 63 | (m[:, 4:] >> 4) << 6
        third = (sc[:, 4:] & 15) | (m[:, 4:] & 15) << 4
        pairs = q.reshape(len(x), 4, 2, 32)
        return as_bytes(d, dmin, first, second, third, pairs[:, :, 0] | pairs[:, :, 1] << 4)
    quads = q.reshape(len(x), 2, 4, 32)
    qs = quads[:, :, 0] | quads[:, :, 1] << 2 | quads[:, :, 2] << 4 | quads[:, :, 3] << 6
    return as_bytes(sc | m << 4, qs, d, dmin)


def unpack(kind, packed):
    raw = np.asarray(packed, dtype=np.uint8).reshape(-1, packed.shape[-1])

    def number(start):
        return np.ascontiguousarray(raw[:, start : start + 2]).view(np.float16).astype(np.float32)

    def halves(qs):
        return np.concatenate([qs & 15, qs >> 4], axis=-1)

    if kind == "Q8_0":
        return number(0) * np.ascontiguousarray(raw[:, 2:]).view(np.int8)
    if kind == "Q4_0":
        return number(0) * (halves(raw[:, 2:]).astype(np.float32) - 8)
    if kind == "Q4_1":
        return number(0) * halves(raw[:, 4:]) + number(2)
    if kind == "IQ4_NL":
        return number(0) * NL[halves(raw[:, 2:])]
    if kind == "Q4_K":
        d, dmin, first, second, third = number(0), number(2), raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
        sc = np.concatenate([first & 63, (first >> 6) << 4 | third & 15], axis=1)
        m = np.concatenate([second & 63, (second >> 6) << 4 | third >> 4], axis=1)
        pairs = raw[:, 16:].reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15
        q = pairs.reshape(-1, 8, 32)
    else:
        d, dmin, sc, m = number(80), number(82), raw[:, :16] & 15, raw[:, :16] >> 4
        quads = raw[:, 16:80].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        q = (quads & 3).reshape(-1, 16, 16)
    return ((d * sc)[..., None] * q - (dmin * m)[..., None]).reshape(len(raw), -1)
