"""The calibrated table beside the best other solvers, and two sets of features beside each other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .measures import Measured
from .quality import CALIBRATED, Row, best_others

SHORT = {"rmse_ref": "error", "fd_ref": "FD", "fd_data": "above the reference's FD to data", "swd": "SWD"}


def cells(rows: list[Row]) -> list[tuple[float, int]]:
    """(guidance, NFE) of the rows, in order."""
    return sorted({(r.entry.guidance, r.nfe) for r in rows})


@dataclass
class Compared:
    """The calibrated table beside the best other solver in one measure, at one NFE and guidance."""

    nfe: int
    guidance: float
    measure: str
    ours: float
    other: float
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


def compared(rows: list[Row], references: dict[float, Measured], nfe: int, guidance: float) -> list[Compared]:
    """In each measure of SHORT; the resamples are of the same noises, so their ratios are paired."""
    here = [r for r in rows if (r.nfe, r.entry.guidance) == (nfe, guidance)]
    mine = [r for r in here if r.predictor == CALIBRATED]
    others = [r for r in here if not r.entry.file]
    if not mine or not others:
        return []
    comparisons = []
    for measure in SHORT:
        reference = references.get(guidance)
        best = min(others, key=lambda r, m=measure: r.measures[m].value)
        ours, ours_again = above(mine[0].measures[measure], measure, reference)
        other, other_again = above(best.measures[measure], measure, reference)
        ratio = interval = None
        if other > 0:
            ratio = ours / other
            again = (ours_again / other_again)[other_again > 0]
            again = again - again.mean() + ratio  # as in Measured.interval
            interval = tuple(torch.quantile(again, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist())
        comparisons.append(Compared(nfe, guidance, measure, ours, other, best, ratio, interval))
    return comparisons


def all_compared(rows: list[Row], references: dict[float, Measured]) -> list[Compared]:
    """`compared` everywhere."""
    return [c for guidance, nfe in cells(rows) for c in compared(rows, references, nfe, guidance)]


def rank(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def agreement(rows: list[Row]) -> list[tuple[int, float, float]]:
    """(NFE, guidance, Spearman's rank correlation of the two Frechet distances over all rows)."""
    ranks = []
    for guidance, nfe in cells(rows):
        here = [r for r in rows if (r.entry.guidance, r.nfe) == (guidance, nfe)]
        a, b = (rank([r.measures[m].value for r in here]) for m in ("fd_ref", "fd_ref_unet"))
        ranks.append((nfe, guidance, float(torch.corrcoef(torch.stack([a, b]))[0, 1])))
    return ranks


def ahead_by(rows: list[Row], measure: str) -> int:
    """In how many tables the calibrated one is ahead of every other solver in a measure."""
    count = 0
    for guidance, nfe in cells(rows):
        mine = [r for r in rows if (r.entry.guidance, r.nfe, r.predictor) == (guidance, nfe, CALIBRATED)]
        best = best_others(rows, nfe, guidance)[measure]
        count += bool(mine) and mine[0].measures[measure].value < best.measures[measure].value
    return count
