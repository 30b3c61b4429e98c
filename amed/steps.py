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


def euler(x: Tensor, d: Tensor, t: Tensor, t_next: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """x + c (t_next - t) d: DDIM in EDM's time."""
    return x + c * (t_next - t) * d


def amed(x: Tensor, d: Tensor, d_mid: Tensor, t: Tensor, t_next: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """AMED-Solver (eq. 9): the whole interval along the scaled slope at the learned mid time."""
    return euler(x, d_mid, t, t_next, c)


def dpm_2(x: Tensor, d: Tensor, d_mid: Tensor, t: Tensor, t_next: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """DPM-Solver-2(r) (Lu et al. 2022, alg. 4; r = 1/2 is the classic), r learned in the weights too."""
    return euler(x, d_mid / (2 * r) + (1 - 1 / (2 * r)) * d, t, t_next, c)


def heun(x: Tensor, d: Tensor, d_mid: Tensor, t: Tensor, t_next: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """EDM's Heun step: the mean of the slopes at both ends (r = 1)."""
    return euler(x, (d + d_mid) / 2, t, t_next, c)


def ipndm(
    x: Tensor, slopes: Sequence[Tensor], t: Tensor, t_next: Tensor, order: int, c: Tensor | float = 1.0
) -> Tensor:
    """Adams-Bashforth of equal steps on the last `order` slopes."""
    weights = ADAMS_BASHFORTH[order]
    return euler(x, sum(w * d for w, d in zip(weights, reversed(slopes[-order:]))), t, t_next, c)


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
    linear, scale = (t_next / t * x, -1.0) if predict_x0 else (x, -t_next)
    phi_1 = torch.expm1(sign * h)
    if order == 1:
        return linear + c * scale * phi_1 * outputs[-1]
    m0, m1 = outputs[-1], outputs[-2]
    r0 = (times[-2].log() - t.log()) / h
    d10 = (m0 - m1) / r0
    if order == 2:
        return linear + c * scale * phi_1 * (m0 + d10 / 2)
    r1 = (times[-3].log() - times[-2].log()) / h
    d11 = (m1 - outputs[-3]) / r1
    d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
    d2 = (d10 - d11) / (r0 + r1)
    phi_2 = phi_1 / h - sign
    phi_3 = phi_2 / h - 0.5
    return linear + c * scale * (phi_1 * m0 + sign * phi_2 * d1 + phi_3 * d2)


def multistep(
    x: Tensor, slopes: Sequence[Tensor], t: Tensor, t_next: Tensor, weights: Sequence[float]
) -> Tensor:
    """x + (t_next - t) sum_k w_k d_k: free weights on the slopes in hand, both newest first."""
    return euler(x, sum(w * d for w, d in zip(weights, slopes) if w), t, t_next)


def dynamic_threshold(denoised: Tensor, quantile: float = 0.995) -> Tensor:
    """Imagen's dynamic thresholding, for pixel models only: clamp each sample to the quantile of its |x0|, at
    least 1, and divide by it."""
    bound = torch.quantile(denoised.abs().flatten(1), quantile, dim=1).clamp(min=1.0)
    bound = bound.view(-1, *[1] * (denoised.ndim - 1))
    return denoised.clamp(-bound, bound) / bound
