"""Greedy constants for the paper's students: r, c and a interval by interval, against a teacher's states."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..constants import Constants
from ..loop import Denoiser, Evaluate, Problem, State, loop, plain
from ..parameters import PARAMETERS
from ..recipes import Solver, compiled
from ..table import Row
from .algorithm1 import Teacher

R = (0.1, 0.18, 0.26, 0.34, 0.42, 0.5, 0.6, 0.72)
A = (0.96, 1.04)
C_RANGE = (0.6, 1.4)  # for stability; the paper's range is 1 +- 0.01


@dataclass(frozen=True)
class Tried:
    """Constants of one interval, the median sample's error to the teacher with them, and where they lead."""

    error: float
    values: dict[str, float]
    end: State


@dataclass
class Interval:
    """One interval of a student whose constants are known before it: to be tried with several."""

    problem: Problem
    solver: Solver
    times: list[float]
    afs: bool
    before: list[dict[str, float]]
    state: State
    target: Tensor

    def rows(self, values: dict[str, float]) -> list[Row]:
        """Its rows, where every later interval has the usual constants."""
        given, count = [*self.before, values], len(self.times) - 1
        names = self.solver.recipe.constants
        usual = {name: PARAMETERS[name].default for name in names}
        given += [usual] * (count - len(given))
        lists = {name: torch.tensor([v.get(name, usual[name]) for v in given]).double() for name in names}
        constants = Constants(torch.tensor(self.times, dtype=torch.float64), names=names, **lists)
        rows = compiled(self.solver, self.times, constants, self.afs).rows
        lead, n = len(rows) - 2 * count, len(self.before)
        return [replace(row, needed=None) for row in rows[(lead + 2 * n if n else 0) : lead + 2 * n + 2]]

    def open(self) -> None:
        """Its first evaluation, which is the same whatever the constants."""
        rows = self.rows({})
        opened = self.state
        for state in loop(self.problem, rows, self.state):
            opened = state
            if state.looked and state.row.opens:
                break
        self.state = opened

    def trial(self, r: float, a: float = 1.0) -> Tried:
        """With the best c for this r and a: x is linear in c, x(c) = x(0) + c (x(1) - x(0)), and x(0) needs no
        further evaluation where the solver has two evaluations an interval and x(0) is its start."""
        values = {"r": r, "c": 1.0, "a": a}
        *_, end = loop(self.problem, self.rows(values)[-2:], self.state)
        if self.solver.recipe.pair:
            way = (end.x - self.state.x).flatten(1)
            c = 1 + ((self.target - end.x).flatten(1) * way).sum(1) / way.square().sum(1)
            values["c"] = float(c.median().clamp(*C_RANGE))
            end = replace(end, x=self.state.x + values["c"] * (end.x - self.state.x))
        error = float((end.x - self.target).square().flatten(1).mean(1).median())
        return Tried(error, values, end)


@torch.no_grad()
def greedy_table(
    model: Denoiser,
    solver: Solver,
    base: Tensor,
    noise: Tensor,
    args: dict[str, Any],
    afs: bool,
    extra: int = 2,
    evaluate: Evaluate = plain,
) -> Constants:
    """r by a grid and a parabola through its best three, c in closed form for each, then a by trying two others;
    each interval against a Heun teacher's state with `extra` points inside, by the median sample's error, so that
    a sample that jumps elsewhere does not decide. noise `[n, ...]` unit; base `[N]`."""
    shares = torch.linspace(0, 1, extra + 2, dtype=torch.float64)[:-1]
    fine = (base[:-1, None] ** (1 - shares) * base[1:, None] ** shares).flatten()
    x = noise * base[0].to(noise)
    targets = Teacher(Solver("heun"), extra).states(model, x, torch.cat([fine, base[-1:]]), args)
    problem, times = Problem(model, args, evaluate), base.tolist()
    state, found = State(x.to(torch.promote_types(x.dtype, torch.float32))), list[dict[str, float]]()
    for target in targets:
        interval = Interval(problem, solver, times, afs, found, state, target.to(state.x))
        interval.open()
        grid = [interval.trial(r) for r in R]
        best = min(grid, key=lambda tried: tried.error)
        i = grid.index(best)
        if 0 < i < len(grid) - 1:
            near = grid[i - 1 : i + 2]
            r = parabola([tried.values["r"] for tried in near], [tried.error for tried in near])
            best = min(best, interval.trial(r), key=lambda tried: tried.error)
        again = (interval.trial(best.values["r"], a) for a in A)
        best = min([best, *again], key=lambda tried: tried.error)
        found.append(best.values)
        state = State(target.to(state.x)) if solver.single_step else best.end
    lists = {name: torch.tensor([values[name] for values in found], dtype=torch.float64) for name in found[0]}
    return Constants(base, **lists)


def parabola(x: list[float], y: list[float]) -> float:
    """Where the parabola through three points is lowest; the middle one if it has no lowest point there."""
    (a, b, c), (fa, fb, fc) = x, y
    top = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    bottom = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    return b if abs(bottom) < 1e-12 else min(max(b - 0.5 * top / bottom, a), c)
