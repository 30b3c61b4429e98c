"""The calibrated tables beside the best other solvers, and two sets of features beside each other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .measures import Measured
from .plan import CALIBRATED, QUICK_TABLE, Row
from .quality import best_others, others

SHORT = {"rmse_ref": "error", "fd_ref": "FD", "fd_data": "above the reference's FD to data", "swd": "SWD"}


def cells(rows: list[Row]) -> list[tuple[float, int]]:
    """(guidance, NFE) of the rows, in order."""
    return sorted({(r.entry.guidance, r.entry.cell) for r in rows})


@dataclass
class Compared:
    """A calibrated table (`mine`) beside the best other solver (`row`) in one measure, at one NFE and
    guidance."""

    nfe: int
    guidance: float
    measure: str
    ours: float
    other: float
    mine: Row
    row: Row
    ratio: float | None
    interval: tuple[float, float] | None

    @property
    def text(self) -> str:
        if self.ratio is None:
            return "none: the other is no further from the data than the reference"
        return f"{self.ratio:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})"


def above(measured: Measured, measure: str, reference: Measured | None) -> tuple[float, Tensor]:
    """A measure's value and resamples; FD to data as what it is above the reference's own."""
    if measure != "fd_data" or reference is None:
        return measured.value, measured.resampled
    return measured.value - reference.value, measured.resampled - reference.resampled


def beside(mine: Row, rows: list[Row], measure: str, reference: Measured | None = None) -> Compared:
    """A row of ours beside the best other in its cell; the resamples are of the same noises, so their ratios
    are paired."""
    nfe, guidance = mine.entry.cell, mine.entry.guidance
    best = min(others(rows, nfe, guidance), key=lambda r: r.measures[measure].value)
    ours, ours_again = above(mine.measures[measure], measure, reference)
    other, other_again = above(best.measures[measure], measure, reference)
    ratio = interval = None
    if other > 0:
        ratio = ours / other
        again = (ours_again / other_again)[other_again > 0]
        again = again - again.mean() + ratio  # as in Measured.interval
        interval = tuple(torch.quantile(again, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist())
    return Compared(nfe, guidance, measure, ours, other, mine, best, ratio, interval)


def ours(rows: list[Row], nfe: int, guidance: float, predictor: str = CALIBRATED) -> Row | None:
    """A table of ours in one cell."""
    own = (r for r in rows if (r.entry.cell, r.entry.guidance, r.predictor) == (nfe, guidance, predictor))
    return next(own, None)


def equal_passes(rows: list[Row], nfe: int, guidance: float) -> Row | None:
    """Of 2 nfe passes under guidance, the better by error: the table of nfe evaluations, or that of one more
    which spares two of its passes."""
    here = [r for r in rows if (r.entry.cell, r.entry.guidance) == (nfe, guidance)]
    both = [r for r in here if CALIBRATED in r.predictor and r.predictor != QUICK_TABLE and r.nfe <= nfe + 1]
    return min(both, key=lambda r: r.measures["rmse_ref"].value, default=None)


def all_compared(
    rows: list[Row], references: dict[float, Measured], predictor: str = CALIBRATED
) -> list[Compared]:
    """A kind of our tables everywhere, in each measure of SHORT."""
    tables = [ours(rows, nfe, guidance, predictor) for guidance, nfe in cells(rows)]
    return [beside(r, rows, m, references.get(r.entry.guidance)) for r in tables if r for m in SHORT]


def rank(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def agreement(rows: list[Row]) -> list[tuple[int, float, float]]:
    """(NFE, guidance, Spearman's rank correlation of the two Frechet distances over all rows)."""
    ranks = []
    for guidance, nfe in cells(rows):
        here = [r for r in rows if (r.entry.guidance, r.entry.cell) == (guidance, nfe)]
        a, b = (rank([r.measures[m].value for r in here]) for m in ("fd_ref", "fd_ref_unet"))
        ranks.append((nfe, guidance, float(torch.corrcoef(torch.stack([a, b]))[0, 1])))
    return ranks


def ahead_by(rows: list[Row], measure: str) -> int:
    """In how many tables the calibrated one is ahead of every other solver in a measure."""
    count = 0
    for guidance, nfe in cells(rows):
        mine, best = ours(rows, nfe, guidance), best_others(rows, nfe, guidance)[measure]
        count += mine is not None and mine.measures[measure].value < best.measures[measure].value
    return count
