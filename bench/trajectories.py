"""The best mid times, one by one (Zhou et al. 2024, fig. 5)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amed.loop import Denoiser, Problem, State, loop, rows_of
from amed.recipes import Solver
from amed.table import Number, Row


@dataclass(frozen=True)
class BestR:
    """Greedy search of the mid time (fig. 5), for each of N-1 intervals and n samples: `r` `[N-1, n]` that
    ends nearest to the reference, its distance `best` and that of r = 1/2, `half`, root mean square over
    x."""

    r: Tensor
    best: Tensor
    half: Tensor

    @property
    def alignment(self) -> Tensor:
        """Share of the distance at r = 1/2 that the best r takes away, over all samples, `[N-1]`."""
        return 1 - (self.best.square().mean(1) / self.half.square().mean(1)).sqrt()

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the best r over the samples, `[N-1]`."""
        return self.r.std(dim=1)


class Chosen:
    """A predictor of r, c = a = 1: for each interval in order a number, or a Tensor of each sample's own."""

    wants_bottleneck = False

    def __init__(self, r: list[Number]):
        self.given, self.fixed = r, not any(isinstance(v, Tensor) for v in r)
        self.left = iter(r)

    def __call__(self, t: float, t_next: float, bottleneck: Tensor | None = None) -> tuple[Number, ...]:
        return next(self.left), 1.0, 1.0


def chosen_rows(solver: Solver, times: list[float], r: list[Number], like: Tensor) -> list[Row]:
    """The rows of a plugin over `times` with these mid times, all of them at once."""
    rows = []
    for row in rows_of(solver, times, Chosen(r), False, like):
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
    """Greedy grid search of r in each interval of `sigmas` `[N]`, c = a = 1. reference: the N states `[n,
    ...]` of a fine trajectory at these times. A single-step solver starts every interval at the reference,
    a multistep one goes on from its own best states, with its history. grid: values of r, 1/2 among them;
    default 0.05 to 0.95.

    Raises ValueError for a grid without 1/2 or a reference of another length."""
    grid = torch.linspace(0.05, 0.95, 19, dtype=torch.float64) if grid is None else grid
    half = int((grid - 0.5).abs().argmin())
    if abs(float(grid[half]) - 0.5) > 1e-9:
        raise ValueError("the grid of r must have 1/2")
    if len(reference) != len(sigmas):
        raise ValueError(f"{len(sigmas)} times need as many reference states, got {len(reference)}")
    problem, times = Problem(model, extra_args or {}), sigmas.tolist()
    state, chosen, intervals = State(reference[0].float()), list[Number](), []
    like = state.x.new_empty(0)
    for n in range(len(times) - 1):
        if solver.single_step:
            state, chosen = State(reference[n].float()), [0.5] * n

        def rest(r: Number, n: int = n, before: tuple = tuple(chosen)) -> list[Row]:
            own = chosen_rows(solver, times, [*before, r, *[0.5] * (len(times) - 2 - n)], like)
            lead = len(own) - 2 * (len(times) - 1)
            return own[(lead + 2 * n if n else 0) : lead + 2 * n + 2]

        opened = next(s for s in loop(problem, rest(0.5), state) if s.looked and s.row.opens)
        target, ends = reference[n + 1].float(), []
        for r in grid.tolist():
            *_, end = loop(problem, rest(r)[-2:], opened)
            ends.append((end.x - target).square().flatten(1).mean(1).sqrt())
        errors = torch.stack(ends)
        best, index = errors.min(dim=0)
        intervals.append((grid[index], best.double(), errors[half].double()))
        if not solver.single_step:
            chosen.append(grid[index])
            *_, state = loop(problem, rest(grid[index])[-2:], opened)
        done(n)
    return BestR(*(torch.stack(v) for v in zip(*intervals)))
