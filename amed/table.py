"""Rows and tables, the form that every solver is compiled to.

Every explicit solver does the same at each step: it evaluates the slope at the current x, keeps it, and moves
x along a weighted sum of the slopes so far. A `Row` is one such step. A `Table` holds all rows of a run
whose numbers are known in advance. Where a network decides, the rows are produced one by one, and their
weights are functions of the loop's State."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

Number = float | Tensor  # a Tensor is [B] or [1]: one number per sample
END = frozenset({"end"})  # what a row to the denoised image wants, see loop.Evaluate
# [slopes in hand, newest first][parts of a slope], multiplied by the length of the step
Weights = Sequence[Sequence[Number]]


@dataclass(eq=False, slots=True)
class Row:
    """One step of a run: an evaluation of the slope dx/dsigma, then a weighted sum of slopes moves x."""

    sigma: Number  # noise level at which x stands
    # weights of the move on the slopes in hand, newest first; or a function of the loop's State that returns
    # them after the evaluation. With `data` the first entry holds the weights of x and of the newest image
    weights: Weights | Callable[[Any], Weights]
    sigma_model: Number | None = None  # noise level that the model is given; None: sigma
    analytic: bool = False  # AFS: no evaluation; the slope is that of pure noise, x / sqrt(1 + sigma^2)
    # give the model another timestep only, and scale x to it as a VP model's input (`Constants.rescales`)
    rescaled: bool = False
    opens: bool = True  # the row begins an interval of the base schedule
    closes: bool = True  # the row's move ends an interval of the base schedule
    to_zero: bool = False  # the move ends at the denoised image, whatever the weights
    data: bool = False  # keep the denoised image instead of the slope: the solver predicts data
    wants: frozenset[str] = frozenset()  # additional outputs of the evaluation, see loop.Evaluate
    # for each slope in hand, oldest first, whether a later row weighs it; None: all are kept
    needed: tuple[bool, ...] | None = None
    offset: Tensor | None = None  # [C]: constant that the move adds to each channel; None: nothing

    def weigh(self, state: Any = None) -> Weights:
        """Return the weights by which this step adds slopes dx/dsigma to x.

        Args:
            state: the run's State (x and the results of its evaluations). Needed only if a network computes
                the weights from it during the run; weights that are known in advance do not use it."""
        return self.weights(state) if callable(self.weights) else self.weights


@dataclass(frozen=True)
class Table:
    """All steps of a run whose weights are known in advance, i.e. do not depend on the image."""

    rows: tuple[Row, ...]
    end: float  # noise level at which the last row ends; 0 for the denoised image
    parts: str = ""  # how a slope is split, a name of parts.PARTS; "": not at all

    @classmethod
    def of(cls, rows: Iterable[Row], end: float, parts: str = "") -> "Table":
        """Return a Table of a run's steps, with `Row.needed` set: which slopes the later steps still need.

        Args:
            rows: the steps.
            end: noise level at which the last step ends; 0 for the denoised image.
            parts: how slopes are split, e.g. "bands" (of frequency). Default: not at all."""
        rows = tuple(rows)
        used = [False] * len(rows)
        with_needed = []
        for number in range(len(rows) - 1, -1, -1):
            with_needed.append(replace(rows[number], needed=tuple(used[: number + 1])))
            for lag, weight in enumerate(rows[number].weigh()):
                used[number - lag] |= any(isinstance(w, Tensor) or w != 0 for w in weight)
        return cls(tuple(reversed(with_needed)), end, parts)

    @property
    def nfe(self) -> int:
        """The number of evaluations of the model in a run; an analytic first step has none."""
        return sum(not row.analytic for row in self.rows)


def beside(v: Number, x: Tensor) -> Number:
    """Return a number in the form in which it can multiply x `[B, ...]`: a Tensor `[B]` or `[1]` gets x's
    number of axes, dtype and device; a float stays a float."""
    return v.to(x).view(-1, *[1] * (x.ndim - 1)) if isinstance(v, Tensor) and v.ndim < x.ndim else v
