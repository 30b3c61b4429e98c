"""Initial weights for the demo's networks, so that training starts from known constants."""

import torch
from torch import Tensor, nn

from amed.fit.plain_solvers import Setting


def start_from(
    predictor: nn.Module, base: Tensor, r: Tensor, c: Tensor | None = None, a: Tensor | None = None
) -> None:
    """Initialise the paper's network (BottleneckPredictor) so that it outputs the given r, c and a.

    With r from `mid_times`, an untrained AMED-Plugin gives the same images as the solver that it extends.

    Args:
        predictor: the network to initialise.
        base: noise levels `[N]`; each step goes from one to the next.
        r: position of the mid time in each step `[N-1]`, from 0 to 1.
        c, a: scales of the direction and of the time in each step `[N-1]`, by default 1; limited to what the
            network can output."""
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
    """Split a solver's noise levels into those of an AMED-Plugin's steps and the mid times between them.

    Returns every other level `[N]`, and r `[N-1]`: where each level between two of these lies in ln(sigma),
    from 0 (the higher) to 1. Raises ValueError if the number of levels is even."""
    times = setting.sigmas()
    if len(times) % 2 == 0:
        raise ValueError(
            f"{len(times)} noise levels cannot be split into steps with a mid time each: give an odd number"
        )
    base = times[::2]
    return base, torch.log(times[1::2] / base[:-1]) / torch.log(base[1:] / base[:-1])
