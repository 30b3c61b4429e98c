"""Search of the best mid time in each interval (Zhou et al. 2024, fig. 5)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amed.loop import Denoiser, Problem, State, loop
from amed.recipes import Solver
from amed.run import rows_of
from amed.table import Number, Row


@dataclass(frozen=True)
class BestR:
    """The best mid times r in N - 1 intervals between noise levels, for each of n samples.

    A mid time is where a solver evaluates the model within an interval, r = 0 being its start and 1 its end.
    The best one brings x nearest to a reference trajectory at the interval's end, by root mean square."""

    r: Tensor  # [N-1, n], the r that ends nearest to the reference
    best: Tensor  # [N-1, n], its distance
    half: Tensor  # [N-1, n], the distance of r = 1/2

    @property
    def alignment(self) -> Tensor:
        """The share of the distance to the reference at mid time r = 1/2 that the best r removes, `[N-1]`."""
        return 1 - (self.best.square().mean(1) / self.half.square().mean(1)).sqrt()

    @property
    def spread(self) -> Tensor:
        """The standard deviation of each interval's best mid time r between the samples, `[N-1]`."""
        return self.r.std(dim=1)


class GivenR:
    """A predictor of AMED-Plugin that returns given mid times r, and 1 for AMED's scales c and a.

    `r` is a list with one entry per interval: a float, or a tensor with a value for each sample."""

    wants_bottleneck = False

    def __init__(self, r: list[Number]):
        self.given, self.fixed = r, not any(isinstance(v, Tensor) for v in r)
        self.remaining = iter(r)

    def __call__(self, t: float, t_next: float, bottleneck: Tensor | None = None) -> tuple[Number, ...]:
        return next(self.remaining), 1.0, 1.0


def chosen_rows(solver: Solver, times: list[float], r: list[Number], like: Tensor) -> list[Row]:
    """Return the constants of an AMED-Plugin solver with given mid times r, one Row for each evaluation.

    `times` are the noise levels between which the mid times lie."""
    rows = []
    for row in rows_of(solver, times, GivenR(r), False, like):
        weights = row.weights(None) if callable(row.weights) else row.weights
        rows.append(replace(row, weights=weights, needed=None))
    return rows


@torch.no_grad()
def best_r(
    model: Denoiser,
    solver: Solver,
    sigmas: Tensor,
    reference: list[Tensor],
    extra_args: dict[str, Any] | None = None,
    grid: Tensor | None = None,
    done: Callable[[int], None] = lambda interval: None,
) -> BestR:
    """Search the best mid time r in each interval between noise levels, from the first interval to the last.

    The mid time, r = 0 at the start of an interval and 1 at its end, is where the solver evaluates the model
    within it. The best r brings x closest to a reference trajectory at the end of the interval. A single-step
    solver starts each interval on the reference, a multistep solver where its last interval ended.

    Args:
        model: the denoiser.
        solver: the solver to search r for.
        sigmas: noise levels `[N]`, the ends of the intervals.
        reference: x of the reference trajectory at each of these levels, N tensors `[n, ...]`.
        extra_args: keyword arguments for `model`.
        grid: values of r to try, which must include 1/2; default 0.05 to 0.95 in steps of 0.05.
        done: called with the index of each finished interval, to show progress.

    Raises ValueError for a grid without 1/2, or if `reference` and `sigmas` differ in length."""
    grid = torch.linspace(0.05, 0.95, 19, dtype=torch.float64) if grid is None else grid
    half = int((grid - 0.5).abs().argmin())
    if abs(float(grid[half]) - 0.5) > 1e-9:
        raise ValueError("the mid times in `grid` must include 0.5, the plain solver's value: add it")
    if len(reference) != len(sigmas):
        raise ValueError(
            f"the reference has {len(reference)} states for {len(sigmas)} times: give one state per time"
        )
    problem, times = Problem(model, extra_args or {}), sigmas.tolist()
    state, chosen_r, intervals = State(reference[0].float()), list[Number](), []
    like = state.x.new_empty(0)
    for n in range(len(times) - 1):
        if solver.single_step:
            state, chosen_r = State(reference[n].float()), [0.5] * n

        def remaining_rows(r: Number, n: int = n, before: tuple = tuple(chosen_r)) -> list[Row]:
            rows = chosen_rows(solver, times, [*before, r, *[0.5] * (len(times) - 2 - n)], like)
            offset = len(rows) - 2 * (len(times) - 1)
            return rows[(offset + 2 * n if n else 0) : offset + 2 * n + 2]

        opened = next(s for s in loop(problem, remaining_rows(0.5), state) if s.looked and s.row.opens)
        target, ends = reference[n + 1].float(), []
        for r in grid.tolist():
            *_, end = loop(problem, remaining_rows(r)[-2:], opened)
            ends.append((end.x - target).square().flatten(1).mean(1).sqrt())
        errors = torch.stack(ends)
        best, index = errors.min(dim=0)
        intervals.append((grid[index], best.double(), errors[half].double()))
        if not solver.single_step:
            chosen_r.append(grid[index])
            *_, state = loop(problem, remaining_rows(grid[index])[-2:], opened)
        done(n)
    return BestR(*(torch.stack(v) for v in zip(*intervals)))
