"""The preview of a running calibration, and an estimate of the time left."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor

BATCHED = 4  # samples from which a call counts as a batch; a sample of a smaller call takes longer


@dataclass(frozen=True)
class Preview:
    """The best fit so far and the best plain solver, on the held-out samples.

    Before a fit exists its error is nan and its image is missing; the same goes for the plain solver."""

    error: float = math.nan  # robust error of the best fit to the reference
    plain: float = math.nan  # robust error of the best plain solver to the reference
    solver: str = ""  # the plain solver and its schedule, for people
    # (evaluations spent, error / the plain solver's error) after each start and iteration.
    curve: tuple[tuple[int, float], ...] = ()
    images: dict[str, Tensor] = field(default_factory=dict)  # end states of "reference", "plain", "fit"

    @property
    def ratio(self) -> float:
        """Error of the best fit / error of the best plain solver; nan before the first fit."""
        return self.error / max(self.plain, 1e-12)


class Pace:
    """The speed of the model's calls so far, for an estimate of the time left.

    Calls with fewer than 4 samples (BATCHED) are timed separately, because a sample takes longer in them."""

    def __init__(self) -> None:
        self.seconds: dict[bool, float] = defaultdict(float)  # by whether the call was a batch
        self.rows: dict[bool, int] = defaultdict(int)  # samples, in the same way

    def called(self, rows: int, seconds: float) -> None:
        """Record a call of the model with `rows` samples, and the seconds since the previous call."""
        batched = rows >= BATCHED
        self.seconds[batched] += seconds
        self.rows[batched] += rows

    def left(self, rows: int, small: int = 0) -> float:
        """Return the estimated seconds for `rows` more samples in calls of the model; nan before the first.

        `small` of them are in calls with fewer than 4 samples (BATCHED), which take longer per sample."""
        per_row = {kind: self.seconds[kind] / count for kind, count in self.rows.items() if count}
        if not per_row:
            return math.nan
        batched, single = (per_row.get(kind, next(iter(per_row.values()))) for kind in (True, False))
        return max(rows - small, 0) * batched + small * single
