"""The identity of a checkpoint: a hash of its weights, and a signature that quantisation does not change.

Use `Identity.same` to compare two checkpoints."""

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

PARAMETERS, VALUES = 16, 4096  # of a fingerprint: matrices, and values of each
MATRICES, RUNS, LENGTH = 32, 128, 32  # of a signature: matrices, runs of values in all, values of a run
BLOCK, GROUP = 256, 16  # largest block of a quantised format, and fewest values that share a grid
LEVELS = 16  # of a 4-bit code book
CERTAIN = 0.9  # steps of the quantiser from 0, beyond which a value has kept its sign
MIN_SHARED = 256  # signs that two signatures must have in common to be compared
OPPOSITE, SHARE = 1, 0.0005  # opposite signs that one checkpoint may have: a number plus a share
VERSION = "1."  # first characters of a signature


class Weight(Protocol):
    """A weight of a network, independent of how it is stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, not of its quantised codes."""

    @property
    def packed(self) -> bool:
        """Whether the weight is stored in an unknown quantised format, so that `read` cannot dequantise it
        and returns its raw codes."""

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        """Return runs of consecutive values of the flattened weight.

        Args:
            starts: index of the first value of each run.
            count: values per run.

        Returns:
            The values, and for each its quantisation step: how far it may be from the unquantised weight.
            Both float32 `[len(starts), count]` on the CPU.
        """


class Stored:
    """A `Weight` stored as a tensor: of floats, of quantised codes, or of a class with its own
    `dequantize()`."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor.detach()
        self.quantised = type(tensor).dequantize is not Tensor.dequantize
        self.packed = not self.quantised and not tensor.is_floating_point()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, which is stored as it is."""
        return tuple(self.tensor.shape)

    def whole(self) -> Tensor:
        """Return all values, dequantised if possible; bytes of an unknown format are reduced by 127.5, so
        that they are centred on 0."""
        values: Tensor = self.tensor.dequantize() if self.quantised else self.tensor
        return values.float() - 127.5 if values.dtype == torch.uint8 else values

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        """Return `count` consecutive values of the flattened weight from each index in `starts` on, and for
        each value how far it may be from the unquantised weight."""
        stored = self.whole().flatten()
        values = torch.stack([stored[start : start + count] for start in starts]).float().cpu()
        steps = step_of(values)
        if stored.is_floating_point():
            info = torch.finfo(stored.dtype)
            steps = torch.maximum(steps, (values.abs() * info.eps).clamp(min=info.tiny * info.eps))
        return values, steps


Named = Iterable[tuple[str, Tensor | Weight]]


def step_of(runs: Tensor) -> Tensor:
    """Estimate the quantisation step of each weight from the gaps between weights; 0 if not quantised.

    In formats with evenly spaced values (Q4_0, Q4_K, ...), weights near each other differ by multiples of the
    step. For formats with few, uneven values (IQ4_NL, NF4, ...), the smallest gap counts as the step. If all
    weights of a run are equal, the step is infinity.

    Args:
        runs: `[n, count]`, n runs of consecutive weights."""
    groups = runs.reshape(-1, GROUP) if runs.shape[-1] % GROUP == 0 else runs
    ordered, gaps = gaps_of(groups)
    least = gaps.amin(-1, keepdim=True) if gaps.shape[-1] else torch.full_like(ordered[:, :1], torch.inf)
    step = torch.zeros_like(least)
    for divisor in (3, 2, 1):  # the smallest gap may span several steps
        multiples = (ordered - ordered[:, :1]) / (least / divisor)
        even = (multiples - multiples.round()).abs().amax(-1, keepdim=True) < 0.1
        step = torch.where(even, least / divisor, step)
    gaps = gaps_of(runs)[1]
    few = gaps.isfinite().sum(-1, keepdim=True) < LEVELS
    book = torch.where(few & (runs.shape[-1] >= 2 * LEVELS), gaps.amin(-1, keepdim=True), 0.0)
    return torch.maximum(step.expand_as(groups).reshape(runs.shape), book.expand_as(runs))


def gaps_of(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the weights of each group, `[groups, n]`. Return them and the differences between neighbours; a
    difference of 0 becomes infinity."""
    ordered = groups.sort(dim=-1).values
    gaps, least = ordered.diff(dim=-1), 1e-6 * ordered.abs().amax(-1, keepdim=True)
    return ordered, torch.where(gaps > least, gaps, torch.inf)


def matrices_of(weights: Named) -> list[Weight]:
    """Return the weights with two or more dimensions, sorted by name. Raises ValueError if there are none."""
    stored = [(n, Stored(w) if isinstance(w, Tensor) else w) for n, w in weights]
    matrices = [(n, w) for n, w in stored if len(w.shape) >= 2 and numel(w) > 0]
    if not matrices:
        raise ValueError(
            "the network has no weight matrix, so its checkpoint cannot be identified: choose another model"
        )
    return [w for _, w in sorted(matrices, key=lambda item: item[0])]


def numel(weight: Weight) -> int:
    """Return the number of values of a weight."""
    return int(torch.Size(weight.shape).numel())


def fingerprint(weights: Named) -> str:
    """Return a hash of a network's weights, 16 hexadecimal digits.

    It covers 16 weight matrices spread over the sorted names: the shape of each, and which of its first 4096
    values are positive. This is equal in float32, float16 and bfloat16, and any training changes it. Names
    only determine the order, so a common prefix has no effect.

    Args:
        weights: (name, weight) pairs, e.g. `unet.named_parameters()`.

    Raises:
        ValueError: if the network has no weight matrix that can be read.
    """
    matrices = [w for w in matrices_of(weights) if not w.packed]
    if not matrices:
        raise ValueError(
            "the network has no weight matrix, so its checkpoint cannot be identified: choose another model"
        )
    count = min(PARAMETERS, len(matrices))
    hash_ = hashlib.sha256()
    for i in range(count):
        weight = matrices[i * len(matrices) // count]
        signs = (weight.read([0], min(VALUES, numel(weight)))[0][0] > 0).to(torch.uint8)
        hash_.update(str(tuple(weight.shape)).encode() + bytes(signs.tolist()))
    return hash_.hexdigest()[:16]


def signature(weights: Named) -> str:
    """Return a text of about 700 characters that identifies a network's weights in any precision.

    It contains the signs (plus or minus) of 4096 weights: 4 times 32 consecutive ones from each of 32 weight
    matrices, spread over the sorted names. The sign of a weight is left out if the weight is so close to 0
    that quantisation may have changed it. `alike` compares two signatures.

    Args:
        weights: (name, weight) pairs, e.g. `unet.named_parameters()`.

    Raises:
        ValueError: if the network has no weight matrix.
    """
    matrices = matrices_of(weights)
    count = min(MATRICES, len(matrices))
    each = RUNS // count
    signs, certain = torch.zeros(2, count, each, LENGTH, dtype=torch.bool)
    for i in range(count):
        weight = matrices[i * len(matrices) // count]
        length = min(LENGTH, numel(weight))
        places = (numel(weight) - length) // BLOCK + 1
        starts = [k * places // each * BLOCK for k in range(each)] if places >= each else None
        starts = [k * BLOCK for k in range(places)] if starts is None else starts
        values, steps = weight.read(starts, length)
        signs[i, : len(starts), :length] = values > 0
        certain[i, : len(starts), :length] = values.isfinite() & (values.abs() > CERTAIN * steps)
    bits = torch.stack([signs & certain, certain]).reshape(-1, 8).int() @ (
        2 ** torch.arange(8, dtype=torch.int)
    )
    return VERSION + base64.urlsafe_b64encode(zlib.compress(bytes(bits.tolist()), 9)).decode()


@lru_cache(maxsize=1024)
def signs_of(text: str) -> tuple[int, int, int] | None:
    """Decode a network's signature, a text with the signs of some of its weights (see `signature`).

    Returns:
        The number of weights; their signs as bits, 1 for positive; and as bits which of these signs are
        certain. None if the text is not a signature."""
    if not text.startswith(VERSION):
        return None
    try:
        packed = base64.b64decode(text[len(VERSION) :], altchars=b"-_", validate=True)
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(packed, RUNS * LENGTH)
    except (binascii.Error, ValueError, zlib.error):
        return None
    if not decompressor.eof or not data:
        return None
    half = len(data) // 2
    return 8 * half, int.from_bytes(data[:half], "little"), int.from_bytes(data[half:], "little")


def distance(first: str, second: str) -> tuple[int, int] | None:
    """Compare the signatures of two networks, each with the signs of the same weights (see `signature`).

    Returns:
        How many weights have opposite signs, and how many could be compared. None if one of the texts is not
        a signature."""
    a, b = signs_of(first), signs_of(second)
    if a is None or b is None:
        return None
    if a[0] != b[0]:  # different architectures: all signs count as opposite
        return max(a[0], b[0]), max(a[0], b[0])
    shared = a[2] & b[2]
    return ((a[1] ^ b[1]) & shared).bit_count(), shared.bit_count()


def alike(first: str, second: str) -> bool | None:
    """Return whether two signatures of network weights (see `signature`) belong to the same checkpoint; None
    if they cannot be compared."""
    counts = distance(first, second)
    if counts is None or counts[1] < MIN_SHARED:
        return None
    opposite, shared = counts
    return opposite <= OPPOSITE + SHARE * shared


@dataclass(frozen=True)
class Identity:
    """The identity of a checkpoint: its model family (e.g. SD 1.5), and two texts computed from its weights,
    the hash `fingerprint` and the `signature`, which can also be compared between quantised copies."""

    family: str  # e.g. "sd15" or "sdxl"; "": unknown
    fingerprint: str  # see `fingerprint`; "": the weights cannot be read
    signature: str = ""  # see `signature`; "": unknown, e.g. in older files
    merge: bool = field(default=False, compare=False)  # the checkpoint is a merge made in the running graph

    @property
    def known(self) -> bool:
        """Whether the checkpoint can be distinguished from others of its family."""
        return bool(self.fingerprint or self.signature)

    def same(self, other: "Identity") -> bool:
        """Return whether both are the same checkpoint, in any precision; False if this cannot be determined.

        Compares the signatures, i.e. the signs of the same 4096 weights, which quantisation hardly changes.
        If one is missing, compares the fingerprints, i.e. hashes of the weights, which must be equal."""
        same = alike(self.signature, other.signature)
        return bool(self.fingerprint) and self.fingerprint == other.fingerprint if same is None else same


def identity_of(family: str, weights: Named, merge: bool = False) -> Identity:
    """Return the identity of a network.

    Args:
        family: e.g. "sd15".
        weights: (name, weight) pairs, e.g. `unet.named_parameters()`.
        merge: whether the network is a merge of models, made in the running workflow.

    Raises:
        ValueError: if the network has no weight matrix.
    """
    named = list(weights)
    return Identity(family, fingerprint(named), signature(named), merge)
