"""The constants that AMED fits, described once for fits, files, `inspect` and reports."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
TRANSFORMS: dict[str, tuple[Transform, Transform]] = {  # value -> what is fitted, and back
    "log": (torch.log, torch.exp),
    "logit": (torch.logit, torch.sigmoid),
    "identity": (lambda v: v, lambda v: v),
}


@dataclass(frozen=True)
class Parameter:
    """A kind of constant that a calibration fits, e.g. the mid time: its names, range and step sizes.

    The fit estimates derivatives by finite differences. Their step is large on purpose: a small one would be
    lost in half precision or between a model's 1000 timesteps."""

    name: str  # in recipes, files and Constants
    text: str  # in reports
    default: float  # where nothing was fitted
    transform: str = "identity"  # a name of TRANSFORMS; "in fitted units" below means after it
    step: float = 0.02  # of finite differences, in fitted units
    low: float = -torch.inf  # lower bound of a fit, in fitted units
    high: float = torch.inf  # upper bound of a fit, in fitted units
    reach: float = torch.inf  # longest move per iteration of a fit, in fitted units
    above: float = -torch.inf  # a valid value is greater than this
    below: float = torch.inf  # a valid value is less than this

    def fitted(self, value: Tensor) -> Tensor:
        """Convert a constant's value to the number that the fit varies, e.g. its logarithm."""
        return TRANSFORMS[self.transform][0](value)

    def value(self, fitted: Tensor) -> Tensor:
        """Convert the number that the fit varies, e.g. a logarithm, back to the constant's value."""
        return TRANSFORMS[self.transform][1](fitted)

    def check(self, value: Tensor) -> None:
        """Check that all values are finite and in the range that is valid for this constant.

        Raises:
            ValueError: One is not; the message names the constant and the range."""
        if not value.isfinite().all():
            raise ValueError(
                f"the constant {self.name} is not finite ({value.tolist()}): correct it, or calibrate again"
            )
        if not ((value > self.above) & (value < self.below)).all():
            positive = self.transform == "log" and not (value > 0).all()
            requirement = "be positive" if positive else f"lie between {self.above:g} and {self.below:g}"
            raise ValueError(
                f"the constant {self.name} must {requirement}, but is {value.tolist()}: correct it, or "
                "calibrate again"
            )


AMED = ("r", "c", "a")  # the paper's, in every file; of others what a file lacks is its default
PARAMETERS = {
    p.name: p
    for p in (
        Parameter("t", "noise level", 1.0, "log", 0.04, reach=0.5, above=0.0),
        Parameter("r", "mid time", 0.5, "logit", 0.1, -4.0, 4.0, 0.7, 0.0, 1.0),
        Parameter("c", "direction scale", 1.0, "identity", 0.02, 0.5, 1.5, 0.2, -10.0, 10.0),
        Parameter("a", "time scale", 1.0, "log", 0.04, -0.5, 0.5, 0.15, 0.0, 10.0),
        Parameter("w", "weight", 0.0, "identity", 0.04, -8.0, 8.0, 0.6),
    )
}
