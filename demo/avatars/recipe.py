"""How avatars32 is trained: flow matching on avatars and their attributes."""

import torch
from torch import Tensor, nn

from ..recipe import Recipe
from . import data
from .attributes import ATTRIBUTES, INDEX
from .model import WEIGHTS, network

ALL_DROPPED = 0.12  # share of images that are shown without any attribute
EACH_DROPPED = 0.15  # share of the others that are shown without an attribute, for each by itself
SPANS = [slice(INDEX[values[0]], INDEX[values[-1]] + 1) for values in ATTRIBUTES.values()]


def flow_loss(net: nn.Module, x: Tensor, attributes: Tensor, generator: torch.Generator) -> Tensor:
    """Return the squared error of the velocity on the linear path, averaged over all elements.

    The path is (1 - t) x + t noise, its velocity noise - x; t is logit-normal (Esser et al. 2024, sec. 3).

    Args:
        net: the raw network.
        x: images `[B, 3, 32, 32]` in [-1, 1].
        attributes: `[B, SIZE]`, 1 at each value."""
    t = torch.randn(len(x), generator=generator).sigmoid()
    noise = torch.randn(x.shape, generator=generator)
    along = t.view(-1, 1, 1, 1)
    return (net(x + along * (noise - x), t, attributes) - (noise - x)).square().mean()


def augment(images: Tensor, attributes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Drop attributes: all of some images, and each one of others."""
    keep = torch.ones_like(attributes)
    for span in SPANS:
        keep[:, span] = (torch.rand(len(images), 1, generator=generator) >= EACH_DROPPED).float()
    keep *= torch.rand(len(images), 1, generator=generator) >= ALL_DROPPED
    return images, attributes * keep


RECIPE = Recipe("avatars32", WEIGHTS, data.DEFAULT_FILE, data.load, network, augment, flow_loss)
