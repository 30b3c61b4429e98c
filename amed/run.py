"""What a run consists of: the rows of a solver or a predictor, and the loop over them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import schedules
from .coordinates import compiled, rows
from .known import fallback
from .loop import NotFiniteError, Problem, State, loop
from .parts import PARTS, Parts
from .recipes import Predictor, Solver
from .table import Row, Table

BEYOND = 1e30  # of a weight: float32 has room for what it makes of x


def rows_of(solver: Solver, times: list[float], predictor: Any = None, afs: bool = False,
            like: Tensor | None = None) -> Iterator[Row]:  # fmt: skip
    """The rows of a solver or student over `times`; without a table `multistep` is iPNDM-2."""
    if predictor is None or getattr(predictor, "fixed", False):
        return iter(placed(table_of(solver, tuple(times), predictor, afs).rows, like))
    return rows(solver, times, predictor, afs, like)


def placed(rows: Sequence[Row], like: Tensor | None) -> Sequence[Row]:
    """Rows whose offsets lie where x does, and broadcast over it: one copy, before the run.

    Raises ValueError for an x of other channels than the offsets."""
    if like is None or not any(row.offset is not None for row in rows):
        return rows
    offsets = torch.stack([row.offset for row in rows if row.offset is not None])
    if like.ndim < 3 or like.shape[1] != offsets.shape[1]:
        wrong = (
            f"this predictor was fitted for latents of {offsets.shape[1]} channels, not of {like.shape[1]}"
        )
        raise ValueError(f"{wrong}: use one that was fitted for this model")
    own = iter(offsets.to(like).view(len(offsets), -1, *[1] * (like.ndim - 2)))
    return [row if row.offset is None else replace(row, offset=next(own)) for row in rows]


@lru_cache(maxsize=32)
def table_of(solver: Solver, times: tuple[float, ...], predictor: Any = None, afs: bool = False) -> Table:
    """The table of a solver, or of a student whose constants are numbers; it is made once. Raises
    NotFiniteError for weights beyond float32."""
    made: Table
    if not solver.has_recipe and predictor is not None:
        made = predictor.table(list(times), afs)
    else:
        made = compiled(fallback(solver), list(times), predictor, afs)
    for row in made.rows:
        if not all(abs(w) < BEYOND for shares in row.weigh() for w in shares if not isinstance(w, Tensor)):
            raise NotFiniteError(f"the weights of the move from sigma={row.sigma:.5g} are beyond all bounds")
    return made


def parts_of(predictor: Any) -> Parts:
    return PARTS[getattr(predictor, "parts", "")]


def trajectory(problem: Problem, solver: Solver, x: Tensor, sigmas: Tensor, predictor: Predictor | Any = None,
               afs: bool = False) -> Iterator[State]:  # fmt: skip
    """The states of a run over `sigmas` `[n]` (falling; a last 0 means one more evaluation, whose output is
    the end), at each row and after each move. x `[B, ...]` at sigmas[0]. Works in float32 at least; the model
    is called in x's dtype.

    Raises ValueError for a list that cannot be sampled on, NotFiniteError if the model returns NaN."""
    times = schedules.checked(sigmas).tolist()
    problem = replace(problem, dtype=problem.dtype or x.dtype, parts=parts_of(predictor))
    state = State(x.to(torch.promote_types(x.dtype, torch.float32)))
    del x
    problem.parts.check(state.x)
    like = state.x[:0]
    return loop(problem, rows_of(solver, times, predictor, afs, like), state)


def states(problem: Problem, solver: Solver, x: Tensor, sigmas: Tensor, predictor: Any = None,
           afs: bool = False) -> Iterator[State]:  # fmt: skip
    """Of `trajectory`, the states at the end of each interval of `sigmas`."""
    run = trajectory(problem, solver, x, sigmas, predictor, afs)
    return (state for state in run if not state.looked and state.row.closes)
