"""All settings of the other solvers: sampler and order, schedule, with or without analytic first step."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from amed import schedules
from amed.fit.samples import Path

from . import flow, host
from .problem import SIGMA_MAX, SIGMA_MIN, Ends, Problem

OURS = {  # schedules of this pack: (kind, rho)
    "polynomial 7": ("polynomial", 7.0),
    "polynomial 3": ("polynomial", 3.0),
    "logsnr": ("logsnr", 1.0),
    "time_uniform": ("time_uniform", 1.0),
    "time_uniform 2": ("time_uniform", 2.0),
}
GRID = 61  # number of times that a searched grid chooses from
Grids = dict[int, Tensor]  # number of steps -> searched grid, [steps + 1]


@dataclass(frozen=True)
class Setting:
    """A ComfyUI sampler with its schedule and number of steps, for one run of the benchmark.

    ComfyUI's own schedules end at sigma 0, those of this pack at sigma_min."""

    variant: host.Variant
    schedule: str  # a name of OURS, host.HOST_SCHEDULES or flow.SCHEDULES, or "searched"
    steps: int
    afs: bool  # whether the first step is analytic

    @property
    def schedule_name(self) -> str:
        """The name of the schedule for tables, with "+ AFS" for an analytic first step."""
        return self.schedule + (" + AFS" if self.afs else "")

    @property
    def flow(self) -> bool:
        """Whether the demo model is sampled as a flow-matching model."""
        return self.schedule in flow.SCHEDULES

    def sigmas(self, grids: Grids) -> Tensor:
        """Return the noise levels of the schedule, float64 `[steps + 1]`.

        `grids` holds those of the schedule "searched", by number of steps; `searched_grids` found them to be
        the best for Euler's method."""
        if self.flow:
            return flow.sigmas(self.schedule, self.steps)
        if self.schedule in host.HOST_SCHEDULES:
            return host.schedule(self.schedule, self.steps, SIGMA_MIN, SIGMA_MAX)
        if self.schedule == "searched":
            return grids[self.steps]
        kind, rho = OURS[self.schedule]
        return schedules.make(kind, self.steps + 1, SIGMA_MIN, SIGMA_MAX, rho)

    def run(self, problem: Problem, grids: Grids, batch: int = 32) -> Ends:
        """Sample the noises of `problem` with this ComfyUI sampler; return the images and their cost.

        `grids` holds the noise levels of the schedule "searched", which `searched_grids` found to be the best
        for Euler's method, by number of steps."""
        sigmas = self.sigmas(grids)

        def sample(model: Any, noise: Tensor, args: dict[str, Any]) -> Tensor:
            x = noise * sigmas[0].to(noise)
            return host.sample(self.variant, model, x, sigmas, self.afs, args, self.flow)

        return problem.run(sample, batch, float(sigmas[-1]))

    def as_dict(self) -> dict[str, Any]:
        """Return the sampler, its schedule and its steps as a dict for bench/settings.json."""
        return {
            "solver": self.variant.solver,
            "options": self.variant.options,
            "schedule": self.schedule,
            "steps": self.steps,
            "afs": self.afs,
        }

    @classmethod
    def of(cls, setting: dict[str, Any]) -> "Setting":
        """Return the sampler setting that `as_dict` wrote. Raises ValueError for an unknown sampler."""
        for variant in host.VARIANTS:
            if (variant.solver, variant.options) == (setting["solver"], setting["options"]):
                return cls(variant, setting["schedule"], setting["steps"], setting["afs"])
        raise ValueError(
            f"no sampler of bench.host has these settings ({setting}): search again with `make bench-search`"
        )


def candidates(nfe: int) -> Iterator[Setting]:
    """Yield each ComfyUI sampler with each schedule on which it can take exactly `nfe` evaluations.

    The evaluations are counted by running the sampler on a trivial model."""
    schedule_kinds = [(kind, False, afs) for kind, afs in product((*OURS, "searched"), (False, True))]
    schedule_kinds += [(kind, True, False) for kind in host.HOST_SCHEDULES]
    for variant, (kind, to_zero, afs) in product(host.VARIANTS, schedule_kinds):
        for steps in range(2, nfe + 2):
            if host.evaluations(variant, steps, to_zero, afs) == nfe:
                yield Setting(variant, kind, steps, afs)
                break


def flow_candidates(nfe: int, schedules: Iterable[str] = flow.SEARCHED) -> Iterator[Setting]:
    """Yield each ComfyUI sampler with each of some flow schedules (of flow.SCHEDULES) on which it takes
    exactly `nfe` evaluations."""
    for variant, kind in product(host.VARIANTS, schedules):
        for steps in range(2, nfe + 2):
            if host.evaluations(variant, steps, kind in flow.SIMPLE, False) == nfe:
                yield Setting(variant, kind, steps, False)
                break


def searched_grids(path: Path, most_steps: int) -> Grids:
    """Search the best noise levels for Euler's method, for each number of steps from 2 to `most_steps`.

    The levels are chosen, by dynamic programming, from those of the reference trajectory `path`, so that the
    sum of the errors of the single steps is the lowest. This is the idea of GITS (Chen et al. 2024, "On the
    Trajectory Regularity of ODE-based Diffusion Sampling")."""
    times, count = path.times, len(path.times)
    states = torch.stack([state.flatten(1) for state in path.states]).double()
    slopes = torch.zeros_like(states)
    for i in range(count - 1):  # the path is fine enough for its mean chords to be its slopes
        after = (states[i + 1] - states[i]) / (times[i + 1] - times[i])
        before = (states[i] - states[i - 1]) / (times[i] - times[i - 1]) if i else after
        slopes[i] = (after + before) / 2
    cost = torch.full((count, count), torch.inf, dtype=torch.float64)
    for i in range(count - 1):
        euler_ends = states[i] + (times[i + 1 :] - times[i]).view(-1, 1, 1) * slopes[i]
        cost[i, i + 1 :] = (euler_ends - states[i + 1 :]).norm(dim=-1).mean(dim=-1)
    grids, best, choices = {}, cost[:, -1].clone(), []
    for steps in range(2, most_steps + 1):
        total = cost + best[None]  # one step to j, then the best grid from there
        best, chosen = total.min(dim=1)
        choices.insert(0, chosen)
        position, grid = 0, [0]
        for choice in choices:
            position = int(choice[position])
            grid.append(position)
        grids[steps] = times[[*grid, count - 1]]
    return grids
