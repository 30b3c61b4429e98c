"""The step formulas: pure functions of tensors, one per family, in EDM's time (noise level).

Slopes d are eps(x, t) = (x - D(x, t)) / t, newest last in a history. Times are broadcastable against x
(`[B or 1, 1, 1, 1]`); every formula goes from `t` to `t_next`, `c` scales the direction (AMED-Plugin's c_n).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ADAMS_BASHFORTH = {  # equal-step coefficients, newest slope first (iPNDM, Zhang & Chen 2023, eq. 11)
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def midpoint_time(t: Tensor, t_next: Tensor, r: Tensor) -> Tensor:
    """s_n = t_n^r * t_{n+1}^(1-r): geometric interpolation, r = 0 at `t`, 1 at `t_next` (AMED, sec. 3.3)."""
    return t_next**r * t ** (1 - r)


def scalar(v: Tensor | float) -> Tensor | float:
    """One number on the CPU as a float: multiplied by it, a tensor takes one pass, and no device waits."""
    return float(v) if isinstance(v, Tensor) and not v.ndim and not v.requires_grad else v


def along(x: Tensor, d: Tensor, length: Tensor | float) -> Tensor:
    """x + length * d, in one pass."""
    length = scalar(length)
    if not isinstance(length, Tensor):
        return torch.add(x, d, alpha=length)
    return torch.addcmul(x, d, length) if length.ndim else x + length * d


def euler(x: Tensor, d: Tensor, t: Tensor, t_next: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """x + c (t_next - t) d: DDIM in EDM's time."""
    return along(x, d, c * (t_next - t))


def amed(x: Tensor, d: Tensor, d_mid: Tensor, t: Tensor, t_next: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """AMED-Solver (eq. 9): the whole interval along the scaled slope at the learned mid time."""
    return euler(x, d_mid, t, t_next, c)


def dpm_2(x: Tensor, d: Tensor, d_mid: Tensor, t: Tensor, t_next: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """DPM-Solver-2(r) (Lu et al. 2022, alg. 4; r = 1/2 is the classic), r learned in the weights too."""
    step, w = c * (t_next - t), 1 / (2 * r)
    return along(along(x, d_mid, step * w), d, step * (1 - w))


def heun(x: Tensor, d: Tensor, d_mid: Tensor, t: Tensor, t_next: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """EDM's Heun step: the mean of the slopes at both ends (r = 1)."""
    half = c * (t_next - t) / 2
    return along(along(x, d, half), d_mid, half)


def ipndm(
    x: Tensor, slopes: Sequence[Tensor], t: Tensor, t_next: Tensor, order: int, c: Tensor | float = 1.0
) -> Tensor:
    """Adams-Bashforth of equal steps on the last `order` slopes."""
    return multistep(x, slopes[::-1], t, t_next, ADAMS_BASHFORTH[order], c)


def dpmpp(
    x: Tensor,
    outputs: Sequence[Tensor],
    times: Sequence[Tensor],
    t_next: Tensor,
    order: int,
    predict_x0: bool,
    c: Tensor | float = 1.0,
) -> Tensor:
    """Multistep DPM-Solver++ of order 1 to 3 (Lu et al. 2022b, alg. 2; sigma time, so lambda = -log t).

    `outputs` are the denoised images (predict_x0) or slopes at `times`, newest last; x is at times[-1].
    The second order is the midpoint form. `c` scales the model terms, not the linear one."""
    t = times[-1]
    h = t.log() - t_next.log()
    sign = -1 if predict_x0 else 1
    linear, scale = (t_next / t * x, -c) if predict_x0 else (x, -c * t_next)
    phi_1 = torch.expm1(sign * h)
    if order == 1:
        return along(linear, outputs[-1], scale * phi_1)
    m0, m1 = outputs[-1], outputs[-2]
    r0 = (times[-2].log() - t.log()) / h
    if order == 2:
        w = scale * phi_1 / (2 * r0)
        return along(along(linear, m0, scale * phi_1 + w), m1, -w)
    r1 = (times[-3].log() - times[-2].log()) / h
    phi_2 = phi_1 / h - sign
    phi_3 = phi_2 / h - 0.5
    # D1 = D10 + r0 q (D10 - D11), D2 = q (D10 - D11), D10 = (m0 - m1) / r0, D11 = (m1 - m2) / r1
    q = 1 / (r0 + r1)
    w10 = scale * (sign * phi_2 * (1 + r0 * q) + phi_3 * q) / r0
    w11 = -scale * (sign * phi_2 * r0 * q + phi_3 * q) / r1
    x = along(linear, m0, scale * phi_1 + w10)
    return along(along(x, m1, w11 - w10), outputs[-3], -w11)


def multistep(
    x: Tensor,
    slopes: Sequence[Tensor],
    t: Tensor,
    t_next: Tensor,
    weights: Sequence[float],
    c: Tensor | float = 1.0,
) -> Tensor:
    """x + c (t_next - t) sum_k w_k d_k: weights on the slopes in hand, both newest first."""
    step = scalar(c * (t_next - t))
    terms = [(w, d) for w, d in zip(weights, slopes) if w]
    if not terms:
        return x
    (first, newest), *older = terms
    if not isinstance(step, Tensor):
        x = torch.add(x, newest, alpha=step * first)
        for w, d in older:
            x.add_(d, alpha=step * w)
        return x
    total = newest if first == 1 else first * newest
    for w, d in older:
        total = torch.add(total, d, alpha=w)
    return along(x, total, step)


def dynamic_threshold(denoised: Tensor, quantile: float = 0.995) -> Tensor:
    """Imagen's dynamic thresholding, for pixel models only: clamp each sample to the quantile of its |x0|, at
    least 1, and divide by it."""
    bound = torch.quantile(denoised.abs().flatten(1), quantile, dim=1).clamp(min=1.0)
    bound = bound.view(-1, *[1] * (denoised.ndim - 1))
    return denoised.clamp(-bound, bound) / bound
