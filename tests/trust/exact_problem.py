"""A diffusion ODE whose end is known: data of two Gaussians in one dimension, as many pixels as wanted.

At noise level t the data's distribution F_t is the same mixture, each variance larger by t^2, and the ODE
keeps the share of the distribution that lies below x: x(t) = F_t^-1(F_T(x(T))). So it is not linear, smooth,
and exact to some 1e-14 in float64."""

import torch
from torch import Tensor

MEANS, SHARES, VARIANCES = (-0.7, 0.6), (0.4, 0.6), (0.3, 0.2)


def parts(x: Tensor, t: float | Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of each Gaussian at noise level t: (x - mean) / deviation, deviation."""
    deviations = [(v + torch.as_tensor(t, dtype=x.dtype) ** 2).sqrt() for v in VARIANCES]
    return [(x - m) / s for m, s in zip(MEANS, deviations)], deviations


def densities(x: Tensor, t: float | Tensor) -> list[Tensor]:
    """Of each Gaussian, its share included."""
    z, deviations = parts(x, t)
    return [w * torch.exp(-v * v / 2) / (s * (2 * torch.pi) ** 0.5) for w, v, s in zip(SHARES, z, deviations)]


def below(x: Tensor, t: float | Tensor) -> Tensor:
    """F_t."""
    return sum(w * torch.special.ndtr(v) for w, v in zip(SHARES, parts(x, t)[0]))


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x], at `[B]` noise levels: each Gaussian's own, weighed by its density at x."""
    t = sigma.view(-1, *[1] * (x.ndim - 1))
    of = densities(x, t)
    own = [(v * x + t * t * m) / (v + t * t) for v, m in zip(VARIANCES, MEANS)]
    return sum(p * d for p, d in zip(of, own)) / sum(of)


def carried(x: Tensor, start: float, end: float) -> Tensor:
    """Where the ODE brings x from noise level `start` to `end`: Newton's steps, kept between what was too low
    and too high."""
    share, reach = below(x, start), 10 * (1 + end)
    low, high = torch.full_like(x, -reach), torch.full_like(x, reach)
    y = x * ((0.25 + end**2) / (0.25 + start**2)) ** 0.5
    for _ in range(60):
        over = below(y, end) - share
        low, high = torch.where(over <= 0, y, low), torch.where(over >= 0, y, high)
        step = y - over / sum(densities(y, end))
        y = torch.where((step > low) & (step < high), step, (low + high) / 2)
    return y


def starts(t: float, count: int = 24) -> Tensor:
    """x `[count, 1, 1, 1]` at noise level t, over the bulk of the distribution."""
    return torch.linspace(-1.9, 1.9, count, dtype=torch.float64).view(-1, 1, 1, 1) * (0.25 + t * t) ** 0.5
