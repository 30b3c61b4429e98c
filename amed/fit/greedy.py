"""Initial constants r, c and a for the paper's students, fitted interval by interval to a teacher."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..constants import Constants
from ..coordinates import compiled
from ..loop import Denoiser, Problem, State, loop
from ..parameters import AMED, PARAMETERS
from ..recipes import Solver
from ..table import Row
from .algorithm1 import Teacher

R = (0.1, 0.18, 0.26, 0.34, 0.42, 0.5, 0.6, 0.72)  # grid of r
A = (0.96, 1.04)  # values of a that are tried besides 1
C_RANGE = (0.6, 1.4)  # for stability; the paper's range is 1 +- 0.01
Values = dict[str, float]  # constants of an interval by name


@dataclass(frozen=True)
class Interval:
    """One interval between two noise levels of a solver's schedule, to try several constants on it."""

    problem: Problem
    solver: Solver
    base: Tensor  # noise levels `[N]` of the schedule
    afs: bool  # whether the run's first step is analytic
    before: list[Values]  # constants of the earlier intervals
    state: State  # at the interval's first row
    target: Tensor  # the teacher's state `[n, ...]` at the interval's end

    def rows(self, values: Values) -> list[Row]:
        """Return the steps of this interval, one per evaluation, with the constants `values`.

        In the first interval an analytic first step precedes them if the run has one."""
        count, n = len(self.base) - 1, len(self.before)
        default = {name: PARAMETERS[name].default for name in self.solver.recipe.constants}
        given = [default | v for v in (*self.before, values, *[default] * (count - n - 1))]
        lists = {name: torch.tensor([v[name] for v in given], dtype=torch.float64) for name in default}
        constants = Constants(self.base, False, tuple(default), **lists)
        rows = compiled(self.solver, self.base.tolist(), constants, self.afs).rows
        lead = len(rows) - 2 * count
        return [replace(row, needed=None) for row in rows[(lead + 2 * n if n else 0) : lead + 2 * n + 2]]

    def opened(self) -> "Interval":
        """Make the interval's first evaluation, and return the interval with the state after it.

        It is made only once, because no constant that is tried changes its result."""
        run = loop(self.problem, self.rows({}), self.state)
        return replace(self, state=next(s for s in run if s.looked and s.row.opens))

    def trial(self, r: float, a: float = 1.0) -> tuple[float, Values, State]:
        """Return the median error, the constants and the end state of the interval with r, a and the best c.

        r places the middle evaluation, a scales the noise level that the model is given, c scales the
        direction. The error is the median sample's. The end state x is linear in c: x(c) = x(0) + c (x(1)
        - x(0)). In a solver of two evaluations per interval, x(0) is the interval's start, so the best c
        follows from one run; other solvers keep c = 1."""
        c = 1.0
        *_, end = loop(self.problem, self.rows({"r": r, "a": a})[-2:], self.state)
        if self.solver.recipe.pair:
            way = (end.x - self.state.x).flatten(1)
            best = 1 + ((self.target - end.x).flatten(1) * way).sum(1) / way.square().sum(1)
            c = float(best.median().clamp(*C_RANGE))
            end = replace(end, x=self.state.x + c * (end.x - self.state.x))
        error = float((end.x - self.target).square().flatten(1).mean(1).median())
        return error, {"r": r, "c": c, "a": a}, end


@torch.no_grad()
def greedy_table(
    model: Denoiser, solver: Solver, base: Tensor, noise: Tensor, args: dict[str, Any], afs: bool,
    extra: int = 2,
) -> Constants:  # fmt: skip
    """Return the constants r, c and a that bring each interval's end nearest to a Heun teacher's state.

    The intervals are fitted one after the other. r, which places the middle evaluation, is found on a grid
    and on the parabola through its best three points, with c, the scale of the direction, in closed form
    for each r. Then two other values of a, the scale of the noise level that the model is given, are
    tried. The median sample's error decides, so that samples that end in another image do not.

    Args:
        model: the denoiser.
        solver: the solver whose constants are fitted.
        base: noise levels `[N]` of the schedule; each interval goes from one to the next.
        noise: unit noise `[n, ...]`.
        args: further arguments of the model.
        afs: whether the first step is analytic.
        extra: additional noise levels of the teacher inside each interval.
    """
    shares = torch.linspace(0, 1, extra + 2, dtype=torch.float64)[:-1]
    fine = (base[:-1, None] ** (1 - shares) * base[1:, None] ** shares).flatten()
    x = noise * base[0].to(noise)
    targets = Teacher(Solver("heun"), extra).states(model, x, torch.cat([fine, base[-1:]]), args)
    state, constants = State(x.to(torch.promote_types(x.dtype, torch.float32))), list[Values]()
    for target in targets:
        target = target.to(state.x)
        interval = Interval(Problem(model, args), solver, base, afs, constants, state, target).opened()
        grid = [interval.trial(r) for r in R]
        best = min(grid, key=lambda trial: trial[0])
        i = grid.index(best)
        if 0 < i < len(grid) - 1:
            near = grid[i - 1 : i + 2]
            lowest = parabola([values["r"] for _, values, _ in near], [error for error, *_ in near])
            best = min(best, interval.trial(lowest), key=lambda trial: trial[0])
        others = [interval.trial(best[1]["r"], a) for a in A]
        _, values, end = min([best, *others], key=lambda trial: trial[0])
        constants.append(values)
        state = State(target) if solver.single_step else end
    lists = {name: torch.tensor([values[name] for values in constants], dtype=torch.float64) for name in AMED}
    return Constants(base, False, solver.recipe.constants, **lists)


def parabola(x: list[float], y: list[float]) -> float:
    """Return the x of the lowest point of the parabola through three points, limited to their range.

    Returns the middle x for points on a line."""
    (a, b, c), (fa, fb, fc) = x, y
    top = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    bottom = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    return b if abs(bottom) < 1e-12 else min(max(b - 0.5 * top / bottom, a), c)
