"""What runs: rows. A solver is a table of them (DESIGN: every explicit solver looks at the slope where it
stands, keeps it, and moves x along a weighted sum of the slopes it has).

A Table is a run whose numbers are all known beforehand: `recipes.compiled` makes one of any solver. Where a
network decides, the rows come one by one instead, their weights a function of what was seen
(`Row.weights`)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

Number = float | Tensor  # a Tensor is [B or 1]: a number of each sample's own
END = frozenset({"end"})  # what a row to the denoised image asks for, see loop.Evaluate
# [slopes in hand, newest first][parts of a slope], the step length folded in
Weights = Sequence[Sequence[Number]]


@dataclass(eq=False, slots=True)
class Row:
    """One look at the slope, and one move.

    sigma: the noise level x stands at. weights: of the move on the slopes in hand, newest first, or a
    function of the loop's State that gives them once the row was looked at. sigma_model: the level the model
    is told (a sigma), None for sigma itself. analytic: no evaluation; the slope is x / sqrt(1 + sigma^2),
    that of pure noise (AFS). rescaled: only the timestep of a VP model is told otherwise, its own input stays
    what it is. opens, closes: an interval of the base schedule begins here, ends with this move. to_zero: the
    move ends in the denoised image. wants: what is asked of the evaluation besides, see loop.Evaluation.
    needed: which of the slopes in hand, oldest first, later rows weigh (None: all). data: what is kept is not
    the slope but the denoised image (of which a solver that predicts data needs few); weights are of x and
    the newest image, then of the older ones. offset: a constant that the move adds to each channel, `[C]`. A
    row is not changed once it was given away."""

    sigma: Number
    weights: Weights | Callable[[Any], Weights]
    sigma_model: Number | None = None
    analytic: bool = False
    rescaled: bool = False
    opens: bool = True
    closes: bool = True
    to_zero: bool = False
    data: bool = False
    wants: frozenset[str] = frozenset()
    needed: tuple[bool, ...] | None = None
    offset: Tensor | None = None

    def weigh(self, state: Any = None) -> Weights:
        """The weights, asked for with a State where they depend on it."""
        return self.weights(state) if callable(self.weights) else self.weights


@dataclass(frozen=True)
class Table:
    """Rows with numbers, found by their number, and the noise level the last one ends at (0 for the
    image)."""

    rows: tuple[Row, ...]
    end: float
    parts: str = ""  # how a slope is split, a name of parts.PARTS

    @classmethod
    def of(cls, rows: Iterable[Row], end: float, parts: str = "") -> "Table":
        """With what each row needs kept written on it."""
        rows = tuple(rows)
        used = [False] * len(rows)
        kept = []
        for number in range(len(rows) - 1, -1, -1):
            kept.append(replace(rows[number], needed=tuple(used[: number + 1])))
            for lag, weight in enumerate(rows[number].weigh()):
                used[number - lag] |= any(isinstance(w, Tensor) or w != 0 for w in weight)
        return cls(tuple(reversed(kept)), end, parts)

    @property
    def nfe(self) -> int:
        """Evaluations, one after the other."""
        return sum(not row.analytic for row in self.rows)


def beside(v: Number, x: Tensor) -> Number:
    """A number of each sample's own, as it multiplies x."""
    return v.to(x).view(-1, *[1] * (x.ndim - 1)) if isinstance(v, Tensor) and v.ndim < x.ndim else v
