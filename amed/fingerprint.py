"""Which checkpoint is this? A fingerprint for names, and a signature that survives quantisation.

Two checkpoints are compared by `Identity.same`, and nowhere else."""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

PARAMETERS, VALUES = 16, 4096  # matrices of a fingerprint, and values of each
MATRICES, RUNS, LENGTH = 32, 128, 32  # matrices of a signature, runs in all of them, values of a run
ALIGNED, GROUP = 256, 16  # quantised formats have blocks of at most 256 values, and at least 16 on one grid
LEVELS = 16  # a 4-bit code book's
SURE = 0.9  # of a quantiser's step: what is further from 0 has kept its sign
SHARED = 256  # values that both signatures must be sure of
OPPOSITE, SHARE = 1, 0.0005  # so many signs of one checkpoint may differ, and such a share of the shared
FIRST = "1."  # how a signature of this kind begins


class Weight(Protocol):
    """A weight as the network uses it, however it is stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""

    @property
    def packed(self) -> bool:
        """Whether the values are only codes of an unknown format."""

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        """Runs of `count` values of the flattened weight, and how far each may be from the unquantised
        weight: float32 `[len(starts), count]` on the CPU."""


class Stored:
    """A Weight for a tensor: of floating-point numbers, of a class with its own `dequantize()`, or of
    codes."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()
        self.quantised = type(tensor).dequantize is not Tensor.dequantize
        self.packed = not self.quantised and not tensor.is_floating_point()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def whole(self) -> Tensor:
        """All values; those of an unknown format are centred on 0."""
        values: Tensor = self.tensor.dequantize() if self.quantised else self.tensor
        return values.float() - 127.5 if values.dtype == torch.uint8 else values

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        stored = self.whole().flatten()
        values = torch.stack([stored[start : start + count] for start in starts]).float().cpu()
        steps = step_of(values)
        if stored.is_floating_point():
            info = torch.finfo(stored.dtype)
            steps = torch.maximum(steps, (values.abs() * info.eps).clamp(min=info.tiny * info.eps))
        return values, steps


Named = Iterable[tuple[str, Tensor | Weight]]


def step_of(runs: Tensor) -> Tensor:
    """The step of the quantiser that runs `[n, count]` of values have been through, for each value; 0 where
    they have been through none.

    Values on an even grid (Q4_0, Q4_K ...) are whole multiples of its step apart, in groups of 16 at the
    least. Values of a code book (IQ4_NL, NF4 ...) are few: its least gap stands for the step. A group of
    equal values says nothing: infinite."""
    groups = runs.reshape(-1, GROUP) if runs.shape[-1] % GROUP == 0 else runs
    ordered, gaps = gaps_of(groups)
    least = gaps.amin(-1, keepdim=True) if gaps.shape[-1] else torch.full_like(ordered[:, :1], torch.inf)
    step = torch.zeros_like(least)
    for divisor in (3, 2, 1):  # no two values may be neighbours on the grid
        multiples = (ordered - ordered[:, :1]) / (least / divisor)
        even = (multiples - multiples.round()).abs().amax(-1, keepdim=True) < 0.1
        step = torch.where(even, least / divisor, step)
    gaps = gaps_of(runs)[1]
    few = gaps.isfinite().sum(-1, keepdim=True) < LEVELS
    book = torch.where(few & (runs.shape[-1] >= 2 * LEVELS), gaps.amin(-1, keepdim=True), 0.0)
    return torch.maximum(step.expand_as(groups).reshape(runs.shape), book.expand_as(runs))


def gaps_of(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Values in order, and the gaps between them; infinite between equal ones."""
    ordered = groups.sort(dim=-1).values
    gaps, least = ordered.diff(dim=-1), 1e-6 * ordered.abs().amax(-1, keepdim=True)
    return ordered, torch.where(gaps > least, gaps, torch.inf)


def matrices_of(weights: Named) -> list[Weight]:
    """The weights of two dimensions and more, by name. Raises ValueError where there is none."""
    stored = [(n, Stored(w) if isinstance(w, Tensor) else w) for n, w in weights]
    matrices = [(n, w) for n, w in stored if len(w.shape) >= 2 and numel(w) > 0]
    if not matrices:
        raise ValueError("the network has no weight matrix to take a fingerprint of")
    return [w for _, w in sorted(matrices, key=lambda item: item[0])]


def numel(weight: Weight) -> int:
    return int(torch.Size(weight.shape).numel())


def fingerprint(weights: Named) -> str:
    """16 hexadecimal digits for a network's (name, weight) pairs, such as `unet.named_parameters()`.

    Hashes shapes and signs of the first 4096 values of 16 matrices spread over the sorted names: signs are
    the same in float32, float16 and bfloat16, and any training flips some. Names serve for the order alone,
    so a common prefix does not matter. Raises ValueError where there is no matrix to look at."""
    matrices = [w for w in matrices_of(weights) if not w.packed]
    if not matrices:
        raise ValueError("the network has no weight matrix to take a fingerprint of")
    count = min(PARAMETERS, len(matrices))
    hash_ = hashlib.sha256()
    for i in range(count):
        weight = matrices[i * len(matrices) // count]
        signs = (weight.read([0], min(VALUES, numel(weight)))[0][0] > 0).to(torch.uint8)
        hash_.update(str(tuple(weight.shape)).encode() + bytes(signs.tolist()))
    return hash_.hexdigest()[:16]


def signature(weights: Named) -> str:
    """A text for a network's (name, weight) pairs, to be compared by distance (about 700 characters).

    Signs of 4096 values: 4 runs of 32 from each of 32 matrices spread over the sorted names. A sign is left
    out where the weight is 0, or so near it that quantisation may have turned it. Raises ValueError where
    there is no matrix to look at."""
    matrices = matrices_of(weights)
    count = min(MATRICES, len(matrices))
    each = RUNS // count
    signs, sure = torch.zeros(2, count, each, LENGTH, dtype=torch.bool)
    for i in range(count):
        weight = matrices[i * len(matrices) // count]
        length = min(LENGTH, numel(weight))
        places = (numel(weight) - length) // ALIGNED + 1
        starts = [k * places // each * ALIGNED for k in range(each)] if places >= each else None
        starts = [k * ALIGNED for k in range(places)] if starts is None else starts
        values, steps = weight.read(starts, length)
        signs[i, : len(starts), :length] = values > 0
        sure[i, : len(starts), :length] = values.isfinite() & (values.abs() > SURE * steps)
    bits = torch.stack([signs & sure, sure]).reshape(-1, 8).int() @ (2 ** torch.arange(8, dtype=torch.int))
    return FIRST + base64.urlsafe_b64encode(zlib.compress(bytes(bits.tolist()), 9)).decode()


@lru_cache(maxsize=1024)
def signs_of(text: str) -> tuple[int, int, int] | None:
    """A signature's number of values, signs, and which are sure, as bits; None for what is no signature."""
    if not text.startswith(FIRST):
        return None
    try:
        packed = base64.b64decode(text[len(FIRST) :], altchars=b"-_", validate=True)
        opened = zlib.decompressobj()
        data = opened.decompress(packed, RUNS * LENGTH)
    except (binascii.Error, ValueError, zlib.error):
        return None
    if not opened.eof or not data:
        return None
    half = len(data) // 2
    return 8 * half, int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "little")


def distance(one: str, other: str) -> tuple[int, int] | None:
    """How many signs of two signatures are opposite, and how many both are sure of; None where one of them
    is no signature."""
    a, b = signs_of(one), signs_of(other)
    if a is None or b is None:
        return None
    if a[0] != b[0]:  # of another architecture
        return max(a[0], b[0]), max(a[0], b[0])
    shared = a[2] & b[2]
    return ((a[1] ^ b[1]) & shared).bit_count(), shared.bit_count()


def alike(one: str, other: str) -> bool | None:
    """Whether two signatures are of one checkpoint; None where that cannot be told."""
    counted = distance(one, other)
    if counted is None or counted[1] < SHARED:
        return None
    return counted[0] <= OPPOSITE + SHARE * counted[1]


@dataclass(frozen=True)
class Identity:
    """A checkpoint."""

    family: str  # "sd15", "sdxl", ...
    fingerprint: str  # 16 digits; "" where weights are not readable
    signature: str = ""  # "" where it is not known, as in older files
    merge: bool = field(default=False, compare=False)  # whether it was merged in the graph that runs it

    @property
    def known(self) -> bool:
        """Whether it can be told from another."""
        return bool(self.fingerprint or self.signature)

    def same(self, other: "Identity") -> bool:
        """Whether both are one checkpoint, in whatever precision: by the signatures, and where one has none
        by the fingerprints. False where that cannot be told."""
        near = alike(self.signature, other.signature)
        return bool(self.fingerprint) and self.fingerprint == other.fingerprint if near is None else near


def identity_of(family: str, weights: Named, merge: bool = False) -> Identity:
    """The identity of a network by its (name, weight) pairs. Raises ValueError for one without a matrix."""
    named = list(weights)
    return Identity(family, fingerprint(named), signature(named), merge)
