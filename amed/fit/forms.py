"""A student's constants as one vector, and running the student for other values of them, from the middle
too."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..constants import Constants, Multistep
from ..coordinates import compiled
from ..loop import Denoiser, Evaluate, Problem, State, denoised_only, loop
from ..parameters import PARAMETERS, Parameter
from ..parts import PARTS
from ..recipes import Solver
from ..run import offsets_on, parts_of
from ..table import Table

CLOSEST = 0.05  # how close two times may come, in log sigma


@dataclass(frozen=True)
class Constant:
    """One number: `kind` (a name of PARAMETERS), of interval `n` (a weight's lag `k` and part `s`). A run
    with another value differs from row `start` on, after its evaluation if `looked`. step: of finite
    differences."""

    kind: str
    n: int
    start: int
    looked: bool = True
    k: int = 0
    s: int = 0
    step: float = 0.0

    @property
    def parameter(self) -> Parameter:
        return PARAMETERS[self.kind]


class Form:
    """Which constants of a student are fitted: inner times, and weights on at most `lags` slopes and a
    (multistep), or a recipe's constants of each interval. The last time is not: nothing is evaluated there.
    The weights of a slope's bands move together: there are too many of them for finite differences.

    sigmas: its times at the start."""

    def __init__(self, solver: Solver, start: Multistep | Constants, afs: bool, lags: int | None = None):
        self.solver, self.start, self.afs, self.sigmas = solver, start, afs, start.sigmas
        count = len(self.sigmas) - 1
        rows = self.run_of(start).rows
        each = solver.each(learned=True)
        lead = len(rows) - each * count  # its table may begin with the analytic slope
        self.lists = {"t": self.sigmas, **{k: v for k, v in start.values.items() if k in PARAMETERS}}
        made = [("t", n, each * (n - 1) + lead, True, 0, 0) for n in range(1, count)]
        if isinstance(start, Multistep):
            width, parts = start.weights.shape[1:]
            levels = PARTS[start.parts].levels or (0,) * parts
            self.bands = [[s for s in range(f, parts) if s - f == levels[s]] for f in range(parts)]
            lags = min(lags or count, count)
            self.lists["w"] = torch.zeros(count, max(lags, width), parts, dtype=torch.float64)
            self.lists["w"][:, :width] = start.weights  # those a start has beyond `lags` stay as they are
            made += [
                ("w", n, n + lead, True, k, s)
                for n in range(count)
                for k in range(min(n + 1, lags))
                for s in range(parts)
                if levels[s] == 0
            ]
            made += [("a", n, n + lead, False, 0, 0) for n in range(1 if afs else 0, count)]
        else:
            made += [(name, n, 2 * n + lead, True, 0, 0) for name in start.names for n in range(count)]
        self.constants = [Constant(*one, step=self.step(*one[:2])) for one in made]

    def step(self, kind: str, n: int) -> float:
        step = PARAMETERS[kind].step
        if kind != "w":
            return step
        t, t_next = self.sigmas[n : n + 2].tolist()  # a weight's step moves x_{n+1} by this share
        return float(min(step, 1.5 * step * max(t_next, 0.1) / (t - t_next)))

    def vector(self) -> Tensor:
        """The constants at the start, as they are fitted, float64 `[P]`."""
        values = [(c, self.lists[c.kind][c.n]) for c in self.constants]
        return torch.stack([c.parameter.fitted(v[c.k, c.s] if c.kind == "w" else v) for c, v in values])

    def build(self, values: Tensor) -> Multistep | Constants:
        """The predictor that `values` mean; its `sigmas` are the times."""
        lists = {name: value.clone() for name, value in self.lists.items()}
        for c, value in zip(self.constants, values):
            if c.kind == "w":
                own = lists["w"][c.n, c.k]
                own[self.bands[c.s]] += c.parameter.value(value) - own[c.s]
            else:
                lists[c.kind][c.n] = c.parameter.value(value)
        sigmas, start = lists.pop("t"), self.start
        if isinstance(start, Multistep):
            return Multistep(sigmas, lists["w"], lists["a"], start.parts, start.offset, start.alone)
        return Constants(sigmas, start.rescales, start.names, **lists)

    def run_of(self, predictor: Multistep | Constants) -> Table:
        if isinstance(predictor, Multistep):
            return predictor.table(None, self.afs)
        return compiled(self.solver, predictor.sigmas.tolist(), predictor, self.afs)

    def bounded(self, start: Tensor, values: Tensor) -> Tensor:
        """`values`, but no further from `start` than each constant's reach, within its bounds, times in
        order."""
        limits = [(c.parameter.reach, c.parameter.low, c.parameter.high) for c in self.constants]
        reach, low, high = torch.tensor(limits, dtype=torch.float64).T
        values = torch.maximum(torch.minimum(values, start + reach), start - reach).clamp(low, high)
        times = [i for i, c in enumerate(self.constants) if c.kind == "t"]
        values[times] = ordered(self.sigmas.log(), values[times])
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
    evaluate: Evaluate = denoised_only

    def _run(
        self, values: Tensor, noise: Tensor, args: dict[str, Any], state: State | None
    ) -> Iterator[State]:
        """From the start, or from a state: every slope is kept, for other values may weigh it."""
        predictor = self.form.build(values)
        rows = [replace(row, needed=None) for row in self.form.run_of(predictor).rows]
        state = state or State(noise.to(torch.promote_types(noise.dtype, torch.float32)) * rows[0].sigma)
        rows = list(offsets_on(rows, state.x))
        problem = Problem(self.model, args, self.evaluate, noise.dtype, parts_of(predictor))
        return loop(problem, rows[state.number :], state)

    @torch.no_grad()
    def states(self, values: Tensor, noise: Tensor, args: dict[str, Any]) -> list[State]:
        """The state at each row, looked at, and the end."""
        run = list(self._run(values, noise, args, None))
        return [*(state for state in run if state.looked), run[-1]]

    @torch.no_grad()
    def end(self, values: Tensor, noise: Tensor, args: dict[str, Any], state: State | None = None) -> Tensor:
        """The end state, from the first or another."""
        return deque(self._run(values, noise, args, state), maxlen=1)[0].x

    def again(self, values: Tensor, noise: Tensor, args: dict[str, Any], states: list[State],
              c: Constant) -> Tensor:  # fmt: skip
        """The end state for `values` that differ from those of `states` only in the constant c."""
        state = states[c.start]
        if not c.looked:
            state = replace(state, slopes=state.slopes[:-1], looked=False)
        return self.end(values, noise, args, state)

    def evaluations(self) -> tuple[int, int]:
        """What one sample costs: a run, and a run with all derivatives."""
        counts = [not row.analytic for row in self.form.run_of(self.form.start).rows]
        run = sum(counts)
        return run, run + sum(sum(counts[c.start + c.looked :]) for c in self.form.constants)
