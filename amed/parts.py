"""Parts of a slope: d = sum of its parts, each with a weight of its own in every row of a table.

A part is one entry of PARTS: how to split. "" is the whole slope. What is kept of a part may be smaller than
the slope: bands of spatial frequency are kept as a pyramid, whose levels are weighed and summed small, and
brought to full size once a move."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

# split(d, x, sigma, evaluation) -> what is kept of each part; sigma broadcasts against d; evaluation None:
# analytic. A part that this evaluation does not have is None
Split = Callable[[Tensor, Tensor, Any, Any], tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class Parts:
    """How many parts, how to split, and what the split wants of an evaluation (see loop.Evaluation).

    levels: of what is kept of each part. Level 0 is a slope's own size. A part of a level l > 0 and the part
    before it, of level l - 1, are neighbouring bands: what is kept of them is a slope and its `down`, and the
    finer band is the difference of the two. (): all 0."""

    count: int
    split: Split
    wants: frozenset[str] = frozenset()
    levels: tuple[int, ...] = ()

    def full(self, kept: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The parts themselves, each like the slope."""
        levels, parts = self.levels or (0,) * len(kept), list(kept)
        for i in range(len(kept) - 1, -1, -1):
            low = kept[i]
            for level in range(levels[i], 0, -1):
                finer = kept[i - levels[i] + level - 1]
                low = None if low is None or finer is None else up(low, finer)
            parts[i] = low
        finest = list(parts)
        for i, level in enumerate(levels[1:], 1):
            whole, low = finest[i - 1], finest[i]
            if level and whole is not None and low is not None:
                parts[i - 1] = whole - low
        return parts

    def total(self, kept: Sequence[Tensor | None]) -> Any:
        """The slope."""
        return sum(v for i, v in enumerate(kept) if v is not None and not (self.levels and self.levels[i]))

    def check(self, x: Tensor) -> None:
        """Raises ValueError for an x that has no such parts."""
        if self.levels and x.ndim < 4:
            wrong = f"this predictor weighs bands of spatial frequency, which {tuple(x.shape)} does not have"
            raise ValueError(f"{wrong}: calibrate for this model, or use a predictor without bands")


def whole(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor]:
    """The slope itself."""
    return (d,)


def guidance(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor, Tensor]:
    """The unconditional slope and what guidance adds to it; all of d in the first where there are no
    halves."""
    if evaluation is None or evaluation.uncond is None:
        return d, d - d
    uncond = (x - evaluation.uncond).div_(sigma)
    return uncond, d - uncond


def halves(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor | None, ...]:
    """The conditional slope and what guidance adds to it; only the first of an evaluation that has no
    unconditional half."""
    if evaluation is None or evaluation.cond is None:
        return d, None
    cond = (x - evaluation.cond).div_(sigma)
    return cond, d - cond


def bands(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor, ...]:
    """Octaves of spatial frequency, over the last two axes: finer than some 1/4 cycle per pixel, 1/8, 1/16,
    and the rest. In cycles per pixel, so that a table serves every size."""
    levels = [d]
    for _ in range(BANDS - 1):
        levels.append(down(levels[-1]))
    return tuple(levels)


def halves_in_bands(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor | None, ...]:
    """The bands of both `halves`."""
    cond, added = halves(d, x, sigma, evaluation)
    assert cond is not None
    none = (None,) * BANDS if added is None else bands(added, x, sigma, evaluation)
    return (*bands(cond, x, sigma, evaluation), *none)


def down(v: Tensor) -> Tensor:
    """Means of 2x2 pixels (at an odd end of what there is)."""
    if not (v.shape[-1] % 2 or v.shape[-2] % 2):  # four times faster on a CPU
        rows = v[..., ::2, :] + v[..., 1::2, :]
        return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)
    planes = v.flatten(1, -3) if v.ndim > 4 else v
    small = F.avg_pool2d(planes, 2, ceil_mode=True, count_include_pad=False)
    return small.view(*v.shape[:-2], *small.shape[-2:])


def up(v: Tensor, like: Tensor) -> Tensor:
    """At the size of `like`, bilinear."""
    planes = v.flatten(1, -3) if v.ndim > 4 else v
    return F.interpolate(planes, like.shape[-2:], mode="bilinear").view(like.shape)


BANDS = 4
PARTS = {
    "": Parts(1, whole),
    "guidance": Parts(2, guidance, frozenset({"halves"})),
    "halves": Parts(2, halves, frozenset({"halves"})),
    "bands": Parts(BANDS, bands, levels=tuple(range(BANDS))),
    "halves+bands": Parts(2 * BANDS, halves_in_bands, frozenset({"halves"}), 2 * tuple(range(BANDS))),
}
