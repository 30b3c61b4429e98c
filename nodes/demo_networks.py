"""The demo networks with the arguments that ComfyUI passes to a diffusion model, and their conditionings.

Other nodes' patches of the middle block work as in ComfyUI's own U-Nets."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..demo import model as emoji
from ..demo.avatars import attributes
from ..demo.avatars import model as avatars
from ..demo.data import CATEGORIES
from .host.hooks import network_options, patched_middle

NONE = "none"


class DemoNetwork(nn.Module):
    """A demo U-Net as a diffusion model of ComfyUI; one subclass per demo model."""

    name: ClassVar[str]  # the demo model, as in AMED Demo Model's input `model`
    multiple: ClassVar[int]  # height and width of images must be multiples of it
    width: ClassVar[int]  # numbers per token of the conditioning
    prompts: ClassVar[str]  # where its conditionings come from, for messages

    def __init__(self, unet: emoji.UNet):
        super().__init__()
        self.unet, self.dtype = unet, torch.float32

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, control: object = None, **call: Any
    ) -> Tensor:
        """Return the network's output `[B, 3, H, W]`.

        Args:
            x: the network's input `[B, 3, H, W]`.
            timesteps: the noise level as ComfyUI gives it to this kind of model `[B]`.
            context: the conditioning `[B, n, width]`.
            control: ControlNet outputs, which are not used.
            call: ComfyUI's other arguments, of which only `transformer_options` is used.

        Raises:
            ValueError: if height or width is no multiple of `multiple`, or the prompt is for another
                model."""
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise ValueError(
                f"the AMED demo model makes images whose sides are multiples of {self.multiple}, got a "
                f"LATENT of {x.shape[-1]}x{x.shape[-2]}: use the latent output of AMED Demo Model"
            )
        if context is None or context.shape[-1] != self.width:
            raise ValueError(f"the AMED demo model {self.prompts}")
        options = network_options(call)

        def after_middle(h: Tensor) -> Tensor:
            return patched_middle(h, x, timesteps, context, options)

        return self.unet(x, self.time(timesteps), self.label(context), after_middle)

    def time(self, timesteps: Tensor) -> Tensor:
        """Convert ComfyUI's timesteps `[B]` to the noise levels that the U-Net takes `[B]`."""
        raise NotImplementedError

    def label(self, context: Tensor) -> Tensor:
        """Convert a conditioning `[B, n, width]` to the label that the U-Net takes `[B, ...]`."""
        raise NotImplementedError


class EmojiNetwork(DemoNetwork):
    """The network of emoji32. Its conditioning is the category of emoji, one-hot; zeros: no category."""

    name, multiple, width = "emoji32", 4, emoji.CLASSES + 1
    prompts = "of emoji knows no prompts: connect the positive and negative outputs of AMED Demo Model"

    def time(self, timesteps: Tensor) -> Tensor:
        return timesteps

    def label(self, context: Tensor) -> Tensor:
        return labels(context)


class AvatarNetwork(DemoNetwork):
    """The network of avatars32. Its conditioning has 1 at each attribute value asked for.

    Of several tokens (Conditioning (Concat)), each value counts as the token with the largest number says."""

    name, multiple, width = "avatars32", avatars.MULTIPLE, attributes.SIZE
    prompts = "of avatars takes its prompts from AMED Demo Prompt, for both positive and negative"

    def time(self, timesteps: Tensor) -> Tensor:
        return timesteps / TIMESTEPS

    def label(self, context: Tensor) -> Tensor:
        return context.amax(dim=1)


TIMESTEPS = 1000.0  # ComfyUI's timestep of a flow model at sigma = 1


def labels(context: Tensor) -> Tensor:
    """Convert one-hot emoji categories `[B, n, 11]` to class labels `[B]`; all zeros: 10 (no category)."""
    one_hot = context[:, 0]
    return torch.where(one_hot.abs().amax(dim=1) > 0, one_hot.argmax(dim=1), emoji.UNCONDITIONAL)


def category_conditioning(category: str) -> list:
    """Return ComfyUI's CONDITIONING of emoji32 for a category of emoji, or for "none"."""
    one_hot = torch.zeros(1, 1, EmojiNetwork.width)
    if category != NONE:
        one_hot[0, 0, CATEGORIES.index(category)] = 1.0
    return [[one_hot, {}]]


def text_conditioning(values: tuple[str, ...]) -> list:
    """Return ComfyUI's CONDITIONING of avatars32 for attribute values; none of them: unconditional."""
    return [[attributes.encode(values)[None, None], {}]]
