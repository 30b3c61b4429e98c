"""Samples to fit to: noises, and the end states of a converged run of the model from each."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..double import as_double
from ..loop import Denoiser, Evaluate, Evaluation, Problem, denoised_only
from ..recipes import Solver
from ..run import states
from .measures import Counter, cut
from .plain_solvers import Setting
from .target import Target, seeded

BLOCK = 8  # samples drawn at once


@dataclass(frozen=True)
class Samples:
    """Noises, and the end states of converged runs of the model from them."""

    noise: Tensor  # unit noise `[n, ...]`
    args: dict[str, Any]  # further arguments of the model; tensors among them are `[n, ...]`
    end: Tensor  # converged end states `[n, ...]`

    def __len__(self) -> int:
        return len(self.noise)

    def batches(self, size: int) -> Iterator["Samples"]:
        """Yield the samples, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.cut(slice(start, start + size))

    def cut(self, part: slice) -> "Samples":
        """Return a slice of the samples, e.g. `slice(0, 8)` for the first eight."""
        return Samples(self.noise[part], cut(self.args, part), self.end[part])


@dataclass(frozen=True)
class Path:
    """The reference trajectories of some samples."""

    times: Tensor  # falling noise levels `[T]`
    states: tuple[Tensor, ...]  # x at each of these times, `[n, ...]`

    def cut(self, part: slice) -> "Path":
        """Return the trajectories of a slice of the samples."""
        return Path(self.times, tuple(state[part] for state in self.states))

    def at(self, t: float) -> Tensor:
        """Return the states `[n, ...]` at noise level `t`, interpolated between the stored ones (cubic)."""
        times, count = self.times.tolist(), len(self.times)
        below = next((i for i, time in enumerate(times) if time <= t * (1 + 1e-9)), count - 1)
        first = min(max(below - 2, 0), count - 4)
        near = range(first, first + 4)
        total = torch.zeros_like(self.states[0])
        for i in near:
            weight = math.prod((t - times[j]) / (times[i] - times[j]) for j in near if j != i)
            total = total + weight * self.states[i]
        return total


class References:
    """Samples with end states of converged runs, made when needed and shared by the fits of a job.

    A sample does not depend on how many samples are made.

    Args:
        target: the model, and a function that draws noise for it.
        held_out: number of samples, the first ones, that decide which fit is saved.
        traced: number of samples, after the held-out ones, whose whole trajectories are stored.
        evaluations: number of evaluations per converged run.
        seed: seed of the noise.
        batch: most samples in one call of the model.
    """

    def __init__(self, target: Target, held_out: int, traced: int, evaluations: int, seed: int = 0,
                 batch: int = BLOCK):  # fmt: skip
        self.model, self.draw, self.seed = Counter(target.model), target.draw, seed
        self.held_out, self.traced = held_out, traced
        self.evaluations, self.block = evaluations, min(batch, BLOCK)
        ends = target.sigma_min, target.sigma_max
        rho = 1.0 if target.flow else 7.0  # a flow's levels are its times
        self.setting = Setting(Solver("ipndm", 3), "polynomial", rho, evaluations + 1, False, *ends)
        first = held_out // self.block
        self.traced_blocks = range(first, first - (-traced // self.block) + 1)
        self.paths: dict[int, list[Tensor]] = {}  # trajectories of the traced blocks
        self.noise: list[Tensor] = []  # one entry per block, as in the next two
        self.args: list[dict[str, Any]] = []
        self.ends: list[Tensor] = []

    def make(self, count: int) -> Iterator[str]:
        """Run the model until there are `count` samples with converged end states.

        Yields a line of progress after each block of samples."""
        while len(self.ends) * self.block < count:
            generator = seeded(self.seed * 1_000_003 + len(self.ends))
            noise, args = self.draw(generator, self.block)
            sigmas = self.setting.sigmas()
            x = noise * sigmas[0].to(noise)
            with torch.no_grad():
                run = states(Problem(self.model, args), self.setting.solver, x, sigmas)
                path = [x, *(state.x for state in run)]
            if len(self.ends) in self.traced_blocks:
                self.paths[len(self.ends)] = [x.cpu() for x in path]
            self.noise.append(noise)
            self.args.append(args)
            self.ends.append(path[-1].to(noise))
            yield f"{len(self.ends) * self.block} references"

    def cost(self, count: int) -> int:
        """Return the evaluations still needed until there are `count` samples with converged end states."""
        blocks = max(0, -(-count // self.block) - len(self.ends))
        return blocks * self.block * self.evaluations

    def path(self, first: int, count: int) -> Path:
        """Return the trajectories of `count` samples from index `first` on.

        The samples must be made already, and be among those whose trajectories are stored."""
        blocks = range(first // self.block, -(-(first + count) // self.block))
        part = slice(first - blocks[0] * self.block, None)
        path = zip(*(self.paths[block] for block in blocks))
        return Path(self.setting.sigmas(), tuple(torch.cat(s)[part][:count] for s in path))

    def take(self, first: int, count: int) -> Samples:
        """Return `count` samples from index `first` on, which `make` must have made already."""
        part = slice(first, first + count)
        return Samples(torch.cat(self.noise)[part], cut(joined(self.args), part), torch.cat(self.ends)[part])


def joined(args: list[Any]) -> Any:
    """Concatenate the tensors of (nested) dicts with the same keys; other values are taken from the first."""
    first = args[0]
    if isinstance(first, dict):
        return {key: joined([a[key] for a in args]) for key in first}
    return torch.cat(args) if isinstance(first, Tensor) else first


def in_batches(size: int, evaluate: Evaluate = denoised_only) -> Evaluate:
    """Wrap `evaluate`, which calls the model, so that a call has at most `size` samples."""

    def evaluate_batches(model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any],
                         wants: frozenset[str]) -> Evaluation:  # fmt: skip
        if len(x) <= size:
            return evaluate(model, x, sigma, extra_args, wants)
        parts = [slice(start, start + size) for start in range(0, len(x), size)]
        results = [evaluate(model, x[p], sigma[p], cut(extra_args, p), wants) for p in parts]

        fields = ([getattr(result, name) for result in results] for name in ("bottleneck", "cond", "uncond"))
        rest = (None if any(v is None for v in field) else torch.cat(field) for field in fields)
        return Evaluation(torch.cat([result.denoised for result in results]), *rest)

    return evaluate_batches


def per_sample(end: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of each sample, float64 `[n]` on the CPU."""
    return (as_double(end) - as_double(target)).square().flatten(1).mean(dim=1)


def scale_of(errors: Iterable[Tensor]) -> float:
    """Return the scale of Cauchy's loss (see `robust`) for the errors of several solvers.

    `errors`: mean squared errors `[n]` of the samples, for each solver. The scale is half the lowest of
    the solvers' median errors."""
    return 0.5 * float(min(error.median() for error in errors)) + 1e-12


def robust(errors: Tensor, scale: float) -> float:
    """Return the robust error of mean squared errors `[n]`, by Cauchy's loss.

    It is sqrt(scale (exp(mean log(1 + errors / scale)) - 1)), close to the RMSE unless a few samples jump to
    another image: these do not dominate."""
    return math.sqrt(scale * math.expm1(float(torch.log1p(errors / scale).mean())))
