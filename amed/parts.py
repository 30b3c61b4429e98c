"""Parts of a slope: d = sum of its parts, each with a weight of its own in every row of a table.

A part is one entry of PARTS: how to split. "" is the whole slope."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# split(d, x, sigma, evaluation) -> parts, each like d; sigma broadcasts against d; evaluation None: analytic
Split = Callable[[Tensor, Tensor, Any, Any], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Parts:
    """How many parts, how to split, and what the split wants of an evaluation (see loop.Evaluation)."""

    count: int
    split: Split
    wants: frozenset[str] = frozenset()


def whole(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor]:
    """The slope itself."""
    return (d,)


def halves(d: Tensor, x: Tensor, sigma: Any, evaluation: Any) -> tuple[Tensor, Tensor]:
    """The unconditional slope and what guidance adds to it; all of d in the first where there are no
    halves."""
    if evaluation is None or evaluation.uncond is None:
        return d, d - d
    uncond = (x - evaluation.uncond).div_(sigma)
    return uncond, d - uncond


PARTS = {"": Parts(1, whole), "guidance": Parts(2, halves, frozenset({"halves"}))}
