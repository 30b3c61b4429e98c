"""The paper's figures 4 and 5, measured on the demo model without guidance."""

from typing import Any

import torch
from torch import Tensor

from amed import Solver
from amed.fit.plain_solvers import Setting as Plain
from amed.geometry import trajectory_pca

from .plan import CHUNK, Plan, rounded
from .problem import SIGMA_MAX, SIGMA_MIN
from .quality import problem
from .search import path_of
from .trajectories import best_r
from .workers import Workers

TRAJECTORIES, SAMPLES = 1000, 32  # noises of figure 4 and of figure 5
EVALUATIONS = 80
N = 6  # base times of figure 5
STUDENTS = {
    "AMED-Solver": Solver("amed"),
    "DPM-Solver-2": Solver("dpm_2"),
    "Euler": Solver("euler"),
    "iPNDM": Solver("ipndm", 4),
    "DPM++": Solver("dpmpp", 2, predict_x0=True),
}
COMPONENTS = 8  # of the principal component analysis, in the figure


def heun() -> Plain:
    """Return the settings of a Heun run of 80 evaluations, whose trajectories the benchmark analyses."""
    return Plain(Solver("heun"), "polynomial", 7.0, EVALUATIONS // 2 + 1, False, SIGMA_MIN, SIGMA_MAX)


def states_of(plan: Plan, start: int, count: int) -> Tensor:
    """Sample `count` noises, from number `start` on, by Heun's method with 80 evaluations.

    Returns x at all 41 noise levels, `[41, count, 3, 32, 32]`."""
    noises = problem(1.0, max(plan.total(1.0), TRAJECTORIES), plan.seed, plan.dtype)
    return torch.stack(path_of(noises.part(start, start + count), heun()).states)


def flatness(plan: Plan, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Measure how flat the sampling trajectories of `count` noises are (figure 4 of the AMED paper).

    Returns the relative error of projecting a trajectory onto its main plane, `[41, count]`, and the shares
    of its variance along its first principal components, `[count, 8]`."""
    error, variance = trajectory_pca(states_of(plan, start, count))
    return error, variance[:, :COMPONENTS]


def search(plan: Plan, name: str, samples: int) -> dict[str, Any]:
    """Measure the AMED paper's figure 5 for one solver: the best mid time r in each interval of the schedule.

    The mid time, r = 0 at the start of the interval and 1 at its end, is where the solver evaluates the model
    between two noise levels."""
    noises = problem(1.0, max(plan.total(1.0), TRAJECTORIES), plan.seed, plan.dtype)
    states = torch.cat([states_of(plan, s, min(CHUNK, samples - s)) for s in range(0, samples, CHUNK)], dim=1)
    stride = EVALUATIONS // 2 // (N - 1)
    sigmas = heun().sigmas()[::stride]
    args = noises.first(samples).args
    best = best_r(noises.guided, STUDENTS[name], sigmas, list(states[::stride]), args)
    return {
        "alignment": [rounded(v) for v in best.alignment.tolist()],
        "r_mean": [rounded(v) for v in best.r.mean(1).tolist()],
        "r_spread": [rounded(v) for v in best.spread.tolist()],
        "better": [rounded(v) for v in (best.best < best.half).double().mean(1).tolist()],
    }


def geometry(
    plan: Plan, workers: Workers, trajectories: int = TRAJECTORIES, samples: int = SAMPLES
) -> dict[str, Any]:
    """Measure the AMED paper's figures 4 and 5; return their numbers for docs/geometry.json."""
    jobs = [(plan, start, min(CHUNK, trajectories - start)) for start in range(0, trajectories, CHUNK)]
    parts = dict(workers.each("figure 4", flatness, jobs))
    error = torch.cat([parts[job][0] for job in jobs], dim=1)
    variance = torch.cat([parts[job][1] for job in jobs])
    jobs = [(plan, name, samples) for name in STUDENTS]
    students = {job[1]: figures for job, figures in workers.each("figure 5", search, jobs)}
    return {
        "trajectories": trajectories,
        "sigmas": heun().sigmas().tolist(),
        "error_mean": [rounded(v) for v in error.mean(1).tolist()],
        "error_95": [rounded(v) for v in error.quantile(0.95, dim=1).tolist()],
        "variance": [rounded(v) for v in variance.mean(0).tolist()],
        "samples": samples,
        "students": {name: students[name] for name in STUDENTS},
    }
