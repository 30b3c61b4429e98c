"""Classifier-free guidance for k-diffusion denoisers outside a host."""

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

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor], uncond: dict[str, Tensor]) -> Tensor:
        if self.scale == 1.0:
            return self.model(x, sigma, **cond)
        both = {key: torch.cat([cond[key], uncond[key]]) for key in cond}
        positive, negative = self.model(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
        return negative + self.scale * (positive - negative)
