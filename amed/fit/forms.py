"""A student's constants as one vector, and running the student for other values of them, from the middle too."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..constants import Constants, Multistep
from ..loop import Denoiser, Evaluate, Problem, State, loop, parts_of, plain
from ..parameters import PARAMETERS
from ..recipes import MULTISTEP, Solver, compiled
from ..table import Row, Table

CLOSEST = 0.05  # how close two times may come, in log sigma


@dataclass(frozen=True)
class Constant:
    """One number: `kind` (a name of PARAMETERS), of interval `n` (a weight's lag `k` and part `s`). A run with
    another value differs from row `start` on, after its evaluation if `looked`. step: of finite differences."""

    kind: str
    n: int
    start: int
    looked: bool = True
    k: int = 0
    s: int = 0
    step: float = 0.0


def constant(
    kind: str, n: int, start: int, looked: bool = True, k: int = 0, s: int = 0, step: float = torch.inf
):
    return Constant(kind, n, start, looked, k, s, min(PARAMETERS[kind].step, step))


class Form(Protocol):
    """Which constants of a student are fitted. `sigmas`: its times at the start."""

    solver: Solver
    afs: bool
    sigmas: Tensor
    constants: list[Constant]

    def vector(self) -> Tensor:
        """Their values at the start, float64 `[P]`."""

    def build(self, values: Tensor) -> Multistep | Constants:
        """The predictor that `values` mean; its `sigmas` are the times."""

    def table(self, values: Tensor) -> Table:
        """What runs."""


class MultistepForm:
    """A multistep student's inner times, its weights on at most `lags` slopes, and a.

    Its last time is not fitted: nothing is evaluated there, so moving it only scales the last weights."""

    def __init__(self, start: Multistep, afs: bool, lags: int | None = None):
        self.solver, self.afs, self.start, self.sigmas = Solver(MULTISTEP), afs, start, start.sigmas
        steps, width, parts = start.weights.shape
        lags = min(lags or steps, steps)
        self.weights = torch.zeros(steps, max(lags, width), parts, dtype=torch.float64)
        self.weights[:, :width] = start.weights  # those a start has beyond `lags` stay as they are
        lead = int(start.before_first() and not afs)  # its table begins with the analytic slope
        t, w = start.sigmas.tolist(), PARAMETERS["w"].step
        self.constants = [constant("t", n, n - 1 + lead) for n in range(1, steps)]
        for n in range(steps):  # a step in a weight moves x_{n+1} by this share of its noise
            share = 1.5 * w * max(t[n + 1], 0.1) / (t[n] - t[n + 1])
            self.constants += [
                constant("w", n, n + lead, True, k, s, share)
                for k in range(min(n + 1, lags))
                for s in range(parts)
            ]
        self.constants += [constant("a", n, n + lead, False) for n in range(1 if afs else 0, steps)]

    def vector(self) -> Tensor:
        source = {"t": self.sigmas.log(), "a": self.start.a.log()}
        return torch.stack(
            [self.weights[c.n, c.k, c.s] if c.kind == "w" else source[c.kind][c.n] for c in self.constants]
        )

    def build(self, values: Tensor) -> Multistep:
        weights = self.weights.clone()
        logs = {"t": self.sigmas.log(), "a": self.start.a.log()}
        for c, value in zip(self.constants, values):
            if c.kind == "w":
                weights[c.n, c.k, c.s] = value
            else:
                logs[c.kind][c.n] = value
        sigmas = logs["t"].exp()
        sigmas[[0, -1]] = self.sigmas[[0, -1]]
        return Multistep(sigmas, weights, logs["a"].exp(), self.start.parts)

    def table(self, values: Tensor) -> Table:
        return self.build(values).table(None, self.afs)


class StudentForm:
    """AMED-Solver's or a plugin's inner base times, and its recipe's constants of each interval."""

    def __init__(self, solver: Solver, start: Constants, afs: bool):
        self.solver, self.afs, self.start, self.sigmas = solver, afs, start, start.sigmas
        count = len(self.sigmas) - 1
        rows = compiled(solver, self.sigmas.tolist(), start, afs).rows
        lead = len(rows) - 2 * count
        self.constants = [constant("t", n, 2 * (n - 1) + lead) for n in range(1, count)]
        self.constants += [constant(kind, n, 2 * n + lead) for kind in start.names for n in range(count)]

    def vector(self) -> Tensor:
        return torch.stack(
            [
                PARAMETERS[c.kind].fitted(
                    self.sigmas[c.n] if c.kind == "t" else self.start.values[c.kind][c.n]
                )
                for c in self.constants
            ]
        )

    def build(self, values: Tensor) -> Constants:
        sigmas = self.sigmas.clone()
        lists = {name: value.clone() for name, value in self.start.values.items()}
        for c, value in zip(self.constants, values):
            (sigmas if c.kind == "t" else lists[c.kind])[c.n] = PARAMETERS[c.kind].value(value)
        return Constants(sigmas, self.start.rescales, self.start.names, **lists)

    def table(self, values: Tensor) -> Table:
        built = self.build(values)
        return compiled(self.solver, built.sigmas.tolist(), built, self.afs)


def bounded(form: Form, start: Tensor, values: Tensor) -> Tensor:
    """`values`, but no further from `start` than each constant's reach, within its bounds, times in order."""

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(PARAMETERS[c.kind], name) for c in form.constants], dtype=torch.float64)

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
    """Runs a form's student on unit noise."""

    model: Denoiser
    form: Form
    evaluate: Evaluate = plain

    def _run(
        self, values: Tensor, noise: Tensor, args: dict[str, Any], state: State | None = None
    ) -> Iterator[State]:
        """From the start, or from a state: every slope is kept, for other values may weigh it."""
        rows: list[Row] = [replace(row, needed=None) for row in self.form.table(values).rows]
        if state is None:
            state = State(noise.to(torch.promote_types(noise.dtype, torch.float32)) * rows[0].sigma)
        parts = parts_of(self.form.build(values))
        problem = Problem(self.model, args, self.evaluate, noise.dtype, parts)
        return loop(problem, rows[state.number :], state)

    @torch.no_grad()
    def states(self, values: Tensor, noise: Tensor, args: dict[str, Any]) -> list[State]:
        """The state at each row, looked at, and the end."""
        run = list(self._run(values, noise, args))
        return [*(state for state in run if state.looked), run[-1]]

    @torch.no_grad()
    def end(self, values: Tensor, noise: Tensor, args: dict[str, Any]) -> Tensor:
        """The end state, from the first."""
        state = State(noise)
        for state in self._run(values, noise, args):  # noqa: B007 (the last is wanted)
            pass
        return state.x

    @torch.no_grad()
    def again(
        self, values: Tensor, noise: Tensor, args: dict[str, Any], states: list[State], c: Constant
    ) -> Tensor:
        """The end state for `values` that differ from those of `states` only in the constant c."""
        state = states[c.start]
        if not c.looked:
            state = replace(state, slopes=state.slopes[:-1], looked=False)
        for state in self._run(values, noise, args, state):  # noqa: B007 (the last is wanted)
            pass
        return state.x

    def evaluations(self) -> tuple[int, int]:
        """What one sample costs: a run, and a run with all derivatives."""
        counts = [not row.analytic for row in self.form.table(self.form.vector()).rows]
        run = sum(counts)
        return run, run + sum(sum(counts[c.start + c.looked :]) for c in self.form.constants)
