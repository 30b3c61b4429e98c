"""A calibration seen from outside while it runs: what there is so far, and how long the rest will take."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor

WHOLE = 4  # a call with fewer samples than this is a small one, whose samples cost more


@dataclass(frozen=True)
class Preview:
    """The best fit so far against the best plain solver, on the held-out samples; nan and None for what
    there is not yet.

    error, plain: to the reference, robust, as a Result's rows have them. solver: the plain one, its schedule
    with it. curve: (evaluations, error over the plain solver's) of each start and iteration. images: end
    states by name, those of "reference", "plain", "fit" there are."""

    error: float = math.nan
    plain: float = math.nan
    solver: str = ""
    curve: tuple[tuple[int, float], ...] = ()
    images: dict[str, Tensor] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Error over the plain solver's; nan before there is a fit."""
        return self.error / max(self.plain, 1e-12)


class Pace:
    """Seconds of the model's calls so far, and what they tell of the rest. Samples that are asked for one by
    one cost more each than those of a batch, so the two are timed apart."""

    def __init__(self) -> None:
        self.seconds: dict[bool, float] = defaultdict(float)
        self.rows: dict[bool, int] = defaultdict(int)

    def called(self, rows: int, seconds: float) -> None:
        """A call with so many samples, and what was done since the one before it, took so long."""
        whole = rows >= WHOLE
        self.seconds[whole] += seconds
        self.rows[whole] += rows

    def left(self, rows: int, small: int = 0) -> float:
        """Seconds for so many more samples, `small` of them in small calls; nan before the first call."""
        each = {kind: self.seconds[kind] / count for kind, count in self.rows.items() if count}
        if not each:
            return math.nan
        whole, single = (each.get(kind, next(iter(each.values()))) for kind in (True, False))
        return max(rows - small, 0) * whole + small * single
