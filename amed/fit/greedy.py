"""Greedy constants for the paper's students: r, c and a interval by interval, against a teacher's states."""

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

R = (0.1, 0.18, 0.26, 0.34, 0.42, 0.5, 0.6, 0.72)
A = (0.96, 1.04)
C_RANGE = (0.6, 1.4)  # for stability; the paper's range is 1 +- 0.01
Values = dict[str, float]


@dataclass(frozen=True)
class Interval:
    """One interval of a student whose constants are known before it, to be tried with several: `state` at its
    first row, `target` the teacher's state at its end."""

    problem: Problem
    solver: Solver
    base: Tensor
    afs: bool
    before: list[Values]
    state: State
    target: Tensor

    def rows(self, values: Values) -> list[Row]:
        """Its rows (and the analytic one before the first); every later interval has the usual constants."""
        count, n = len(self.base) - 1, len(self.before)
        usual = {name: PARAMETERS[name].default for name in self.solver.recipe.constants}
        given = [usual | v for v in (*self.before, values, *[usual] * (count - n - 1))]
        lists = {name: torch.tensor([v[name] for v in given], dtype=torch.float64) for name in usual}
        constants = Constants(self.base, False, tuple(usual), **lists)
        rows = compiled(self.solver, self.base.tolist(), constants, self.afs).rows
        lead = len(rows) - 2 * count
        return [replace(row, needed=None) for row in rows[(lead + 2 * n if n else 0) : lead + 2 * n + 2]]

    def opened(self) -> "Interval":
        """After its first evaluation, which is the same whatever the constants."""
        run = loop(self.problem, self.rows({}), self.state)
        return replace(self, state=next(s for s in run if s.looked and s.row.opens))

    def tried(self, r: float, a: float = 1.0) -> tuple[float, Values, State]:
        """The median sample's error, the constants and where they lead, with the best c for this r and a: x
        is linear in c, x(c) = x(0) + c (x(1) - x(0)), and a solver of two evaluations an interval has its
        start as x(0)."""
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
    """r by a grid and a parabola through its best three, c in closed form for each, then a by trying two
    others; each interval against a Heun teacher's state with `extra` points inside, by the median sample's
    error, so that a sample that jumps elsewhere does not decide. noise `[n, ...]` unit; base `[N]`."""
    shares = torch.linspace(0, 1, extra + 2, dtype=torch.float64)[:-1]
    fine = (base[:-1, None] ** (1 - shares) * base[1:, None] ** shares).flatten()
    x = noise * base[0].to(noise)
    targets = Teacher(Solver("heun"), extra).states(model, x, torch.cat([fine, base[-1:]]), args)
    state, known = State(x.to(torch.promote_types(x.dtype, torch.float32))), list[Values]()
    for target in targets:
        target = target.to(state.x)
        interval = Interval(Problem(model, args), solver, base, afs, known, state, target).opened()
        grid = [interval.tried(r) for r in R]
        best = min(grid, key=lambda tried: tried[0])
        i = grid.index(best)
        if 0 < i < len(grid) - 1:
            near = grid[i - 1 : i + 2]
            lowest = parabola([values["r"] for _, values, _ in near], [error for error, *_ in near])
            best = min(best, interval.tried(lowest), key=lambda tried: tried[0])
        again = [interval.tried(best[1]["r"], a) for a in A]
        _, values, end = min([best, *again], key=lambda tried: tried[0])
        known.append(values)
        state = State(target) if solver.single_step else end
    lists = {name: torch.tensor([values[name] for values in known], dtype=torch.float64) for name in AMED}
    return Constants(base, False, solver.recipe.constants, **lists)


def parabola(x: list[float], y: list[float]) -> float:
    """Where the parabola through three points is lowest; the middle one if it has no lowest point there."""
    (a, b, c), (fa, fb, fc) = x, y
    top = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    bottom = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    return b if abs(bottom) < 1e-12 else min(max(b - 0.5 * top / bottom, a), c)
