"""A diffusion ODE whose end is known exactly: data of two Gaussians in one dimension, for any number of
pixels.

At noise level t the data's distribution F_t is the same mixture with each variance increased by t^2. The ODE
keeps the share of the distribution below x: x(t) = F_t^-1(F_T(x(T))). It is therefore smooth but not linear,
and exact to about 1e-14 in float64."""

import torch
from torch import Tensor

MEANS, SHARES, VARIANCES = (-0.7, 0.6), (0.4, 0.6), (0.3, 0.2)


def parts(x: Tensor, t: float | Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return (x - mean) / deviation and the deviation of each Gaussian at noise level t."""
    deviations = [(v + torch.as_tensor(t, dtype=x.dtype) ** 2).sqrt() for v in VARIANCES]
    return [(x - m) / s for m, s in zip(MEANS, deviations)], deviations


def densities(x: Tensor, t: float | Tensor) -> list[Tensor]:
    """Return the density of each Gaussian at x, including its share."""
    z, deviations = parts(x, t)
    return [w * torch.exp(-v * v / 2) / (s * (2 * torch.pi) ** 0.5) for w, v, s in zip(SHARES, z, deviations)]


def cumulative(x: Tensor, t: float | Tensor) -> Tensor:
    """Return F_t(x)."""
    return sum(w * torch.special.ndtr(v) for w, v in zip(SHARES, parts(x, t)[0]))


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """Return E[x0 | x] at `[B]` noise levels: each Gaussian's estimate, weighted by its density at x."""
    t = sigma.view(-1, *[1] * (x.ndim - 1))
    of = densities(x, t)
    estimates = [(v * x + t * t * m) / (v + t * t) for v, m in zip(VARIANCES, MEANS)]
    return sum(p * d for p, d in zip(of, estimates)) / sum(of)


def exact_end(x: Tensor, start: float, end: float) -> Tensor:
    """Return where the ODE moves x from noise level `start` to `end`, by Newton's method within a bracket."""
    share, reach = cumulative(x, start), 10 * (1 + end)
    low, high = torch.full_like(x, -reach), torch.full_like(x, reach)
    y = x * ((0.25 + end**2) / (0.25 + start**2)) ** 0.5
    for _ in range(60):
        over = cumulative(y, end) - share
        low, high = torch.where(over <= 0, y, low), torch.where(over >= 0, y, high)
        step = y - over / sum(densities(y, end))
        y = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return y


def start_points(t: float, count: int = 24) -> Tensor:
    """Return x `[count, 1, 1, 1]` at noise level t, over the bulk of the distribution."""
    return torch.linspace(-1.9, 1.9, count, dtype=torch.float64).view(-1, 1, 1, 1) * (0.25 + t * t) ** 0.5
