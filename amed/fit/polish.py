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

from ..double import as_double
from ..loop import Denoiser
from .parametrisation import Parametrisation, Runner
from .samples import Samples, per_sample, robust

DAMPINGS = (1e-5, 1e-3, 1e-2, 1e-1)
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

    def step(self, vector: Tensor, damping: float) -> Tensor:
        """Where J^T W r = `vector` leads, damped along each constant's own scale."""
        matrix = torch.zeros(len(vector), len(vector)) if self.matrix is None else self.matrix
        scales = matrix.diagonal()
        damped = matrix + torch.diag(damping * scales + 1e-9 * scales.max() + 1e-30)
        return self.parametrisation.bounded(self.values, self.values - torch.linalg.solve(damped, vector))

    def iterate(self, model: Denoiser, samples: Samples, batch: int, scale: float) -> Iterator[str]:
        """Derivatives on the samples, and the best of the dampings.

        The normal equations are streamed: memory holds P + 1 end states of one batch. The finite differences
        of the first iteration are twice as wide."""
        runner, wide = Runner(model, self.parametrisation), 1 if self.iterations else 2
        parts, size = list(samples.batches(batch)), len(self.values)
        matrix, vector = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for part in parts:
            states = runner.states(self.values, part.noise, part.args)
            end = states[-1].x
            weight = (1 / (1 + per_sample(end, part.end) / scale)).sqrt().to(end)[:, None]  # Cauchy's
            rows = []
            for i, c in enumerate(self.parametrisation.constants):
                moved = self.values.clone()
                moved[i] += wide * c.step
                change = runner.again(moved, part.noise, part.args, states, c) - end
                rows.append((change.flatten(1) * weight / (wide * c.step)).flatten())
                if i % 4 == 0:
                    yield f"{self.name}: derivative {i + 1} of {size}"
            jacobian = torch.stack(rows)
            residual = ((end - part.end.to(end)).flatten(1) * weight).flatten()
            matrix += as_double(jacobian @ jacobian.T)
            vector += as_double(jacobian @ residual)
        self.matrix = matrix if self.matrix is None else FORGET * self.matrix + matrix
        tried = []
        for damping in DAMPINGS:
            values = self.step(vector, damping)
            errors = [per_sample(runner.end(values, p.noise, p.args), p.end) for p in parts]
            tried.append((robust(torch.cat(errors), scale), values))
            yield f"{self.name}: damping {damping:g}"
        self.values = min(tried, key=lambda t: t[0])[1]
        self.recent.append(self.values)
        self.iterations += 1
