"""The constants AMED fits, each described once: fitting, files, `inspect` and the report follow from it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
TRANSFORMS: dict[str, tuple[Transform, Transform]] = {  # value -> what is fitted, and back
    "log": (torch.log, torch.exp),
    "logit": (torch.logit, torch.sigmoid),
    "plain": (lambda v: v, lambda v: v),
}


@dataclass(frozen=True)
class Parameter:
    """One kind of number.

    default: where nothing was fitted. step: of finite differences, in fitted units, wide on purpose: it
    survives half precision and models of 1000 timesteps, and some noises sit beside a point where the end
    state jumps, which a small step mistakes for a slope. low, high: bounds, and reach: the furthest move at
    once, in fitted units. above, below: what a value must lie between, exclusively."""

    name: str
    text: str
    default: float
    transform: str = "plain"
    step: float = 0.02
    low: float = -torch.inf
    high: float = torch.inf
    reach: float = torch.inf
    above: float = -torch.inf
    below: float = torch.inf

    def fitted(self, value: Tensor) -> Tensor:
        """What is fitted in place of `value`."""
        return TRANSFORMS[self.transform][0](value)

    def value(self, fitted: Tensor) -> Tensor:
        """The inverse."""
        return TRANSFORMS[self.transform][1](fitted)

    def check(self, value: Tensor) -> None:
        """Raises ValueError naming what is out of range."""
        if not value.isfinite().all():
            raise ValueError(f"{self.name} is not finite: {value.tolist()}")
        if not ((value > self.above) & (value < self.below)).all():
            positive = self.transform == "log" and not (value > 0).all()
            span = "be positive" if positive else f"lie between {self.above:g} and {self.below:g}"
            raise ValueError(f"{self.name} must {span}, got {value.tolist()}")


AMED = ("r", "c", "a")  # the paper's, in every file; of others what a file lacks is its default
PARAMETERS = {
    p.name: p
    for p in (
        Parameter("t", "noise level", 1.0, "log", 0.04, reach=0.5, above=0.0),
        Parameter("r", "mid time", 0.5, "logit", 0.1, -4.0, 4.0, 0.7, 0.0, 1.0),
        Parameter("c", "direction scale", 1.0, "plain", 0.02, 0.5, 1.5, 0.2, -10.0, 10.0),
        Parameter("a", "time scale", 1.0, "log", 0.04, -0.5, 0.5, 0.15, 0.0, 10.0),
        Parameter("w", "weight", 0.0, "plain", 0.04, -8.0, 8.0, 0.6),
    )
}
