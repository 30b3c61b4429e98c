"""Comparisons of the calibrated tables with the best other solvers, and of two sets of features."""

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
        """AMED's value over ComfyUI's, with its 90 % interval, as text, e.g. "0.50 (0.40 to 0.60)"."""
        if self.ratio is None:
            return "none: the other is no further from the data than the reference"
        return f"{self.ratio:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})"


def above_reference(measured: Measured, measure: str, reference: Measured | None) -> tuple[float, Tensor]:
    """Return a measured value and its bootstrap resamples.

    For "fd_data", the Fréchet distance to the data, the reference's own value is subtracted if given."""
    if measure != "fd_data" or reference is None:
        return measured.value, measured.resampled
    return measured.value - reference.value, measured.resampled - reference.resampled


def against_best(our_row: Row, rows: list[Row], measure: str, reference: Measured | None = None) -> Compared:
    """Compare an AMED solver with the best ComfyUI solver of as many network passes, at the same guidance.

    The interval of the ratio is that of the ratios in each bootstrap resample of the noises; the resamples
    are the same for both solvers."""
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
    """Return the result of the calibrated AMED solver with the lowest error at the cost of `nfe` evaluations.

    With guidance an evaluation costs two network passes, or one if it skips the negative prompt. So a solver
    of `nfe` + 1 evaluations costs the same if two of them skip it. None if no such solver was measured."""
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
    """Return the rank of each value, from 0."""
    return torch.tensor(values).argsort().argsort().double()


def agreement(rows: list[Row]) -> list[tuple[int, float, float]]:
    """Compare the ranks of the solvers by two Fréchet distances, on classifier and on U-Net features.

    Returns (NFE, guidance, Spearman's rank correlation) for each NFE and guidance."""
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
