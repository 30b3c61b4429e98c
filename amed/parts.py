"""How a slope is split into parts, each with its own weights in every row of a table.

The parts add up to the slope. Each entry of PARTS is one way to split; "" leaves the slope whole. A part may
be stored smaller than the slope: bands of spatial frequency are stored as a pyramid, whose levels are weighed
and summed at their own size and enlarged once per move."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

# split(d, x, sigma, evaluation) -> the stored tensor of each part. d and x `[B, ...]`; sigma broadcasts
# against them; evaluation is None in an analytic row. A part that the evaluation lacks is None
Split = Callable[[Tensor, Tensor, Any, Any], tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class Parts:
    """A way to split the slope dx/dsigma into parts, e.g. frequency bands, that get separate weights."""

    count: int  # number of parts
    split: Split  # splits one slope
    wants: frozenset[str] = frozenset()  # outputs of the evaluation that `split` uses, see loop.Evaluate
    # pyramid level at which each part is stored; (): all 0. Level l is the slope at 1/2^l of its size. A part
    # of level l > 0 and the part before it (level l - 1) are neighbouring bands; the finer band is the
    # difference of the two stored tensors
    levels: tuple[int, ...] = ()

    def full(self, stored: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the parts of a slope dx/dsigma, each at the slope's full size.

        Args:
            stored: the parts as `split` returned them; frequency bands are smaller there."""
        levels, parts = self.levels or (0,) * len(stored), list(stored)
        for i in range(len(stored) - 1, -1, -1):
            low = stored[i]
            for level in range(levels[i], 0, -1):
                finer = stored[i - levels[i] + level - 1]
                low = None if low is None or finer is None else up(low, finer)
            parts[i] = low
        finest = list(parts)
        for i, level in enumerate(levels[1:], 1):
            finer, low = finest[i - 1], finest[i]
            if level and finer is not None and low is not None:
                parts[i - 1] = finer - low
        return parts

    def total(self, stored: Sequence[Tensor | None]) -> Any:
        """Return the slope dx/dsigma `[B, ...]` from the parts (e.g. frequency bands) that `split` made."""
        return sum(v for i, v in enumerate(stored) if v is not None and not (self.levels and self.levels[i]))

    def check(self, x: Tensor) -> None:
        """Check that a slope of x's shape can be split.

        Raises:
            ValueError: The parts are bands of spatial frequency, and x has fewer than 4 axes."""
        if self.levels and x.ndim < 4:
            raise ValueError(
                "this predictor weighs bands of spatial frequency, which a latent of shape "
                f"{tuple(x.shape)} does not have: calibrate for this model, or use a predictor without bands"
            )


def whole(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor]:
    """Return the slope dx/dsigma without splitting it, as its only part."""
    return (d,)


def guidance(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor, Tensor]:
    """Split the slope dx/dsigma into that of the negative prompt, and what guidance adds to it.

    If the evaluation has no result of the negative prompt, the parts are the whole slope and zero."""
    if evaluation is None or evaluation.uncond is None:
        return d, d - d
    uncond = (x - evaluation.uncond).div_(sigma)
    return uncond, d - uncond


def halves(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor | None, ...]:
    """Split the slope dx/dsigma into that of the prompt alone, and what guidance adds to it.

    If the evaluation has no separate result of the prompt, e.g. because it skipped the negative prompt, the
    parts are the whole slope and None."""
    if evaluation is None or evaluation.cond is None:
        return d, None
    cond = (x - evaluation.cond).div_(sigma)
    return cond, d - cond


def bands(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor, ...]:
    """Split a slope dx/dsigma into 4 bands of spatial frequency.

    Returns:
        The bands, stored as the slope at full, 1/2, 1/4 and 1/8 of its size. A band is the difference of two
        neighbouring sizes, which is taken later (`Parts.full`); the lowest band is the smallest size."""
    pyramid = [d]
    for _ in range(BANDS - 1):
        pyramid.append(down(pyramid[-1]))
    return tuple(pyramid)


def halves_in_bands(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor | None, ...]:
    """Split the slope dx/dsigma into that of the prompt alone and what guidance adds to it, and each of these
    into 4 frequency bands.

    The parts of what guidance adds are None if the evaluation skipped the negative prompt."""
    cond, added = halves(d, x, sigma, evaluation)
    assert cond is not None
    none = (None,) * BANDS if added is None else bands(added, x, sigma, evaluation)
    return (*bands(cond, x, sigma, evaluation), *none)


def down(v: Tensor) -> Tensor:
    """Return v at half its size. A pixel is the mean of 2x2 pixels, of fewer at the edge of an odd size."""
    if not (v.shape[-1] % 2 or v.shape[-2] % 2):  # four times faster on a CPU
        rows = v[..., ::2, :] + v[..., 1::2, :]
        return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)
    planes = v.flatten(1, -3) if v.ndim > 4 else v
    small = F.avg_pool2d(planes, 2, ceil_mode=True, count_include_pad=False)
    return small.view(*v.shape[:-2], *small.shape[-2:])


def up(v: Tensor, like: Tensor) -> Tensor:
    """Enlarge v to the size of `like`, bilinearly."""
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
