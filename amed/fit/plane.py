"""The plane a trajectory keeps to (Zhou et al. 2024, fig. 4), and what a solver does on its way.

plane = Plane.of(walk(problem, Solver("ipndm", 3), x, many).states)
points = plane.project(walk(problem, solver, x, sigmas, predictor).states)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..constants import Multistep, shares_of
from ..double import as_double
from ..loop import Problem, State, loop
from ..recipes import Solver
from ..run import parts_of, rows_of
from ..table import Row, Table

ROUNDING = 1e-5  # of a weight, where a network gave float32


def trajectory_pca(states: Tensor, components: int = 2) -> tuple[Tensor, Tensor]:
    """How flat each sample's trajectory is (fig. 4). states `[T, n, ...]`: x at T times.

    PCA of each trajectory by itself, about its mean. Returns the relative error |x - projected x| / |x|
    with the first `components`, `[T, n]`, and each component's share of the variance, `[n, T]`, largest
    first. Raises ValueError for fewer times than components."""
    if len(states) < components:
        raise ValueError(f"{components} components need as many times, got {len(states)}")
    x = as_double(states).flatten(2).transpose(0, 1)  # [n, T, d]
    centred = x - x.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.mT)  # of the Gram matrix: T is small, d is not
    values, vectors = values.clamp(min=0).flip(-1), vectors.flip(-1)
    left = vectors[..., components:]
    lost = (left.square() * values[:, None, components:]).sum(-1).sqrt()
    return (lost / x.norm(dim=-1)).T, values / values.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Plane:
    """The first principal components of one trajectory: its mean `[d]` and their directions `[k, d]`."""

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, states: Tensor, components: int = 2) -> "Plane":
        """Of states `[T, ...]`, x at T times. Raises ValueError for fewer times than components."""
        if len(states) <= components:
            raise ValueError(f"{components} components need more times than that, got {len(states)}")
        x = as_double(states).flatten(1)
        mean = x.mean(dim=0)
        values, vectors = torch.linalg.eigh((x - mean) @ (x - mean).T)
        values, vectors = values.flip(-1)[:components], vectors.flip(-1)[:, :components]
        return cls(mean, (vectors / values.clamp(min=1e-300).sqrt()).T @ (x - mean))

    def project(self, states: Tensor) -> Tensor:
        """Coordinates `[n, k]` of states `[n, ...]`."""
        return (as_double(states).flatten(1) - self.mean) @ self.axes.T

    def lost(self, states: Tensor) -> Tensor:
        """What the plane leaves out of states `[n, ...]`: |x - projected x| / |x|, `[n]`."""
        x = as_double(states).flatten(1)
        back = self.mean + self.project(states) @ self.axes
        lost: Tensor = (x - back).norm(dim=1) / x.norm(dim=1)
        return lost


@dataclass(frozen=True)
class Walk:
    """A run of one sample. states `[N+1, ...]`: x where each of N rows stood, and at the end (float32, on the
    CPU). table: the rows as they ran, with this sample's own numbers."""

    states: Tensor
    table: Table

    @property
    def times(self) -> list[float]:
        """The noise levels of the states."""
        return [*(float(row.sigma) for row in self.table.rows), self.table.end]

    def shares(self, predictor: Any = None, afs: bool = False) -> Tensor:
        """The moves as weights `[N, H, S]` on the slopes in hand, newest first, in shares of the step's
        length. Those of Multistep (S parts) are its own."""
        if isinstance(predictor, Multistep):
            return predictor.weights
        return shares_of(self.table, afs, ROUNDING)[..., None]


def walk(
    problem: Problem, solver: Solver, x: Tensor, sigmas: Tensor, predictor: Any = None, afs: bool = False
) -> Walk:
    """Run over `sigmas` (falling, positive) from x `[1, ...]` at the first of them, and keep what was
    passed."""
    times = sigmas.tolist()
    problem = replace(problem, dtype=problem.dtype or x.dtype, parts=parts_of(predictor))
    like = x[:0]
    rows, states = list[Row](), list[Tensor]()
    run = rows_of(solver, times, predictor, afs, like)
    for state in loop(problem, recorded(run, rows), State(x)):
        if state.looked:
            states.append(state.x.float().cpu())
    states.append(state.x.float().cpu())
    kept = [n for n, row in enumerate(rows) if row.opens or not row.analytic]  # a lead row moves nothing
    table = Table(tuple(rows[n] for n in kept), times[-1])
    return Walk(torch.cat([*(states[n] for n in kept), states[-1]]), table)


def recorded(rows: Iterable[Row], kept: list[Row]) -> Iterator[Row]:
    """Rows as they come; each, once it has moved, with plain numbers in `kept`. A row's weights may be asked
    for only once."""

    def spy(row: Row) -> Any:
        def weigh(state: Any) -> Any:
            weights = row.weigh(state)
            plain = tuple(tuple(float(w) for w in share) for share in weights)
            told = None if row.sigma_model is None else float(row.sigma_model)
            kept.append(replace(row, sigma=float(row.sigma), sigma_model=told, weights=plain))
            return weights

        return weigh

    for row in rows:
        yield replace(row, weights=spy(row))
