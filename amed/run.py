"""Runs: the rows of a solver, a table or a network, and the loop over them."""

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

LARGEST = 1e30  # of a weight: float32 holds its products with x


def rows_of(solver: Solver, times: list[float], predictor: Any = None, afs: bool = False,
            like: Tensor | None = None) -> Iterator[Row]:  # fmt: skip
    """Return the steps of a run, each with its noise level and the weights of the slopes that change x.

    Args:
        solver: the solver; "multistep" without a predictor is replaced by a plain solver, `known.fallback`.
        times: noise levels, falling; a last 0 is one more step.
        predictor: constants, weights for each step (Multistep), or a network; None for the plain solver.
        afs: whether the first step is analytic, i.e. without an evaluation of the model.
        like: a tensor with the dtype, device and channels of the run's x; None if no image is generated.

    Raises:
        ValueError: The predictor is for latents with another number of channels than `like`, or two noise
            levels are too close.
        NotFiniteError: A weight exceeds LARGEST."""
    if predictor is None or getattr(predictor, "fixed", False):
        return iter(offsets_on(table_of(solver, tuple(times), predictor, afs).rows, like))
    return rows(solver, times, predictor, afs, like)


def offsets_on(rows: Sequence[Row], like: Tensor | None) -> Sequence[Row]:
    """Return the steps of a run with their offsets (constants added to each channel of x) on x's device.

    Args:
        rows: the steps.
        like: `[B, C, ...]`, a tensor with the dtype, device and number of axes of x; None: change nothing.

    Raises:
        ValueError: `like` has another number of channels than the offsets."""
    if like is None or not any(row.offset is not None for row in rows):
        return rows
    offsets = torch.stack([row.offset for row in rows if row.offset is not None])
    if like.ndim < 3 or like.shape[1] != offsets.shape[1]:
        raise ValueError(
            f"this predictor was fitted for latents of {offsets.shape[1]} channels, but the latent has "
            f"{like.shape[1]}: use a predictor that was fitted for this model"
        )
    moved = iter(offsets.to(like).view(len(offsets), -1, *[1] * (like.ndim - 2)))
    return [row if row.offset is None else replace(row, offset=next(moved)) for row in rows]


@lru_cache(maxsize=32)
def table_of(solver: Solver, times: tuple[float, ...], predictor: Any = None, afs: bool = False) -> Table:
    """Return all steps of a run and their weights, as a Table. Cached.

    Args:
        solver: the solver.
        times: noise levels, falling; a last 0 is one more step.
        predictor: constants, or weights for each step (Multistep); None for the plain solver. A network is
            not allowed, because its weights depend on the image.
        afs: whether the first step is analytic, i.e. without an evaluation of the model.

    Raises:
        NotFiniteError: A weight exceeds LARGEST."""
    table: Table
    if not solver.has_recipe and predictor is not None:
        table = predictor.table(list(times), afs)
    else:
        table = compiled(fallback(solver), list(times), predictor, afs)
    for row in table.rows:
        if not all(abs(w) < LARGEST for shares in row.weigh() for w in shares if not isinstance(w, Tensor)):
            raise NotFiniteError(
                f"the weights of the step from sigma={row.sigma:.5g} exceed {LARGEST:g}, so the image would "
                "not be finite: choose other noise levels, or another predictor"
            )
    return table


def parts_of(predictor: Any) -> Parts:
    """Return the way in which a predictor splits the slope dx/dsigma into parts, e.g. frequency bands.

    Without a predictor the slope is not split."""
    return PARTS[getattr(predictor, "parts", "")]


def trajectory(problem: Problem, solver: Solver, x: Tensor, sigmas: Tensor, predictor: Predictor | Any = None,
               afs: bool = False) -> Iterator[State]:  # fmt: skip
    """Return the states of a run, two per step: after the evaluation of the model, and after the change of x.

    The run computes in float32 or better; the model is called in `problem.dtype`, by default x's dtype.

    Args:
        problem: the model and how it is called. The predictor replaces `problem.parts`, the way in which
            slopes are split.
        solver: the solver.
        x: `[B, ...]`, noisy at sigmas[0].
        sigmas: `[n]`, n >= 2, falling. A last 0 is one more evaluation, whose denoised image is the end.
        predictor: constants, weights for each step (Multistep), or a network; None for the plain solver.
        afs: whether the first step is analytic, i.e. without an evaluation of the model.

    Raises:
        ValueError: The noise levels do not fall, or the predictor does not fit x.
        NotFiniteError: A weight exceeds LARGEST, or the model returned NaN or infinity. The latter is not
            raised if `Problem.watch` is a list: then call `loop.check` after the run."""
    times = schedules.checked(sigmas).tolist()
    problem = replace(problem, dtype=problem.dtype or x.dtype, parts=parts_of(predictor))
    state = State(x.to(torch.promote_types(x.dtype, torch.float32)))
    del x
    problem.parts.check(state.x)
    like = state.x[:0]
    return loop(problem, rows_of(solver, times, predictor, afs, like), state)


def states(problem: Problem, solver: Solver, x: Tensor, sigmas: Tensor, predictor: Any = None,
           afs: bool = False) -> Iterator[State]:  # fmt: skip
    """Return the `State` (x and the slopes so far) at the end of each interval between the noise levels.

    The arguments are those of `trajectory`."""
    run = trajectory(problem, solver, x, sigmas, predictor, afs)
    return (state for state in run if not state.looked and state.row.closes)
