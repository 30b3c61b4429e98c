"""Initial weights for the demo's networks, so that training starts from known constants."""

import torch
from torch import Tensor, nn

from amed.fit.plain_solvers import Setting


def start_from(
    predictor: nn.Module, base: Tensor, r: Tensor, c: Tensor | None = None, a: Tensor | None = None
) -> None:
    """Initialise the paper's network (BottleneckPredictor) to output given constants in each interval.

    The U-Net's features then have no effect. With r from `mid_times`, an AMED-Plugin starts equal to its
    plain solver.

    Args:
        base: noise levels `[N]` between which the intervals lie.
        r, c, a: constants `[N-1]`; c and a default to 1, and are clamped to the predictor's ranges."""
    pairs = [(base[i], base[i + 1]) for i in range(len(base) - 1)]
    targets = {predictor.fc_r: torch.logit(torch.as_tensor(r, dtype=torch.float64))}
    for layer, value, scale in (
        (predictor.fc_scale_dir, c, predictor.scale_dir),
        (predictor.fc_scale_time, a, predictor.scale_time),
    ):
        if layer is not None:
            value = torch.ones(len(pairs)) if value is None else torch.as_tensor(value)
            targets[layer] = torch.logit((((value.double() - 1) / scale).clamp(-0.98, 0.98) + 1) / 2)
    with torch.no_grad():
        like = predictor.fc_r.weight
        times = [torch.cat([predictor.embed(t.to(like)) for t in pair], dim=1)[0] for pair in pairs]
        rows = torch.cat([torch.stack(times), like.new_ones(len(pairs), 1)], dim=1).double()
        inverse = torch.linalg.pinv(rows, rtol=1e-6)
        for layer, logits in targets.items():
            fit = inverse @ logits
            layer.weight.zero_()
            layer.weight[0, 4:] = fit[:-1].to(like)
            layer.bias[0] = fit[-1].to(like)


def mid_times(setting: Setting) -> tuple[Tensor, Tensor]:
    """Split a plain solver's noise levels into the base times and mid times of an AMED-Plugin on it.

    Returns every other level `[N]`, and r `[N-1]`, the positions of the levels between them. Raises
    ValueError if the number of times is even."""
    times = setting.sigmas()
    if len(times) % 2 == 0:
        raise ValueError(
            f"{len(times)} times cannot be split into base and mid times: give an odd number of times"
        )
    base = times[::2]
    return base, torch.log(times[1::2] / base[:-1]) / torch.log(base[1:] / base[:-1])
