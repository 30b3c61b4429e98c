"""Samples to fit to: noise, and where a converged run of the model takes it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..double import as_double
from ..loop import Denoiser, Evaluate, Evaluation, Problem, denoised_only
from ..recipes import Solver
from ..run import states
from .measures import Counter, cut
from .plain import Setting
from .target import Target, seeded

BLOCK = 8  # samples drawn at once


@dataclass(frozen=True)
class Samples:
    """Unit noise `[n, ...]`, the model's further arguments, the converged end states."""

    noise: Tensor
    args: dict[str, Any]
    end: Tensor

    def __len__(self) -> int:
        return len(self.noise)

    def batches(self, size: int) -> Iterator["Samples"]:
        for start in range(0, len(self), size):
            yield self.cut(slice(start, start + size))

    def cut(self, part: slice) -> "Samples":
        """Some of them."""
        return Samples(self.noise[part], cut(self.args, part), self.end[part])


@dataclass(frozen=True)
class Path:
    """Reference states of some samples: `states` (each `[n, ...]`) at falling `times`."""

    times: Tensor
    states: tuple[Tensor, ...]

    def cut(self, part: slice) -> "Path":
        """Of some of the samples."""
        return Path(self.times, tuple(state[part] for state in self.states))

    def at(self, t: float) -> Tensor:
        """The states at time t: the cubic through the four nearest of them, in t."""
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
    """Samples and their converged end states, made when first asked for; the calibrations of one job share
    them. Sample i is the same whatever else was asked for.

    held_out: how many of the first choose what is kept; `paths` keeps the whole trajectories of the `traced`
    after them. evaluations: of a reference."""

    def __init__(self, target: Target, held_out: int, traced: int, evaluations: int, seed: int = 0,
                 batch: int = BLOCK):  # fmt: skip
        self.model, self.draw, self.seed = Counter(target.model), target.draw, seed
        self.held_out, self.traced = held_out, traced
        self.evaluations, self.block = evaluations, min(batch, BLOCK)
        ends = target.sigma_min, target.sigma_max
        rho = 1.0 if target.flow else 7.0  # a flow's levels are its times
        self.setting = Setting(Solver("ipndm", 3), "polynomial", rho, evaluations + 1, False, *ends)
        first = held_out // self.block
        self.kept = range(first, first - (-traced // self.block) + 1)
        self.paths: dict[int, list[Tensor]] = {}  # the states of these blocks
        self.noise: list[Tensor] = []
        self.args: list[dict[str, Any]] = []
        self.ends: list[Tensor] = []

    def make(self, count: int) -> Iterator[str]:
        """See to it that there are `count` samples; yields how many there are after each block."""
        while len(self.ends) * self.block < count:
            generator = seeded(self.seed * 1_000_003 + len(self.ends))
            noise, args = self.draw(generator, self.block)
            sigmas = self.setting.sigmas()
            x = noise * sigmas[0].to(noise)
            with torch.no_grad():
                run = states(Problem(self.model, args), self.setting.solver, x, sigmas)
                path = [x, *(state.x for state in run)]
            if len(self.ends) in self.kept:
                self.paths[len(self.ends)] = [x.cpu() for x in path]
            self.noise.append(noise)
            self.args.append(args)
            self.ends.append(path[-1].to(noise))
            yield f"{len(self.ends) * self.block} references"

    def path(self, first: int, count: int) -> Path:
        """The whole trajectories of samples that were made, of those that are traced."""
        blocks = range(first // self.block, -(-(first + count) // self.block))
        part = slice(first - blocks[0] * self.block, None)
        path = zip(*(self.paths[block] for block in blocks))
        return Path(self.setting.sigmas(), tuple(torch.cat(s)[part][:count] for s in path))

    def take(self, first: int, count: int) -> Samples:
        """Samples that were made."""
        part = slice(first, first + count)
        return Samples(torch.cat(self.noise)[part], cut(joined(self.args), part), torch.cat(self.ends)[part])


def joined(args: list[Any]) -> Any:
    """Rows of all dicts of tensors, nested or not; what is no tensor is taken from the first."""
    first = args[0]
    if isinstance(first, dict):
        return {key: joined([a[key] for a in args]) for key in first}
    return torch.cat(args) if isinstance(first, Tensor) else first


def in_batches(size: int, evaluate: Evaluate = denoised_only) -> Evaluate:
    """The same for more samples than the model takes at once: `size` at a time."""

    def ask(model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any],
            wants: frozenset[str]) -> Evaluation:  # fmt: skip
        if len(x) <= size:
            return evaluate(model, x, sigma, extra_args, wants)
        parts = [slice(start, start + size) for start in range(0, len(x), size)]
        seen = [evaluate(model, x[p], sigma[p], cut(extra_args, p), wants) for p in parts]

        fields = ([getattr(one, name) for one in seen] for name in ("bottleneck", "cond", "uncond"))
        rest = (None if any(v is None for v in field) else torch.cat(field) for field in fields)
        return Evaluation(torch.cat([one.denoised for one in seen]), *rest)

    return ask


def per_sample(end: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each sample, float64 `[n]` on the CPU."""
    return (as_double(end) - as_double(target)).square().flatten(1).mean(dim=1)


def robust(errors: Tensor, scale: float) -> float:
    """Cauchy's loss of mean squared errors `[n]`, as an error: sqrt(scale (exp(mean log(1 + e / scale)) -
    1)). A few samples whose end state jumps to another image do not decide; where none does, it is near their
    RMSE."""
    return math.sqrt(scale * math.expm1(float(torch.log1p(errors / scale).mean())))
