"""The plane that a trajectory stays close to (Zhou et al. 2024, fig. 4), and the path that a solver takes.

plane = Plane.of(walk(problem, Solver("ipndm", 3), x, fine_sigmas).states)
points = plane.project(walk(problem, solver, x, sigmas, predictor).states)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .constants import Multistep, shares_of
from .double import as_double
from .loop import Problem, State, loop
from .recipes import Solver
from .run import parts_of, rows_of
from .table import Row, Table

ROUNDING = 1e-5  # a weight below this is rounding: networks compute in float32


def trajectory_pca(states: Tensor, components: int = 2) -> tuple[Tensor, Tensor]:
    """Measure by PCA how close each sample's sampling trajectory is to a plane (Zhou et al. 2024, fig. 4).

    Args:
        states: x of n samples at T noise levels, `[T, n, ...]`.
        components: number of principal components to project on.

    Returns:
        The relative error |x - p| / |x|, where p is x projected on the sample's first `components` principal
        components, `[T, n]`, and each component's share of the variance, `[n, T]`, largest first.

    Raises:
        ValueError: there are fewer noise levels than components.
    """
    if len(states) < components:
        raise ValueError(
            f"{components} principal components need a run over at least {components} noise levels, not "
            f"{len(states)}: use more evaluations"
        )
    x = as_double(states).flatten(2).transpose(0, 1)  # [n, T, d]
    centred = x - x.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.mT)  # of the Gram matrix: T is small, d is not
    values, vectors = values.clamp(min=0).flip(-1), vectors.flip(-1)
    left = vectors[..., components:]
    lost = (left.square() * values[:, None, components:]).sum(-1).sqrt()
    return (lost / x.norm(dim=-1)).T, values / values.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Plane:
    """The plane through the first principal components of one sampling trajectory."""

    mean: Tensor  # of the trajectory, float64 `[d]`
    axes: Tensor  # directions of the components, float64 `[k, d]`

    @classmethod
    def of(cls, states: Tensor, components: int = 2) -> "Plane":
        """Return the plane that is closest to a trajectory, by PCA.

        Args:
            states: x of one sample at T noise levels, `[T, ...]`.
            components: number of principal components that span the plane.

        Raises:
            ValueError: there are not more noise levels than components.
        """
        if len(states) <= components:
            raise ValueError(
                f"{components} principal components need a run over more than {components} noise levels, not "
                f"{len(states)}: use more evaluations"
            )
        x = as_double(states).flatten(1)
        mean = x.mean(dim=0)
        values, vectors = torch.linalg.eigh((x - mean) @ (x - mean).T)
        values, vectors = values.flip(-1)[:components], vectors.flip(-1)[:, :components]
        return cls(mean, (vectors / values.clamp(min=1e-300).sqrt()).T @ (x - mean))

    def project(self, states: Tensor) -> Tensor:
        """Project n states (values of x, `[n, ...]`) on this plane of a trajectory's first k principal
        components, and return their coordinates in it, `[n, k]`."""
        return (as_double(states).flatten(1) - self.mean) @ self.axes.T

    def lost(self, states: Tensor) -> Tensor:
        """Return the relative distance of n states (values of x, `[n, ...]`) to this plane of a trajectory's
        first principal components: |x - p| / |x|, where p is the point of the plane closest to x, `[n]`."""
        x = as_double(states).flatten(1)
        back = self.mean + self.project(states) @ self.axes
        lost: Tensor = (x - back).norm(dim=1) / x.norm(dim=1)
        return lost


@dataclass(frozen=True)
class Walk:
    """A recorded run of one sample: x at each noise level, and the weights by which each step added slopes
    (dx/dsigma) to x."""

    states: Tensor  # x at each of the N rows, and the end state; float32 on the CPU, `[N+1, ...]`
    table: Table  # the rows as they ran, with the numbers for this sample

    @property
    def times(self) -> list[float]:
        """The noise level of each recorded x."""
        return [*(float(row.sigma) for row in self.table.rows), self.table.end]

    def shares(self, predictor: Any = None, afs: bool = False) -> Tensor:
        """Return each step's weights on the slopes (dx/dsigma) of this and earlier steps, newest first,
        relative to the step's length in sigma.

        Args:
            predictor: the predictor of the run. If it is a Multistep, its fitted weights are returned.
            afs: whether the first step used an analytic slope, without an evaluation.

        Returns:
            `[N, H, S]`, for N steps and H slopes; S is 1, or for a Multistep that splits slopes, e.g. into
            frequency bands, the number of terms.
        """
        if isinstance(predictor, Multistep):
            return predictor.weights
        return shares_of(self.table, afs, ROUNDING)[..., None]


def walk(
    problem: Problem, solver: Solver, x: Tensor, sigmas: Tensor, predictor: Any = None, afs: bool = False
) -> Walk:
    """Run a solver on one sample, and record x at each noise level and the weights of each step.

    Args:
        problem: the model and its arguments.
        solver: the solver to run.
        x: `[1, ...]`, noisy at sigmas[0].
        sigmas: falling, positive noise levels.
        predictor: gives the solver's fitted constants. Default: none, the plain solver.
        afs: whether the first step uses an analytic slope, without an evaluation.
    """
    times = sigmas.tolist()
    problem = replace(problem, dtype=problem.dtype or x.dtype, parts=parts_of(predictor))
    like = x[:0]
    rows, states = list[Row](), list[Tensor]()
    run = rows_of(solver, times, predictor, afs, like)
    for state in loop(problem, recorded(run, rows), State(x)):
        if state.looked:
            states.append(state.x.float().cpu())
    states.append(state.x.float().cpu())
    moving = [n for n, row in enumerate(rows) if row.opens or not row.analytic]  # a lead row moves nothing
    table = Table(tuple(rows[n] for n in moving), times[-1])
    return Walk(torch.cat([*(states[n] for n in moving), states[-1]]), table)


def recorded(rows: Iterable[Row], record: list[Row]) -> Iterator[Row]:
    """Yield the steps of a run. When the loop computes the weights of a step, a copy of the step with these
    weights as plain numbers is appended to the list `record`."""

    def recording(row: Row) -> Any:
        def weigh(state: Any) -> Any:
            weights = row.weigh(state)
            numbers = tuple(tuple(float(w) for w in share) for share in weights)
            sigma_model = None if row.sigma_model is None else float(row.sigma_model)
            record.append(replace(row, sigma=float(row.sigma), sigma_model=sigma_model, weights=numbers))
            return weights

        return weigh

    for row in rows:
        yield replace(row, weights=recording(row))
