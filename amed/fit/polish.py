"""The joint fit: Gauss-Newton iterations on all constants of a student at once, on the end state.

Tried on the demo model and left out: Broyden's updates of the Jacobian (their second step seldom lowered the
error), gradients through the trajectory (dominated by noises whose image jumps), plain least squares instead
of Cauchy's loss, residuals in a feature space (no gain), joint fits from the tables of plain solvers (at
2,500 evaluations often worse than their start, at 12,000 no better than from tables in closed form)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..loop import Denoiser, State
from .gauss_newton import NormalEquations
from .parametrisation import Parametrisation, Runner
from .samples import Samples, per_sample, robust

DAMPINGS = (1e-5, 1e-3, 1e-2, 1e-1)  # smaller than in gauss_newton: the matrix is of several iterations
FLOOR = 1e-9  # see NormalEquations.step
FORGET = 0.9  # weight of an iteration's matrix in the next one
PATIENCE = 6  # iterations without a better held-out score before the fit stops


@dataclass
class Fit:
    """The state of a fit that moves all constants of a solver at once."""

    name: str  # for people
    parametrisation: Parametrisation
    values: Tensor  # current constants, float64 `[P]`
    matrix: Tensor | None = None  # J^T W J `[P, P]` of all iterations, older ones at less weight
    iterations: int = 0
    recent: list[Tensor] = field(default_factory=list)  # constants after each iteration
    best: Tensor | None = None  # constants with the best held-out score
    end: Tensor | None = None  # their end states on the held-out samples
    held_out: float = math.inf  # their score; lower is better
    waited: int = 0  # times `judged` was called since

    @classmethod
    def at(cls, name: str, parametrisation: Parametrisation) -> "Fit":
        """Return a fit that starts from the initial constants of `parametrisation`."""
        return cls(name, parametrisation, parametrisation.vector())

    def judged(self, values: Tensor, end: Tensor, score: float) -> None:
        """Record the held-out score of the constants `values`.

        If it is the best so far, the constants and their held-out end states are stored as the fit's
        result."""
        self.waited += 1
        if score < self.held_out:
            self.best, self.end, self.held_out, self.waited = values.clone(), end, score, 0

    def iterate(self, model: Denoiser, samples: Samples, batch: int, scale: float) -> Iterator[str]:
        """Run one Gauss-Newton iteration on all constants, and take the best of its damped steps.

        Yields lines of progress. The finite differences of the first iteration are twice as wide.

        Args:
            model: the denoiser.
            samples: to fit to.
            batch: most samples in one call of the model.
            scale: scale of Cauchy's loss, a mean squared error.
        """
        runner, wide = Runner(model, self.parametrisation), 1 if self.iterations else 2
        batches, constants = list(samples.batches(batch)), self.parametrisation.constants
        equations = NormalEquations(len(constants))

        def moved(part: Samples, states: list[State]) -> Iterator[tuple[Tensor, float]]:
            for i, constant in enumerate(constants):
                values = self.values.clone()
                values[i] += wide * constant.step
                yield runner.rerun(values, part.noise, part.args, states, constant), wide * constant.step

        def attempt(step: Tensor) -> tuple[float, Tensor]:
            values = self.parametrisation.bounded(self.values, self.values - step)
            errors = [per_sample(runner.end(values, p.noise, p.args), p.end) for p in batches]
            return robust(torch.cat(errors), scale), values

        for part in batches:
            states = runner.states(self.values, part.noise, part.args)
            yield from equations.add(self.name, states[-1].x, part.end, scale, moved(part, states))
        if self.matrix is not None:
            equations.matrix = FORGET * self.matrix + equations.matrix
        self.matrix = equations.matrix
        tried = yield from equations.trials(self.name, attempt, DAMPINGS, FLOOR)
        self.values = min(tried, key=lambda trial: trial[0])[1]
        self.recent.append(self.values)
        self.iterations += 1
