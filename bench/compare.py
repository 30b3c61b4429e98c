"""Comparisons of the calibrated AMED solvers with the best other solvers, and of two sets of features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .measures import Measured
from .plan import CALIBRATED, QUICK_TABLE, Row
from .quality import best_others, others

SHORT = {"rmse_ref": "error", "fd_ref": "FD", "fd_data": "above the reference's FD to data", "swd": "SWD"}


def cells(rows: list[Row]) -> list[tuple[float, int]]:
    """Return the (guidance, NFE) pairs that occur in a list of benchmark results, sorted."""
    return sorted({(r.entry.guidance, r.entry.cell) for r in rows})


@dataclass
class Compared:
    """Comparison of a calibrated AMED solver with the best ComfyUI solver in one measure, e.g. the error."""

    nfe: int
    guidance: float
    measure: str  # a name of SHORT
    ours: float  # value of the calibrated table
    other: float  # value of the other solver
    our_row: Row
    row: Row  # the other solver's
    ratio: float | None  # ours / other; None where other is not above 0
    interval: tuple[float, float] | None  # of the ratio, the middle 90 % of the resamples

    @property
    def text(self) -> str:
        """The ratio with its 90 % interval as text, e.g. "0.50 (0.40 to 0.60)"; below 1, AMED is better."""
        if self.ratio is None:
            return "none: the other is no further from the data than the reference"
        return f"{self.ratio:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})"


def above_reference(measured: Measured, measure: str, reference: Measured | None) -> tuple[float, Tensor]:
    """Return the value of a measure and its bootstrap resamples.

    For "fd_data", the Fréchet distance to the data, this is the excess over the same distance of the
    `reference` images, if they are given."""
    if measure != "fd_data" or reference is None:
        return measured.value, measured.resampled
    return measured.value - reference.value, measured.resampled - reference.resampled


def against_best(our_row: Row, rows: list[Row], measure: str, reference: Measured | None = None) -> Compared:
    """Compare an AMED solver with the best ComfyUI solver of as many network passes, at the same guidance.

    They are compared in `measure`, e.g. the error: AMED's is divided by the other's. The ratio has a 90 %
    interval from bootstrap resamples of the noises."""
    nfe, guidance = our_row.entry.cell, our_row.entry.guidance
    best = min(others(rows, nfe, guidance), key=lambda r: r.measures[measure].value)
    ours, ours_resampled = above_reference(our_row.measures[measure], measure, reference)
    other, other_resampled = above_reference(best.measures[measure], measure, reference)
    ratio = interval = None
    if other > 0:
        ratio = ours / other
        resampled = (ours_resampled / other_resampled)[other_resampled > 0]
        resampled = resampled - resampled.mean() + ratio  # as in Measured.interval
        interval = tuple(torch.quantile(resampled, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist())
    return Compared(nfe, guidance, measure, ours, other, our_row, best, ratio, interval)


def calibrated_row(rows: list[Row], nfe: int, guidance: float, predictor: str = CALIBRATED) -> Row | None:
    """Return the result of a calibrated AMED solver at one NFE and guidance; None if it was not measured."""
    matching = (
        r for r in rows if (r.entry.cell, r.entry.guidance, r.predictor) == (nfe, guidance, predictor)
    )
    return next(matching, None)


def equal_passes(rows: list[Row], nfe: int, guidance: float) -> Row | None:
    """Return the result of the best calibrated AMED solver that costs as much as `nfe` evaluations.

    The best has the lowest error. With guidance, some of these solvers make `nfe` + 1 evaluations but skip
    the negative prompt in two of them, which saves two network passes. None if no such solver was
    measured."""
    cell_rows = [r for r in rows if (r.entry.cell, r.entry.guidance) == (nfe, guidance)]
    candidates = [
        r for r in cell_rows if CALIBRATED in r.predictor and r.predictor != QUICK_TABLE and r.nfe <= nfe + 1
    ]
    return min(candidates, key=lambda r: r.measures["rmse_ref"].value, default=None)


def all_compared(
    rows: list[Row], references: dict[float, Measured], predictor: str = CALIBRATED
) -> list[Compared]:
    """Compare a calibrated AMED solver with the best ComfyUI solver at each NFE, guidance and measure."""
    tables = [calibrated_row(rows, nfe, guidance, predictor) for guidance, nfe in cells(rows)]
    return [against_best(r, rows, m, references.get(r.entry.guidance)) for r in tables if r for m in SHORT]


def rank(values: list[float]) -> Tensor:
    """Return the rank of each value, 0 for the lowest."""
    return torch.tensor(values).argsort().argsort().double()


def agreement(rows: list[Row]) -> list[tuple[int, float, float]]:
    """Measure how well two Fréchet distances agree on the order of the solvers, as a check of the benchmark.

    One distance uses features of an image classifier, the other features of the demo model's U-Net. Returns
    (NFE, guidance, Spearman's rank correlation) for each NFE and guidance."""
    ranks = []
    for guidance, nfe in cells(rows):
        cell_rows = [r for r in rows if (r.entry.guidance, r.entry.cell) == (guidance, nfe)]
        a, b = (rank([r.measures[m].value for r in cell_rows]) for m in ("fd_ref", "fd_ref_unet"))
        ranks.append((nfe, guidance, float(torch.corrcoef(torch.stack([a, b]))[0, 1])))
    return ranks


def ahead_by(rows: list[Row], measure: str) -> int:
    """Count the (NFE, guidance) pairs where calibrated AMED beats all ComfyUI solvers in one measure."""
    count = 0
    for guidance, nfe in cells(rows):
        our_row, best = calibrated_row(rows, nfe, guidance), best_others(rows, nfe, guidance)[measure]
        count += our_row is not None and our_row.measures[measure].value < best.measures[measure].value
    return count
