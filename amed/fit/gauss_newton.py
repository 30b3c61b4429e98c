"""The Gauss-Newton iteration that every fit uses: differences of end states, and a few damped trials.

An iteration minimises the robust error of the end states (samples.robust, Cauchy's loss) over a vector of P
constants. The loss enters as a weight of each sample, so the normal equations are those of weighted least
squares (Levenberg-Marquardt)."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..double import as_double
from .samples import per_sample

DAMPINGS = (5e-2, 5e-1, 5.0)  # tried in each iteration, in shares of the matrix's diagonal

T = TypeVar("T")


class NormalEquations:
    """The matrix J^T W J and the vector J^T W r of a Gauss-Newton iteration on P constants.

    They are `[P, P]` and `[P]`, float64 on the CPU. J: derivatives of the end states by the constants; W:
    weights of the samples by Cauchy's loss; r: end states minus those of converged runs. Batches of samples
    are added one by one, so memory holds P + 1 end states of one batch."""

    def __init__(self, size: int):
        self.matrix = torch.zeros(size, size, dtype=torch.float64)
        self.vector = torch.zeros(size, dtype=torch.float64)

    def add(self, name: str, end: Tensor, reference: Tensor, scale: float,
            moved: Iterable[tuple[Tensor, float]]) -> Iterator[str]:  # fmt: skip
        """Add a batch of samples to the matrix and the vector; yields a line of progress per derivative.

        Args:
            name: what is fitted, for the lines of progress.
            end: end states `[n, ...]` at the current constants.
            reference: end states `[n, ...]` to come near to.
            scale: mean squared error at which a sample's weight is 1/2, the scale of Cauchy's loss.
            moved: for each constant, the end states `[n, ...]` with a changed value of it, and the change.
        """
        weight = (1 / (1 + per_sample(end, reference) / scale)).sqrt().to(end)[:, None]
        residual = ((end - reference.to(end)).flatten(1) * weight).flatten()
        rows = []
        for moved_end, step in moved:
            rows.append(((moved_end - end).flatten(1) * weight / step).flatten())
            yield f"{name}: derivative {len(rows)} of {len(self.vector)}"
        jacobian = torch.stack(rows)
        self.matrix += as_double(jacobian @ jacobian.T)
        self.vector += as_double(jacobian @ residual)

    def step(self, damping: float, floor: float = 0.0) -> Tensor:
        """Solve the damped normal equations; return the step `[P]` to subtract from the constants.

        Args:
            damping: each diagonal element of the matrix is increased by this share of itself.
            floor: each is also increased by this share of the largest one, so that constants without
                effect do not move.
        """
        scales = self.matrix.diagonal()
        damped = self.matrix + torch.diag(damping * scales + floor * scales.max() + 1e-30)
        step: Tensor = torch.linalg.solve(damped, self.vector)
        return step

    def trials(
        self, name: str, attempt: Callable[[Tensor], tuple[float, T] | None],
        dampings: Sequence[float] = DAMPINGS, floor: float = 0.0,
    ) -> Generator[str, None, list[tuple[float, T]]]:  # fmt: skip
        """Try the Gauss-Newton step with each damping; yields a line of progress after each.

        Args:
            name: what is fitted, for the lines of progress.
            attempt: takes a step `[P]`; returns the loss and the constants after this step, or None if
                these are invalid.
            dampings: added to the matrix's diagonal, in shares of each element.
            floor: also added to it, in shares of the largest element.

        Returns:
            (loss, constants) of each valid step.
        """
        tried = []
        for damping in dampings:
            trial = attempt(self.step(damping, floor))
            if trial is not None:
                tried.append(trial)
                yield f"{name}: damping {damping:g}: {trial[0]:.4f}"
        return tried
