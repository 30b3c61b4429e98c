"""Classifier-free guidance for k-diffusion denoisers outside a host."""

from typing import Any

import torch
from torch import Tensor, nn

from .bottleneck import Denoiser


class Guided(nn.Module):
    """D = D_uncond + scale (D_cond - D_uncond) (Ho & Salimans 2022), both halves in one call, conditional
    first.

    Called as `guided(x, sigma, cond=..., uncond=...)`: dicts of the inner model's extra arguments, tensors of
    `[B, ...]`. At scale 1 the unconditional half is not computed."""

    def __init__(self, model: Denoiser, scale: float):
        super().__init__()
        self.model, self.scale = model, float(scale)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        cond: dict[str, Tensor],
        uncond: dict[str, Tensor],
        factor: float = 1.0,
    ) -> Tensor:
        """`factor`: on the scale, for this one evaluation (not at scale 1)."""
        if self.scale == 1.0:
            return self.model(x, sigma, **cond)
        both = {key: torch.cat([cond[key], uncond[key]]) for key in cond}
        positive, negative = self.model(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
        return negative + factor * self.scale * (positive - negative)


def guide(model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], factor: float) -> Tensor:
    """amed.sampling.Guide for `Guided`, also inside other modules that hand extra arguments through."""
    return model(x, sigma, **extra_args, factor=factor)
