"""The last fit: a damped Gauss-Newton (Levenberg-Marquardt) iteration on all constants at once, on the image
at the end.

Also tried, on the demo model, and left out: Broyden's updates of the Jacobian (their second step seldom
lowered the error), gradients through the trajectory (noises whose image jumps dominate them), plain least
squares instead of Cauchy's, an analytic residual in a feature space (no gain), joint fits from tables of
plain solvers (at 2,500 evaluations they often lost to where they began, at 12,000 they came to the same place
later)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..loop import Denoiser, State
from .gauss_newton import NormalEquations
from .parametrisation import Parametrisation, Runner
from .samples import Samples, per_sample, robust

DAMPINGS = (1e-5, 1e-3, 1e-2, 1e-1)  # smaller than elsewhere: the matrix is of several iterations
FLOOR = 1e-9  # see NormalEquations.step
FORGET = 0.9  # what an iteration's matrix still counts for in the next
PATIENCE = 6  # iterations without a better held-out error before the fit stops


@dataclass
class Fit:
    """One fit under way: its parametrisation, current values, the matrix J^T W J of all iterations (older
    ones count less), and the best state by held-out score, with its end states."""

    name: str
    parametrisation: Parametrisation
    values: Tensor
    matrix: Tensor | None = None
    iterations: int = 0
    recent: list[Tensor] = field(default_factory=list)
    best: Tensor | None = None
    end: Tensor | None = None
    held_out: float = math.inf
    waited: int = 0

    @classmethod
    def at(cls, name: str, parametrisation: Parametrisation) -> "Fit":
        return cls(name, parametrisation, parametrisation.vector())

    def judged(self, values: Tensor, end: Tensor, score: float) -> None:
        """Remember values if their end states score better than any before."""
        self.waited += 1
        if score < self.held_out:
            self.best, self.end, self.held_out, self.waited = values.clone(), end, score, 0

    def iterate(self, model: Denoiser, samples: Samples, batch: int, scale: float) -> Iterator[str]:
        """Derivatives on the samples, and the best of the dampings.

        The finite differences of the first iteration are twice as wide."""
        runner, wide = Runner(model, self.parametrisation), 1 if self.iterations else 2
        batches, constants = list(samples.batches(batch)), self.parametrisation.constants
        equations = NormalEquations(len(constants))

        def moved(part: Samples, states: list[State]) -> Iterator[tuple[Tensor, float]]:
            for i, c in enumerate(constants):
                values = self.values.clone()
                values[i] += wide * c.step
                yield runner.again(values, part.noise, part.args, states, c), wide * c.step

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
