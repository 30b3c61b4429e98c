"""Base schedules: the noise levels t_N > ... > t_1 of an ODE solver's steps.

Times are noise levels sigma in EDM's parametrisation, x = x0 + sigma * n. Every schedule is float64
`[num_steps]` and falls from sigma_max to sigma_min. Lists from hosts go through `checked`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .double import as_double

KINDS = ("polynomial", "logsnr", "time_uniform", "discrete", "shift")
DEFAULT_RHO = {"polynomial": 7.0, "logsnr": 1.0, "time_uniform": 1.0, "discrete": 1.0, "shift": 3.0}
NEAR = 1e-3  # relative length of a step that is too short to be worth an evaluation
VP_EPSILON = 1e-3  # the VP process's smallest time, as in Song et al. 2021 and EDM's table 1


def polynomial(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Return EDM's schedule (Karras et al. 2022, eq. 5): uniform in sigma^(1/rho). rho = 7 gives "karras"."""
    u = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    root = sigma_max ** (1 / rho) + u * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))
    return torch.pow(root, rho)


def logsnr(num_steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return a schedule that is uniform in log sigma ("exponential" in k-diffusion)."""
    return torch.linspace(math.log(sigma_max), math.log(sigma_min), num_steps, dtype=torch.float64).exp()


def shift(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 3.0) -> Tensor:
    """Return the schedule of flow models' hosts: uniform in the time t, where a noise level is
    sigma_max rho t / (1 + (rho - 1) t) and rho is the shift (Esser et al. 2024, eq. 23; 1: linear).

    ComfyUI's `simple` is this schedule at the model's shift, with 0 as the last level."""
    low = sigma_min / sigma_max
    t = torch.linspace(1, low / (rho - (rho - 1) * low), num_steps, dtype=torch.float64)
    return sigma_max * rho * t / (1 + (rho - 1) * t)


def vp_betas(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Return beta_d and beta_min of the VP process whose noise level is sigma_min at t = 0.001 and sigma_max
    at t = 1 (Song et al. 2021; EDM, table 1)."""
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (low / VP_EPSILON - high) / (VP_EPSILON - 1)
    return beta_d, high - beta_d / 2


def vp_time(sigma: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Return the time t, in sigma's shape, at which a VP process has noise level `sigma`.

    Args:
        sigma: noise levels of any shape.
        sigma_min, sigma_max: noise levels of the process at t = 0.001 and t = 1."""
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)
    return ((beta_min**2 + 2 * beta_d * torch.log1p(sigma**2)).sqrt() - beta_min) / beta_d


def vp_pace(t: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Return d sigma / dt of a VP process at time t, in t's shape.

    Args:
        t: times of any shape.
        sigma_min, sigma_max: noise levels of the process at t = 0.001 and t = 1."""
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)
    square = torch.expm1(beta_d * t**2 / 2 + beta_min * t)
    return (beta_d * t + beta_min) * (square + 1) / (2 * square.sqrt())


def time_uniform(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """Return a schedule that is uniform in t^(1/rho), where t is the time of the VP process with noise level
    sigma_min at t = 0.001 and sigma_max at t = 1. AMED's authors recommend it for AMED-Solver, with rho 1."""
    beta_d, beta_min = vp_betas(sigma_min, sigma_max)
    u = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    t = (1 + u * (VP_EPSILON ** (1 / rho) - 1)) ** rho
    return torch.expm1(beta_d * t**2 / 2 + beta_min * t).sqrt()


def from_start(times: Tensor, start: float) -> Tensor:
    """Return the schedule of a run from noise level `start`: `start`, then the `times` that are below it."""
    return torch.cat([times.new_tensor([start]), times[times < start * (1 - NEAR)]])


def sd_sigmas(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """Return the noise level of each training step of Stable Diffusion, float64 `[steps]`, ascending from
    0.0292 to 14.6146."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


def _log_alpha(sigma: Tensor) -> np.ndarray:
    """Return log alpha of a VP model at noise levels sigma, alpha = 1 / sqrt(1 + sigma^2)."""
    return np.asarray(-0.5 * np.log1p(as_double(sigma).numpy() ** 2))


def sigma_to_t(sigma: Tensor, table: Tensor) -> Tensor:
    """Return the fractional training steps of noise levels, as DPM-Solver's NoiseScheduleVP does.

    They are interpolated linearly in log alpha between the levels in `table`, and clamped to its ends.

    Args:
        sigma: noise levels of any shape.
        table: `[steps]`, the noise level of each training step, ascending."""
    t = np.interp(-_log_alpha(sigma), -_log_alpha(table), np.arange(len(table), dtype=np.float64))
    return torch.from_numpy(np.asarray(t))


def t_to_sigma(t: Tensor, table: Tensor) -> Tensor:
    """Return the noise levels of fractional training steps, the inverse of `sigma_to_t`.

    Args:
        t: training steps of any shape.
        table: `[steps]`, the noise level of each training step, ascending."""
    log_alpha = np.interp(as_double(t).numpy(), np.arange(len(table)), _log_alpha(table))
    return torch.from_numpy(np.asarray(np.expm1(-2 * log_alpha))).sqrt()


def discrete(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0,
             table: Tensor | None = None) -> Tensor:  # fmt: skip
    """Return a schedule that is uniform in t^(1/rho), where t is a model's training step, with fractions.

    With rho 1 this is latent diffusion's schedule. Training steps are numbered from 1, as in DPM-Solver.

    Args:
        num_steps: number of noise levels.
        sigma_min, sigma_max: the ends.
        rho: the exponent.
        table: `[steps]`, the noise level of each training step, ascending. Default: Stable Diffusion's."""
    table = sd_sigmas() if table is None else table
    ends = (float(sigma_to_t(torch.tensor(s), table)) + 1 for s in (sigma_max, sigma_min))
    start, end = (v ** (1 / rho) for v in ends)
    u = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    return t_to_sigma((start + u * (end - start)) ** rho - 1, table)


def make(kind: str, num_steps: int, sigma_min: float, sigma_max: float, rho: float | None = None,
         table: Tensor | None = None) -> Tensor:  # fmt: skip
    """Return a schedule of noise levels, float64 `[num_steps]`, falling from sigma_max to sigma_min.

    Args:
        kind: "polynomial", "logsnr", "time_uniform", "discrete" or "shift".
        num_steps: number of noise levels, at least 2.
        sigma_min, sigma_max: the ends, 0 < sigma_min < sigma_max.
        rho: the schedule's exponent; of "shift", the shift. Default: DEFAULT_RHO's.
        table: noise levels of the model's training steps, for "discrete" only.

    Raises:
        ValueError: The kind is unknown, or a number is out of range."""
    if kind not in KINDS:
        raise ValueError(f"unknown schedule {kind!r}: choose one of {', '.join(KINDS)}")
    if num_steps < 2:
        raise ValueError(f"a schedule needs at least 2 noise levels, but num_steps is {num_steps}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"a schedule needs 0 < sigma_min < sigma_max, but these are {sigma_min} and {sigma_max}"
        )
    rho = DEFAULT_RHO[kind] if rho is None else rho
    if not rho > 0:
        raise ValueError(f"a schedule's rho must be positive, but is {rho}")
    if kind == "logsnr":
        return logsnr(num_steps, sigma_min, sigma_max)
    if kind == "discrete":
        return discrete(num_steps, sigma_min, sigma_max, rho, table)
    curved = {"polynomial": polynomial, "time_uniform": time_uniform, "shift": shift}[kind]
    return curved(num_steps, sigma_min, sigma_max, rho)


def checked(sigmas: Tensor) -> Tensor:
    """Check the noise levels `[n]` that a host gives for a run, and return them as float64.

    Raises:
        ValueError: They are fewer than 2, not finite, negative, or do not fall at every step; the message
            says which."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(
            f"sigmas must be a list of at least 2 noise levels, but have shape {tuple(sigmas.shape)}"
        )
    sigmas = as_double(sigmas)
    if not sigmas.isfinite().all():
        raise ValueError(f"sigmas are not all finite ({sigmas.tolist()}): choose another schedule")
    if not (sigmas[1:] < sigmas[:-1]).all():
        raise ValueError(
            f"sigmas must fall at every step, but are {sigmas.tolist()}: choose a schedule that falls, or "
            "another sampler"
        )
    if sigmas[-1] < 0:
        raise ValueError(f"sigmas must not be negative, but are {sigmas.tolist()}: choose another schedule")
    return sigmas
