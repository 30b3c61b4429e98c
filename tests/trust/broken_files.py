"""Predictor files that are almost valid: real ones, changed in one to three places by a seed.

    file = broken(seeds(), random.Random(7))  # the same number gives the same file
    file.bytes(), file.changes

A change is a function of CHANGES: it takes a Draft, i.e. a header and the tensors' bytes separately."""

import json
import math
import random
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from trust.page import ROOT

from amed import Constants, Fitted, Multistep, Solver, Spec, schedules
from amed.constants import as_multistep
from amed.files.fitted import tensors_of
from amed.files.spec import to_header
from amed.outside import Outside

BUNDLED = ROOT / "predictors"
REAL = ("emoji32-amed-nfe3-cfg1", "emoji32-dpmpp-nfe5-cfg2", "emoji32-ipndm-nfe5-cfg1", "sd15-dpmpp-2m-nfe10",
        "emoji32-multistep-nfe3-cfg4", "emoji32-multistep-nfe5-cfg1",
        "emoji32-multistep-nfe10-cfg2")  # fmt: skip
META = "__metadata__"
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
          "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8}  # fmt: skip
NUMBERS = (math.nan, math.inf, -math.inf, 1e308, -1e308, 3e38, 1e30, 5e-324, 0.0, -0.0, -1.0, 1.0, 1e9, 0.5)


@dataclass
class Draft:
    """A safetensors file in parts."""

    header: dict[str, Any]
    data: bytes  # bytes of all tensors
    twice: str = ""  # JSON of entries that the header has a second time
    raw: list[Callable[[bytes], bytes]] = field(
        default_factory=list
    )  # functions that change the written bytes
    changes: list[tuple[str, str]] = field(default_factory=list)  # (name, target) of each change made

    @property
    def meta(self) -> dict[str, Any]:
        return self.header.setdefault(META, {})

    def names(self) -> list[str]:
        return [name for name in self.header if name != META]

    def bytes(self) -> bytes:
        head = json.dumps(self.header)
        head = (head[:-1] + "," + self.twice + "}" if self.twice else head).encode("utf-8", "surrogatepass")
        head += b" " * (-len(head) % 8)
        data = struct.pack("<Q", len(head)) + head + self.data
        for change in self.raw:
            data = change(data)
        return data

    def tensor(self, name: str) -> bytes:
        start, end = self.header[name]["data_offsets"]
        return self.data[start:end]

    def put(self, name: str, dtype: str, shape: list[int], value: bytes) -> None:
        """Write a tensor anew, with all offsets corrected."""
        changed_tensor = {n: (self.header[n], self.tensor(n)) for n in self.names() if n != name}
        changed_tensor[name] = ({"dtype": dtype, "shape": shape}, value)
        meta, self.data = self.header.get(META), b""
        self.header = {} if meta is None else {META: meta}
        for n, (entry, content) in changed_tensor.items():
            ends = [len(self.data), len(self.data) + len(content)]
            self.header[n], self.data = {**entry, "data_offsets": ends}, self.data + content


def draft(data: bytes) -> Draft:
    """Split a complete file into its parts."""
    size = struct.unpack("<Q", data[:8])[0]
    return Draft(json.loads(data[8 : 8 + size]), data[8 + size :])


def in_order(data: bytes) -> bytes:
    """Return the same file with its metadata sorted.

    safetensors writes them in a different order each time, so a seed would not give the same files twice."""
    parts = draft(data)
    parts.header[META] = dict(sorted(parts.meta.items()))
    return parts.bytes()


def written(fitted: Fitted) -> bytes:
    return in_order(safetensors.torch.save(tensors_of(fitted), metadata=to_header(fitted.spec)))


def seeds() -> dict[str, bytes]:
    """Return valid files of every kind: bundled ones, and small ones of kinds that are not bundled."""
    files = {name: (BUNDLED / f"{name}.safetensors").read_bytes() for name in REAL}
    times = torch.tensor([40.0, 10.0, 2.0, 0.1], dtype=torch.float64)
    weights = torch.zeros(3, 3, 8, dtype=torch.float64)
    weights[:, 0] = 1.0
    offset = torch.full((3, 3), 0.01, dtype=torch.float64)
    halves = Spec.on("multistep", times, parts="halves+bands", channels=3, guidance=4.0)
    files["halves"] = written(
        Fitted(halves, Multistep(times, weights, None, "halves+bands", offset, [1]), times)
    )
    greedy = Spec.on(Solver("amed"), times, afs=True, metrics={"error": 0.1}, model_name="a toy")
    files["constants"] = written(Fitted(greedy, Constants(times, r=[0.3, 0.4, 0.5]), times))
    plain = Spec.on(Solver("ipndm", 3), times, features="plain")
    files["plain"] = written(Fitted(plain, None, times))
    outside = Spec.on("outside", times, of="euler", calls=4)
    levels = torch.tensor([40.0, 10.0, 2.0, 0.1], dtype=torch.float64)
    c, a = torch.full((4,), 0.99).double(), torch.full((4,), 1.01).double()
    files["outside"] = written(Fitted(outside, Outside(times, levels, c, a), times))
    even = schedules.make("polynomial", 4, 0.1, 40.0, 7.0)
    bent = Spec.on(Solver("unipc", 3), even, schedule="polynomial", rho=7.0)
    files["polynomial"] = written(Fitted(bent, Constants(even, c=[1.0, 0.98, 1.01]), even))
    old = {**to_header(Spec.on("multistep", times, guidance=4.0)), "amed_format": "1"}
    table = as_multistep(Solver("ipndm", 2), times)
    small_files = {
        "sigmas": times,
        **{k: v.contiguous() for k, v in table.values.items()},
        "g": torch.tensor([0.7, 0.5, 1.2], dtype=torch.float64),
    }
    meta = {k: v for k, v in old.items() if k != "requires"}
    files["format 1"] = in_order(safetensors.torch.save(small_files, metadata=meta))
    return files


# --- fields of the header ----------------------------------------------------------------------------------

DEEP = 100_000
VALUES = (
    "", "null", "true", "false", "0", "-1", "1", "2", "3", "1e999", "-1e999", "NaN", "Infinity", "-Infinity",
    "9" * 400, "-" + "9" * 400, "9" * 5000, "1e-320", "0.5", "1e300", "4294967296", "9223372036854775808",
    '""', '"x"', '"' + "x" * 100_000 + '"', "[]", "{}", "[null]",
    '{"a": {"b": [1, {"c": null}]}}', "[[[[]]]]",
    "[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * 5000 + "1" + "}" * 5000, "[" * 900 + "]" * 900,
    '{"a":' * 400 + "1" + "}" * 400, '"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"a\\nb"',
    '"<img src=x onerror=alert(1)>"', '"../../../etc/passwd"', "{", '"', "'a'", "nul", "1 2", "\ufeff1",
    '"multistep"', '"outside"', '"amed"', '"dpmpp"', '"ipndm"', '"unipc"', '"deis"', '"heun"', '"euler"',
    '"bottleneck"', '"plain"', '"none"', '"halves"', '"bands"', '"halves+bands"', '"guidance"', '"custom"',
    '"polynomial"', '"logsnr"', '"time_uniform"', '"discrete"', '"bh2"', '["plain"]', '["parts:none"]',
    '{"rmse_ref": NaN}', '{"rmse_ref": -1}', '{"rmse_ref": ' + "9" * 400 + "}", '{"rmse_ref": "low"}',
    '{"error": ' + "9" * 400 + ', "finished": []}', '{"fd_ref": -1e308, "rmse_ref": 1e308}',
    '{"rmse_ref": true}', '{"\\ud800": 1}',
)  # fmt: skip
FIELDS = ("amed_format", "requires", "solver", "num_steps", "schedule", "sigma_min", "sigma_max", "rho",
          "afs",
          "max_order", "predict_x0", "lower_order_final", "thresholding", "scales_timestep",
          "prediction_type",
          "guidance", "model_family", "model_fingerprint",
          "model_name", "features", "scale_dir", "scale_time",
          "how", "source", "metrics", "variant", "parts", "channels", "of", "calls")  # fmt: skip


def set_field(file: Draft, dice: random.Random) -> str:
    name = dice.choice(FIELDS)
    file.meta[name] = dice.choice(VALUES)
    return name


def drop_field(file: Draft, dice: random.Random) -> str:
    name = dice.choice(sorted(file.meta) or ["solver"])
    file.meta.pop(name, None)
    return name


def swap_fields(file: Draft, dice: random.Random) -> str:
    first, other = dice.choice(FIELDS), dice.choice(FIELDS)
    file.meta[first], file.meta[other] = file.meta.get(other, "0"), file.meta.get(first, "0")
    return f"{first}, {other}"


def no_text(file: Draft, dice: random.Random) -> str:
    """Set a field to a value that is not a string, which the format forbids."""
    name = dice.choice(FIELDS)
    file.meta[name] = dice.choice([1, None, True, [], {}, 1.5, {"a": "b"}])
    return name


def unknown_field(file: Draft, dice: random.Random) -> str:
    name = dice.choice(["../x", "a\x00b", "\ud800", "", "__proto__", "x" * 70_000, "Solver", " solver",
                        "unknown",
                        "é", "<b>", "a\nb", "\x1b[2J"])  # fmt: skip
    file.meta[name] = dice.choice(VALUES)
    return name[:20]


def number_field(file: Draft, dice: random.Random) -> str:
    name = dice.choice(["num_steps", "sigma_min", "sigma_max", "rho", "guidance", "scale_dir", "scale_time",
                        "channels", "calls", "max_order"])  # fmt: skip
    value = dice.choice([*NUMBERS, 10**30, 10**400, dice.uniform(-9, 9), dice.randrange(-3, 20)])
    file.meta[name] = json.dumps(value)
    return name


def twice_field(file: Draft, dice: random.Random) -> str:
    """Write the header's metadata, or a tensor, a second time."""
    name = dice.choice([META, *file.names()])
    file.twice = f"{json.dumps(name)}: {json.dumps(dice.choice([{}, file.header.get(name, {}), 1]))}"
    return name


def no_meta(file: Draft, dice: random.Random) -> str:
    file.header[META] = dice.choice([None, [], "x", 1, {}, {"format": "pt"}])
    return META


# --- entries of tensors ------------------------------------------------------------------------------------


def entry(file: Draft, dice: random.Random) -> tuple[str, dict]:
    name = dice.choice(file.names() or [META])
    return name, file.header[name] if isinstance(file.header.get(name), dict) else {}


def entry_dtype(file: Draft, dice: random.Random) -> str:
    name, fields = entry(file, dice)
    fields["dtype"] = dice.choice([*WIDTHS, "F128", "", "f64", "object", None, 8, [], "F4", "E8M0"])
    return name


def entry_shape(file: Draft, dice: random.Random) -> str:
    name, fields = entry(file, dice)
    fields["shape"] = dice.choice(
        [[], [0], [1], [-1], [2**63], [2**64], [2**32, 2**32], [2**31, 2**31, 4], [1.5], ["3"], None, "x", {},
         [[3]], [0, 2**63], [1] * 64, [1] * 10_000, [3, -1], [2**62, 0]])  # fmt: skip
    return name


def entry_offsets(file: Draft, dice: random.Random) -> str:
    name, fields = entry(file, dice)
    start, end = fields.get("data_offsets", [0, 8])
    fields["data_offsets"] = dice.choice(
        [[end, start], [start + 1, end + 1], [start, end + 8], [start, end - 8], [-8, end], [0, 2**63],
         [2**64 - 8, 2**64], [0, 0], [start], [], None, "0,8", [start, end, end], [0.5, 8],
         [2**62, 2**62 + 8],
         [start, 2**40]])  # fmt: skip
    return name


def entry_more(file: Draft, dice: random.Random) -> str:
    """Remove a key of an entry, or add one."""
    name, fields = entry(file, dice)
    if dice.random() < 0.5 and fields:
        fields.pop(dice.choice(sorted(fields)))
    else:
        fields[dice.choice(["path", "file", "url", "type"])] = dice.choice(["/etc/passwd", "../x", 1, None])
    return name


def rename_tensor(file: Draft, dice: random.Random) -> str:
    name = dice.choice(file.names() or [META])
    new = dice.choice(["../../x", "/etc/passwd", "C:\\x", "a\x00b", "", "x" * 70_000, "sigmas", "weights",
                       "r",
                       "offset", "alone", "g", "levels", "__class__", "fc_r.weight", "\ud800"])  # fmt: skip
    file.header[new] = file.header.pop(name, {})
    return name


def drop_tensor(file: Draft, dice: random.Random) -> str:
    name = dice.choice(file.names() or [META])
    if dice.random() < 0.5 or name == META:
        file.header.pop(name, None)
        return name
    remaining = {n: (file.header[n], file.tensor(n)) for n in file.names() if n != name}
    file.header, file.data = {META: file.header.get(META, {})}, b""
    for n, (entry, value) in remaining.items():
        file.put(n, entry["dtype"], entry["shape"], value)
    return name


# --- contents of tensors, with consistent entries ----------------------------------------------------------

FORMATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
           "BOOL": torch.bool}  # fmt: skip


def values(file: Draft, name: str) -> torch.Tensor:
    entry = file.header[name]
    flat = torch.frombuffer(bytearray(file.tensor(name)), dtype=FORMATS[entry["dtype"]])
    return flat.reshape(entry["shape"]).clone()


def put(file: Draft, name: str, value: torch.Tensor) -> str:
    kinds = {dtype: kind for kind, dtype in FORMATS.items()}
    raw = bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist()) if value.numel() else b""
    file.put(name, kinds[value.dtype], list(value.shape), raw)
    return name


def changed_tensor(file: Draft, dice: random.Random) -> tuple[str, torch.Tensor]:
    name = dice.choice(file.names())
    return name, values(file, name)


def one_number(file: Draft, dice: random.Random) -> str:
    name, value = changed_tensor(file, dice)
    flat = value.reshape(-1)
    if value.is_floating_point() and len(flat):
        flat[dice.randrange(len(flat))] = dice.choice([*NUMBERS, dice.uniform(-100, 100)])
    return put(file, name, flat.reshape(value.shape))


def every_number(file: Draft, dice: random.Random) -> str:
    name, value = changed_tensor(file, dice)
    kind = dice.choice(["fill", "scale", "shuffle", "negative", "bytes"])
    if kind == "fill" and value.is_floating_point():
        value.fill_(dice.choice(NUMBERS))
    elif kind == "scale":
        value = (value.double() * dice.choice([1e-300, 1e-30, 1e30, 1e150, 1e300, -1, 0, 100])).to(
            value.dtype
        )
    elif kind == "shuffle":
        order = list(range(value.numel()))
        dice.shuffle(order)
        value = value.reshape(-1)[order].reshape(value.shape)
    elif kind == "negative" and value.dtype != torch.bool:
        value = -value
    else:
        raw = dice.randbytes(value.numel() * value.element_size())
        entry = file.header[name]
        file.put(name, entry["dtype"], entry["shape"], raw)
        return name
    return put(file, name, value)


def other_dtype(file: Draft, dice: random.Random) -> str:
    name, value = changed_tensor(file, dice)
    return put(file, name, value.to(dice.choice(list(FORMATS.values()))))


def raw_dtype(file: Draft, dice: random.Random) -> str:
    """Keep the shape, but use an unusual number format."""
    name = dice.choice(file.names())
    entry = file.header[name]
    kind = dice.choice(list(WIDTHS))
    file.put(name, kind, entry["shape"], bytes(math.prod(entry["shape"]) * WIDTHS[kind]))
    return name


def other_shape(file: Draft, dice: random.Random) -> str:
    name, value = changed_tensor(file, dice)
    shapes = [[], [0], [1], [2], [3], [0, 0], [1, 1], [value.numel()], [1, *value.shape], [*value.shape, 1],
              [*value.shape, 0], [*value.shape[::-1]], [n + 1 for n in value.shape],
              [n - 1 for n in value.shape],
              [300], [3, 300], [200_000], [1] * 9, [4, 4, 4], [5, 4, 2], [3, 3]]  # fmt: skip
    shape = [max(n, 0) for n in dice.choice(shapes)]
    count = math.prod(shape)
    flat = value.reshape(-1)
    flat = flat.repeat(count // max(len(flat), 1) + 1)[:count] if len(flat) else flat.new_ones(count)
    return put(file, name, flat.reshape(shape))


def more_tensor(file: Draft, dice: random.Random) -> str:
    name = dice.choice(
        ["offset", "alone", "g", "weights", "r", "c", "a", "levels", "extra", "../x", "b", "t"]
    )
    shape = dice.choice([[], [3], [3, 3], [4, 3], [3, 4, 8], [0]])
    count = math.prod(shape)
    return put(file, name, torch.tensor([dice.choice(NUMBERS) for _ in range(count)]).double().reshape(shape))


# --- bytes -------------------------------------------------------------------------------------------------


def header_length(file: Draft, dice: random.Random) -> str:
    size = dice.choice(
        [0, 1, 2, 7, 8, 100, 10**6, 10**8, 10**8 + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    )
    file.raw.append(lambda data: struct.pack("<Q", size) + data[8:])
    return str(size)


def header_off(file: Draft, dice: random.Random) -> str:
    by = dice.choice([-100, -9, -8, -1, 1, 8, 9, 100])

    def change(data: bytes) -> bytes:
        size = struct.unpack("<Q", data[:8])[0] + by if len(data) >= 8 else 0
        return struct.pack("<Q", max(size, 0)) + data[8:]

    file.raw.append(change)
    return str(by)


def cut(file: Draft, dice: random.Random) -> str:
    at = dice.random()
    file.raw.append(lambda data: data[: int(len(data) * at)])
    return f"{at:.3f}"


def append(file: Draft, dice: random.Random) -> str:
    more = dice.choice([b"\0", b"x" * 9, b"\0" * 4096, b"PK\x05\x06" + b"\0" * 18])
    file.raw.append(lambda data: data + more)
    return str(len(more))


def flip(file: Draft, dice: random.Random) -> str:
    places = [(dice.random(), 1 << dice.randrange(8)) for _ in range(dice.choice([1, 1, 2, 16]))]

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        for at, bit in places:
            changed[int(len(changed) * at)] ^= bit
        return bytes(changed)

    file.raw.append(change)
    return str(len(places))


def header_text(file: Draft, dice: random.Random) -> str:
    """Replace the header by other JSON, or by text that is not JSON."""
    text = dice.choice(
        [b"", b"{}", b"[]", b"null", b"{" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}",
         b"\xef\xbb\xbf{}", b"\0" * 64, b'{"__metadata__":{}}', b'{"a":{"dtype":"F64"}}', b"{}" + b" " * 9999,
         b'{"__metadata__":' + b'{"a":' * 2000 + b"1" + b"}" * 2001])  # fmt: skip
    file.raw.append(lambda data: struct.pack("<Q", len(text)) + text + file.data)
    return text[:20].decode("latin1")


def other_file(file: Draft, dice: random.Random) -> str:
    content = dice.choice([
        b"", b"\0", b"\0" * 8, b"\0" * 4096, b"\x80\x04N.", b"PK\x03\x04" + b"\0" * 60, b"{}",
        b"\x1f\x8b" + b"\0" * 30, b"<html></html>", b"version https://git-lfs.github.com/spec/v1\n",
        dice.randbytes(2000),
    ])  # fmt: skip
    file.raw.append(lambda _made: content)
    return content[:4].hex()


CHANGES = {f.__name__: f for f in (
    set_field, drop_field, swap_fields, no_text, unknown_field, number_field, twice_field, no_meta,
    entry_dtype, entry_shape, entry_offsets, entry_more, rename_tensor, drop_tensor, one_number,
    every_number, other_dtype, raw_dtype, other_shape, more_tensor, header_length, header_off, cut, append,
    flip, header_text, other_file,
)}  # fmt: skip
OFTEN = {"set_field": 5, "number_field": 3, "one_number": 4, "every_number": 4, "other_dtype": 2,
         "raw_dtype": 2,
         "other_shape": 4, "more_tensor": 3, "header_text": 0.3, "other_file": 0.3}  # fmt: skip


def broken(good: dict[str, bytes], dice: random.Random) -> Draft:
    """Return one of the valid files with one to three changes."""
    kind = dice.choice(sorted(good))
    file = deepcopy(draft(good[kind]))
    file.changes.append(("from", kind))
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        name = dice.choices(list(CHANGES), [OFTEN.get(n, 1) for n in CHANGES])[0]
        before = deepcopy((file.header, file.data))
        try:
            file.changes.append((name, CHANGES[name](file, dice)))
        except (
            LookupError,
            ValueError,
            RuntimeError,
            TypeError,
            OverflowError,
            AttributeError,
        ):  # the file has nothing left for this change
            file.header, file.data = before
    return file
