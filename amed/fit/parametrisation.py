"""The fitted constants of a student as one vector, and runs of the student for other values of them."""

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

CLOSEST = 0.05  # least distance of two times, in log sigma


@dataclass(frozen=True)
class Constant:
    """One fitted constant of a solver, an element of the vector that a fit moves."""

    kind: str  # a name of PARAMETERS
    n: int  # interval; for a noise level, its index in the schedule
    start: int  # first row that the constant changes
    looked: bool = True  # whether that row's evaluation comes before the change
    k: int = 0  # lag of the slope that a weight is on, 0 for the newest
    s: int = 0  # part of the slope that a weight is on
    step: float = 0.0  # of finite differences, in fitted units

    @property
    def parameter(self) -> Parameter:
        """The properties of this kind of constant: finite-difference step, bounds and transform."""
        return PARAMETERS[self.kind]


class Parametrisation:
    """The fitted constants of a solver as one vector, and the conversion between them.

    The vector holds the noise levels between the first and the last. For a multistep solver the weights on
    at most `lags` slopes and a (the scale of the noise level that the model is given) follow, for another
    solver its constants (e.g. r, c, a) in each interval. The last noise level is not fitted, since the
    model is not evaluated there. If slopes are split into bands of spatial frequency, one element of the
    vector moves the weights of all bands of a slope by the same amount, which saves evaluations.

    Args:
        solver: the solver whose constants are fitted.
        start: its initial constants.
        afs: whether the first step is analytic.
        lags: in each step of a multistep solver, the weights on this many newest slopes are fitted; None:
            all.
    """

    def __init__(self, solver: Solver, start: Multistep | Constants, afs: bool, lags: int | None = None):
        self.solver, self.start, self.afs, self.sigmas = solver, start, afs, start.sigmas
        count = len(self.sigmas) - 1
        rows = self.table(start).rows
        each = solver.each(learned=True)
        lead = len(rows) - each * count  # its table may begin with the analytic slope
        self.lists = {"t": self.sigmas, **{k: v for k, v in start.values.items() if k in PARAMETERS}}
        fields = [("t", n, each * (n - 1) + lead, True, 0, 0) for n in range(1, count)]
        if isinstance(start, Multistep):
            width, parts = start.weights.shape[1:]
            levels = PARTS[start.parts].levels or (0,) * parts
            self.bands = [[s for s in range(f, parts) if s - f == levels[s]] for f in range(parts)]
            lags = min(lags or count, count)
            self.lists["w"] = torch.zeros(count, max(lags, width), parts, dtype=torch.float64)
            self.lists["w"][:, :width] = start.weights  # weights on more than `lags` slopes are not fitted
            fields += [
                ("w", n, n + lead, True, k, s)
                for n in range(count)
                for k in range(min(n + 1, lags))
                for s in range(parts)
                if levels[s] == 0
            ]
            fields += [("a", n, n + lead, False, 0, 0) for n in range(1 if afs else 0, count)]
        else:
            fields += [(name, n, 2 * n + lead, True, 0, 0) for name in start.names for n in range(count)]
        self.constants = [Constant(*f, step=self.step(*f[:2])) for f in fields]

    def step(self, kind: str, n: int) -> float:
        """Return the change of a constant in interval n for a finite difference, in the unit of the fit.

        `kind`: the constant's name in PARAMETERS. The unit is e.g. the log of a noise level."""
        step = PARAMETERS[kind].step
        if kind != "w":
            return step
        t, t_next = self.sigmas[n : n + 2].tolist()  # a weight's step moves x_{n+1} by this share
        return float(min(step, 1.5 * step * max(t_next, 0.1) / (t - t_next)))

    def vector(self) -> Tensor:
        """Return the initial constants in the fit's units (e.g. log noise levels), float64 `[P]`."""
        values = [(c, self.lists[c.kind][c.n]) for c in self.constants]
        return torch.stack([c.parameter.fitted(v[c.k, c.s] if c.kind == "w" else v) for c, v in values])

    def build(self, values: Tensor) -> Multistep | Constants:
        """Return the predictor with the constants `values` `[P]`, the noise levels (`sigmas`) included."""
        lists = {name: value.clone() for name, value in self.lists.items()}
        for c, value in zip(self.constants, values):
            if c.kind == "w":
                weights = lists["w"][c.n, c.k]
                weights[self.bands[c.s]] += c.parameter.value(value) - weights[c.s]
            else:
                lists[c.kind][c.n] = c.parameter.value(value)
        sigmas, start = lists.pop("t"), self.start
        if isinstance(start, Multistep):
            return Multistep(sigmas, lists["w"], lists["a"], start.parts, start.offset, start.alone)
        return Constants(sigmas, start.rescales, start.names, **lists)

    def table(self, predictor: Multistep | Constants) -> Table:
        """Return the steps of a solver run with the constants of `predictor`, one per evaluation."""
        if isinstance(predictor, Multistep):
            return predictor.table(None, self.afs)
        return compiled(self.solver, predictor.sigmas.tolist(), predictor, self.afs)

    def bounded(self, start: Tensor, values: Tensor) -> Tensor:
        """Return the constants `values` `[P]`, limited to their bounds and to a largest change from `start`.

        The noise levels stay in falling order."""
        limits = [(c.parameter.reach, c.parameter.low, c.parameter.high) for c in self.constants]
        reach, low, high = torch.tensor(limits, dtype=torch.float64).T
        values = torch.maximum(torch.minimum(values, start + reach), start - reach).clamp(low, high)
        times = [i for i, c in enumerate(self.constants) if c.kind == "t"]
        values[times] = ordered(self.sigmas.log(), values[times])
        return values


def ordered(ends: Tensor, times: Tensor) -> Tensor:
    """Return log noise levels `times` `[P]`, changed to fall between the first and last value of `ends`.

    The distance of neighbours is at least CLOSEST, or less if there is no room for it."""
    first, last = float(ends[0]), float(ends[-1])
    close, times = min(CLOSEST, (first - last) / (2 * len(times) + 2)), times.clone()
    for i in range(len(times)):
        above = first if i == 0 else float(times[i - 1])
        times[i] = times[i].clamp(last + close * (len(times) - i), above - close)
    return times


@dataclass(frozen=True)
class Runner:
    """Runs a solver from unit noise, each time with other constants."""

    model: Denoiser
    parametrisation: Parametrisation
    evaluate: Evaluate = denoised_only  # how the model is called

    def _run(
        self, values: Tensor, noise: Tensor, args: dict[str, Any], state: State | None
    ) -> Iterator[State]:
        """Run the solver from `noise`, or from `state` in the middle of a run, and yield its states.

        All slopes are stored, since a later run with other constants may start in the middle and need
        them."""
        predictor = self.parametrisation.build(values)
        rows = [replace(row, needed=None) for row in self.parametrisation.table(predictor).rows]
        state = state or State(noise.to(torch.promote_types(noise.dtype, torch.float32)) * rows[0].sigma)
        rows = list(offsets_on(rows, state.x))
        problem = Problem(self.model, args, self.evaluate, noise.dtype, parts_of(predictor))
        return loop(problem, rows[state.number :], state)

    @torch.no_grad()
    def states(self, values: Tensor, noise: Tensor, args: dict[str, Any]) -> list[State]:
        """Return a solver run's state after each evaluation (or analytic first step), and its end state."""
        run = list(self._run(values, noise, args, None))
        return [*(state for state in run if state.looked), run[-1]]

    @torch.no_grad()
    def end(self, values: Tensor, noise: Tensor, args: dict[str, Any], state: State | None = None) -> Tensor:
        """Run the solver with the constants `values`, and return the end states `[n, ...]`.

        It starts from `noise`, or from `state`, a state in the middle of an earlier run."""
        return deque(self._run(values, noise, args, state), maxlen=1)[0].x

    def rerun(self, values: Tensor, noise: Tensor, args: dict[str, Any], states: list[State],
              constant: Constant) -> Tensor:  # fmt: skip
        """Return the end states for constants that differ from an earlier run's in `constant` alone.

        The run starts at the first step that this constant changes, from the earlier run's `states`."""
        state = states[constant.start]
        if not constant.looked:
            state = replace(state, slopes=state.slopes[:-1], looked=False)
        return self.end(values, noise, args, state)

    def evaluations(self) -> tuple[int, int]:
        """Return the evaluations per sample of a run, and of a run with its finite differences.

        The finite differences are those of the end state by each constant."""
        student = self.parametrisation
        counts = [not row.analytic for row in student.table(student.start).rows]
        run = sum(counts)
        return run, run + sum(sum(counts[c.start + c.looked :]) for c in student.constants)
