"""A student's constants as one vector, and running the student for other values of them, from the middle
too."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .bottleneck import Denoiser
from .predictor import MultistepTable, Predictor, TablePredictor
from .sampling import MULTISTEP, Guide, Problem, Solver, State, begin, first_state, interval

CLOSEST = 0.05  # how close two times may come, in log sigma
RANGES = {  # finite-difference step, lowest, highest, furthest move at once; t, a, g are logs, r a logit
    "t": (0.04, -torch.inf, torch.inf, 0.5),
    "r": (0.1, -4.0, 4.0, 0.7),
    "c": (0.02, 0.5, 1.5, 0.2),
    "a": (0.04, -0.5, 0.5, 0.15),
    "g": (0.05, -1.5, 1.0, 0.3),
    "w": (0.04, -8.0, 8.0, 0.6),
}


@dataclass(frozen=True)
class Constant:
    """One number: `kind` (t, r, c, a, g, or w), of interval `n` (a weight's lag `k`). A run with another
    value differs from interval `start` on, after its first evaluation if `begun`. `step` for finite
    differences is wide on purpose: it survives half precision and models of 1000 timesteps, and some noises
    sit beside a point where the end state jumps, which a small step mistakes for a slope."""

    kind: str
    n: int
    start: int
    begun: bool
    k: int = 0
    step: float = 0.0
    low: float = -torch.inf
    high: float = torch.inf
    reach: float = torch.inf


def constant(kind: str, n: int, start: int, begun: bool, k: int = 0, step: float = torch.inf) -> Constant:
    own, low, high, reach = RANGES[kind]
    return Constant(kind, n, start, begun, k, min(own, step), low, high, reach)


class Form(Protocol):
    """Which constants of a student are fitted. `sigmas`: its times at the start."""

    solver: Solver
    afs: bool
    sigmas: Tensor
    constants: list[Constant]

    def vector(self) -> Tensor:
        """Their values at the start, float64 `[P]`."""

    def build(self, values: Tensor) -> tuple[Tensor, Predictor]:
        """The times and the predictor that `values` mean."""


class MultistepForm:
    """A multistep table's inner times, its weights on at most `lags` slopes, a, and with `guided` g.

    Its last time is not fitted: nothing is evaluated there, so moving it only scales the last weights."""

    def __init__(self, table: MultistepTable, afs: bool, lags: int | None = None, guided: bool = False):
        self.solver, self.afs, self.table, self.sigmas = Solver(MULTISTEP), afs, table, table.sigmas
        steps, width = table.weights.shape
        lags = min(lags or steps, steps)
        self.weights = torch.zeros(steps, max(lags, width), dtype=torch.float64)
        self.weights[:, :width] = table.weights  # those a start has beyond `lags` stay as they are
        evaluated = range(1 if afs else 0, steps)
        t = table.sigmas.tolist()
        self.constants = [constant("t", n, n - 1, True) for n in range(1, steps)]
        for n in range(steps):  # a step in a weight moves x_{n+1} by this share of its noise
            share = RANGES["w"][0] * max(t[n + 1], 0.1) / (t[n] - t[n + 1])
            self.constants += [constant("w", n, n, True, k, 1.5 * share) for k in range(min(n + 1, lags))]
        self.constants += [constant("a", n, n, False) for n in evaluated]
        self.constants += [constant("g", n, n, False) for n in evaluated if guided]

    def vector(self) -> Tensor:
        table = self.table
        source = {"t": self.sigmas.log(), "a": table.a.log(), "g": table.g.log()}
        return torch.stack(
            [self.weights[c.n, c.k] if c.kind == "w" else source[c.kind][c.n] for c in self.constants]
        )

    def build(self, values: Tensor) -> tuple[Tensor, MultistepTable]:
        weights = self.weights.clone()
        logs = {"t": self.sigmas.log(), "a": self.table.a.log(), "g": self.table.g.log()}
        for c, value in zip(self.constants, values):
            if c.kind == "w":
                weights[c.n, c.k] = value
            else:
                logs[c.kind][c.n] = value
        sigmas = logs["t"].exp()
        sigmas[[0, -1]] = self.sigmas[[0, -1]]
        return sigmas, MultistepTable(sigmas, weights, logs["a"].exp(), logs["g"].exp())


class TableForm:
    """AMED-Solver's or a plugin's inner base times, r, c and a."""

    def __init__(self, solver: Solver, sigmas: Tensor, table: TablePredictor, afs: bool):
        self.solver, self.afs, self.table, self.sigmas = solver, afs, table, sigmas
        count = len(sigmas) - 1
        self.constants = [constant("t", n, n - 1, True) for n in range(1, count)]
        self.constants += [constant(kind, n, n, True) for kind in "rca" for n in range(count)]

    def vector(self) -> Tensor:
        source = {
            "t": self.sigmas.log(),
            "r": self.table.logit_r.detach(),
            "c": self.table.c.detach(),
            "a": self.table.a.detach().log(),
        }
        return torch.stack([source[c.kind][c.n] for c in self.constants])

    def build(self, values: Tensor) -> tuple[Tensor, TablePredictor]:
        sigmas, count = self.sigmas.clone(), len(self.sigmas) - 1
        told = {kind: torch.zeros(count, dtype=torch.float64) for kind in "rca"}
        for c, value in zip(self.constants, values):
            if c.kind == "t":
                sigmas[c.n] = value.exp()
            else:
                told[c.kind][c.n] = value
        table = TablePredictor(sigmas, told["r"].sigmoid(), told["c"], told["a"].exp())
        return sigmas, table.requires_grad_(False)


def bounded(form: Form, start: Tensor, values: Tensor) -> Tensor:
    """`values`, but no further from `start` than each constant's reach, within its bounds, times in order."""

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(c, name) for c in form.constants], dtype=torch.float64)

    values = torch.maximum(torch.minimum(values, start + column("reach")), start - column("reach"))
    values = values.clamp(column("low"), column("high"))
    times = [i for i, c in enumerate(form.constants) if c.kind == "t"]
    values[times] = ordered(form.sigmas.log(), values[times])
    return values


def ordered(ends: Tensor, times: Tensor) -> Tensor:
    """Log `times` `[P]` kept falling, and at a distance, between the first and the last of `ends`."""
    first, last = float(ends[0]), float(ends[-1])
    close, times = min(CLOSEST, (first - last) / (2 * len(times) + 2)), times.clone()
    for i in range(len(times)):
        above = first if i == 0 else float(times[i - 1])
        times[i] = times[i].clamp(last + close * (len(times) - i), above - close)
    return times


@dataclass(frozen=True)
class Runner:
    """Runs a form's student on unit noise. `guide`: see amed.sampling.Guide."""

    model: Denoiser
    form: Form
    guide: Guide | None = None

    def _problem(self, values: Tensor, args: dict[str, Any], like: Tensor) -> tuple[Problem, Tensor]:
        sigmas, predictor = self.form.build(values)
        legs = self.form.solver.evaluations(len(sigmas), False, True)
        work = torch.promote_types(like.dtype, torch.float32)
        times = sigmas.to(like.device, work).view(-1, *[1] * like.ndim)
        problem = Problem(
            self.model, self.form.solver, predictor, args, total_legs=legs, dtype=like.dtype, guide=self.guide
        )
        return problem, times

    @torch.no_grad()
    def states(self, values: Tensor, noise: Tensor, args: dict[str, Any]) -> list[State]:
        """The state at each time: before every interval, its first evaluation made, and the end."""
        problem, times = self._problem(values, args, noise)
        states = [first_state(problem, noise.to(times.dtype) * times[0], times[0], self.form.afs)]
        for n in range(len(times) - 1):
            states[n] = begin(problem, states[n], times[n], self.form.afs and n == 0)
            states.append(interval(problem, states[n], times[n], times[n + 1]))
        return states

    @torch.no_grad()
    def end(self, values: Tensor, noise: Tensor, args: dict[str, Any]) -> Tensor:
        """The end state, from the first."""
        problem, times = self._problem(values, args, noise)
        state = first_state(problem, noise.to(times.dtype) * times[0], times[0], self.form.afs)
        for n in range(len(times) - 1):
            state = interval(problem, state, times[n], times[n + 1], self.form.afs and n == 0)
        return state.x

    @torch.no_grad()
    def again(
        self, values: Tensor, noise: Tensor, args: dict[str, Any], states: list[State], c: Constant
    ) -> Tensor:
        """The end state for `values` that differ from those of `states` only in the constant c."""
        problem, times = self._problem(values, args, noise)
        state = states[c.start] if c.begun else replace(states[c.start], begun=None)
        for n in range(c.start, len(times) - 1):
            state = interval(problem, state, times[n], times[n + 1], self.form.afs and n == 0)
        return state.x

    def evaluations(self) -> tuple[int, int]:
        """What one sample costs: a run, and a run with all derivatives."""
        form = self.form
        each = 1 if form.solver.name == MULTISTEP else 2
        intervals = len(form.sigmas) - 1
        run = each * intervals - form.afs
        derivatives = sum(
            each * (intervals - c.start) - (c.begun or (form.afs and c.start == 0)) for c in form.constants
        )
        return run, run + derivatives
