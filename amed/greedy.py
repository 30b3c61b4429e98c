"""Greedy tables for the paper's students: r, c and a interval by interval, against a teacher's states."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .bottleneck import Denoiser
from .predictor import TablePredictor
from .sampling import TWO_POINT, Problem, Solver, State, begin, interval
from .training import SINGLE_STEP, Teacher

R = (0.1, 0.18, 0.26, 0.34, 0.42, 0.5, 0.6, 0.72)
A = (0.96, 1.04)
C_RANGE = (0.6, 1.4)  # for stability; the paper's range is 1 +- 0.01


@torch.no_grad()
def greedy_table(
    model: Denoiser,
    solver: Solver,
    base: Tensor,
    noise: Tensor,
    args: dict[str, Any],
    afs: bool,
    extra: int = 2,
) -> TablePredictor:
    """r by a grid and a parabola through its best three, c in closed form for each (the step is linear in c),
    then a by trying two others; each interval against a Heun teacher's state with `extra` points inside, by
    the median sample's error, so that a sample that jumps elsewhere does not decide. noise `[n, ...]` unit;
    base `[N]`."""
    teacher = Teacher(Solver("heun"), extra)
    shares = torch.linspace(0, 1, extra + 2, dtype=torch.float64)[:-1]
    fine = torch.cat(
        [
            base[:-1, None] ** (1 - shares) * base[1:, None] ** shares,
        ],
        dim=1,
    ).flatten()
    fine = torch.cat([fine, base[-1:]])
    x = noise * base[0].to(noise)
    targets = teacher.states(model, x, fine, args)
    times = base.to(noise.device, torch.promote_types(noise.dtype, torch.float32)).view(-1, *[1] * noise.ndim)
    legs = 2 * (len(base) - 1)
    state, found = State(x.to(times)), []
    for n, target in enumerate(targets):
        opened = begin(
            Problem(model, solver, total_legs=legs, extra_args=args), state, times[n], afs and n == 0
        )

        def tried(r: float, a: float, opened: State = opened, n: int = n, target: Tensor = target):
            """(error, r, c, a, next state), c the best for this r and a."""

            def run(c: float) -> State:
                table = TablePredictor(base[n : n + 2], [r], [c], [a])
                return interval(
                    Problem(model, solver, table, args, total_legs=legs), opened, times[n], times[n + 1]
                )

            one = run(1.0)
            # x is linear in c: x(c) = x(1) + (c - 1) (x(1) - x(0)), and for c on the last leg's direction
            # x(1) - x(0) needs no further evaluation only for the two-point solvers
            if solver.name in TWO_POINT:
                along = (one.x - opened.x).flatten(1)
                c = 1 + ((target.to(one.x) - one.x).flatten(1) * along).sum(1) / along.square().sum(1)
                c = float(c.median().clamp(*C_RANGE))
                one = replace(one, x=opened.x + c * (one.x - opened.x))
            else:
                c = 1.0
            error = float((one.x - target.to(one.x)).square().flatten(1).mean(1).median())
            return error, r, c, a, one

        grid = [tried(r, 1.0) for r in R]
        best = min(grid, key=lambda g: g[0])
        i = grid.index(best)
        if 0 < i < len(grid) - 1:
            best = min(
                best,
                tried(
                    parabola(
                        [grid[j][1] for j in (i - 1, i, i + 1)], [grid[j][0] for j in (i - 1, i, i + 1)]
                    ),
                    1.0,
                ),
                key=lambda g: g[0],
            )
        best = min([best, *(tried(best[1], a) for a in A)], key=lambda g: g[0])
        found.append(best[1:4])
        state = State(target.to(times)) if solver.name in SINGLE_STEP else best[4]
    r, c, a = (torch.tensor(v, dtype=torch.float64) for v in zip(*found))
    return TablePredictor(base, r, c, a).requires_grad_(False)


def parabola(x: list[float], y: list[float]) -> float:
    """Where the parabola through three points is lowest; the middle one if it has no lowest point there."""
    (a, b, c), (fa, fb, fc) = x, y
    top = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    bottom = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    return b if abs(bottom) < 1e-12 else min(max(b - 0.5 * top / bottom, a), c)
