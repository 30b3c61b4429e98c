"""The demo model as a flow model: x_s = (1 - s) (image + sigma n), s = sigma / (1 + sigma), from s = 1 down.

This is exact: the slope (x_s - denoised) / s is dx_s/ds, and an image at s is (1 - s) times that at sigma.
Above the model's highest sigma it is evaluated at that level, as hosts do, which cap the levels too."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amed import schedules
from amed.evaluate import Guided
from amed.fit.target import Target
from demo import model as demo
from demo.target import target

NFES = (4, 6, 8)
S_MAX, S_MIN = 1.0, demo.SIGMA_MIN / (1 + demo.SIGMA_MIN)
CAP = demo.SIGMA_MAX / (1 + demo.SIGMA_MAX)  # the flow level of the model's highest sigma
POLYNOMIAL = {f"flow polynomial {rho:g}": rho for rho in (1.0, 2.0, 3.0)}
# the hosts' schedule for flow models, which ends at 0
SIMPLE = {f"flow simple, shift {shift:g}": shift for shift in (1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 12.0)}
SCHEDULES = (*POLYNOMIAL, *SIMPLE)
SEARCHED = (*POLYNOMIAL, *(f"flow simple, shift {shift:g}" for shift in (1.0, 3.0, 6.0, 12.0)))  # for emoji32


class FlowForm(nn.Module):
    """The demo model's denoiser as a flow model.

    Called with x `[B, C, H, W]` and flow levels s `[B]` in (0, 1], 1 being pure noise, it returns the
    denoised images."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, s: Tensor, **args: Any) -> Tensor:
        capped = s.clamp(max=CAP)
        # at and above the cap, x is almost pure noise of standard deviation s
        scale = torch.where(s < CAP, 1 / (1 - capped), demo.SIGMA_MAX / s)
        return self.denoiser(x * scale.view(-1, 1, 1, 1), capped / (1 - capped), **args)


def flow_target(dtype: torch.dtype = torch.float32) -> Target:
    """Return the demo model as a flow-matching model, without guidance, for AMED to be calibrated to."""
    base_target = target(1.0, dtype=dtype)
    return replace(
        base_target,
        model=Guided(FlowForm(base_target.model.model), 1.0),
        sigma_min=S_MIN,
        sigma_max=S_MAX,
        prediction_type="flow",
        name="AMED demo model, flow form",
    )


def sigmas(schedule: str, steps: int) -> Tensor:
    """Return the flow levels of a schedule by its name, float64 `[steps + 1]`, from 1 (pure noise) down."""
    if schedule in POLYNOMIAL:
        return schedules.make("polynomial", steps + 1, S_MIN, S_MAX, POLYNOMIAL[schedule])
    s, shift = torch.linspace(1, 0, steps + 1, dtype=torch.float64), SIMPLE[schedule]
    return shift * s / (1 + (shift - 1) * s)


def image(x: Tensor, s: float) -> Tensor:
    """Return the image of a flow-model run that ended with x at flow level s: x / (1 - s)."""
    return x / (1 - s)
