"""How emoji32 is trained: EDM's loss on emoji and their categories."""

import torch
from torch import Tensor

from . import data
from .model import SIGMA_DATA, UNCONDITIONAL, WEIGHTS, Denoiser, UNet
from .recipe import Recipe

P_MEAN, P_STD = -1.2, 1.2  # mean and standard deviation of ln sigma of the training noise, as in EDM
DROPPED = 0.15  # share of images that are shown without their category


def edm_loss(unet: UNet, x: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """Return EDM's weighted squared error, averaged over all elements (Karras et al. 2022, eq. 8).

    Args:
        unet: the raw network.
        x: images `[B, 3, 32, 32]` in [-1, 1].
        label: `[B]`, categories; 10 for none."""
    sigma = (torch.randn(len(x), generator=generator) * P_STD + P_MEAN).exp()
    noise = torch.randn(x.shape, generator=generator) * sigma.view(-1, 1, 1, 1)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    error = Denoiser(unet)(x + noise, sigma, label) - x
    return (weight.view(-1, 1, 1, 1) * error**2).mean()


def augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the images, and drop the category of some."""
    images = data.mirrored(images, labels, generator)
    dropped = torch.rand(len(labels), generator=generator) < DROPPED
    return images, torch.where(dropped, UNCONDITIONAL, labels)


RECIPE = Recipe(
    "emoji32", WEIGHTS, data.DEFAULT_FILE, data.load, lambda dropout: UNet(dropout=dropout), augment, edm_loss
)
