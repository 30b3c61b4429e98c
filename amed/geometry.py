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
    """Measure how flat each sample's trajectory is (Zhou et al. 2024, fig. 4), by PCA about its mean.

    Args:
        states: x at T times, `[T, n, ...]`.
        components: number of principal components to project on.

    Returns:
        The relative error |x - projected x| / |x|, `[T, n]`, and each component's share of the variance,
        `[n, T]`, largest first.

    Raises:
        ValueError: fewer times than components.
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
    """The first principal components of one trajectory."""

    mean: Tensor  # of the trajectory, float64 `[d]`
    axes: Tensor  # directions of the components, float64 `[k, d]`

    @classmethod
    def of(cls, states: Tensor, components: int = 2) -> "Plane":
        """Return the plane that is closest to a trajectory, by PCA.

        Args:
            states: x at T times, `[T, ...]`.
            components: number k of principal components that span it.

        Raises:
            ValueError: no more times than components.
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
        """Project states `[n, ...]` to the plane, and return their coordinates in it, `[n, k]`."""
        return (as_double(states).flatten(1) - self.mean) @ self.axes.T

    def lost(self, states: Tensor) -> Tensor:
        """Return the relative distance of states `[n, ...]` to the plane: |x - projected x| / |x|, `[n]`."""
        x = as_double(states).flatten(1)
        back = self.mean + self.project(states) @ self.axes
        lost: Tensor = (x - back).norm(dim=1) / x.norm(dim=1)
        return lost


@dataclass(frozen=True)
class Walk:
    """A recorded run of one sample: x at each noise level, and each step's weights on the slopes."""

    states: Tensor  # x at each of the N rows, and the end state; float32 on the CPU, `[N+1, ...]`
    table: Table  # the rows as they ran, with the numbers for this sample

    @property
    def times(self) -> list[float]:
        """The noise level of each of the recorded `states`."""
        return [*(float(row.sigma) for row in self.table.rows), self.table.end]

    def shares(self, predictor: Any = None, afs: bool = False) -> Tensor:
        """Return each step's weights on the slopes so far, newest first, as shares of the step's length.

        Args:
            predictor: the predictor of the run. For a Multistep its own weights are returned.
            afs: whether the first step was analytic.

        Returns:
            `[N, H, S]`: N steps, H slopes, and S parts that slopes are split into (1 except in a Multistep).
        """
        if isinstance(predictor, Multistep):
            return predictor.weights
        return shares_of(self.table, afs, ROUNDING)[..., None]


def walk(
    problem: Problem, solver: Solver, x: Tensor, sigmas: Tensor, predictor: Any = None, afs: bool = False
) -> Walk:
    """Run a solver on one sample, and return x at each noise level and the weights of each step.

    Args:
        problem: the model and its arguments.
        solver: the solver that runs.
        x: state `[1, ...]` at sigmas[0].
        sigmas: falling, positive noise levels.
        predictor: gives the solver's constants. Default: none, the plain solver.
        afs: whether the first step is analytic.
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
    """Yield the rows (steps) of a run and record them: when the loop computes a row's weights, a copy of the
    row with these weights as plain numbers is appended to `record`."""

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
