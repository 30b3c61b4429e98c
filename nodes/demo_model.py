"""The node AMED Demo Model: a MODEL of 32x32 emoji that needs no download."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ..demo.data import CATEGORIES
from ..demo.model import CLASSES, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, UNCONDITIONAL, WEIGHTS, UNet, load_unet
from .host.hooks import network_options, patched_middle
from .host.model import pixel_model
from .schema import schema

FAMILY = "emoji32"
NONE = "none"


class DiffusionModel(nn.Module):
    """The demo U-Net, with the arguments that ComfyUI passes to a diffusion model.

    Other nodes' patches of the middle block work as in ComfyUI's own U-Nets."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet, self.dtype = unet, torch.float32

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, control: object = None, **call: Any
    ) -> Tensor:
        """Return the network's output `[B, 3, H, W]`.

        Args:
            x: the network's input `[B, 3, H, W]`.
            timesteps: the noise level as the network receives it (EDM's c_noise) `[B]`.
            context: the category of emoji, one-hot `[B, n, 11]`; all zeros: no category.
            control: ControlNet outputs, which are not used.
            call: ComfyUI's other arguments, of which only `transformer_options` is used.

        Raises:
            ValueError: if height or width is no multiple of 4, or the prompt is for another model."""
        if x.shape[-1] % 4 or x.shape[-2] % 4:
            raise ValueError(
                "the AMED demo model makes images whose sides are multiples of 4, got a LATENT of "
                f"{x.shape[-1]}x{x.shape[-2]}: use the latent output of AMED Demo Model"
            )
        if context is None or context.shape[-1] != CLASSES + 1:
            raise ValueError(
                "the AMED demo model knows no prompts: connect the positive and negative outputs of "
                "AMED Demo Model"
            )
        options = network_options(call)

        def after_middle(h: Tensor) -> Tensor:
            return patched_middle(h, x, timesteps, context, options)

        return self.unet(x, timesteps, labels(context), after_middle)


def labels(context: Tensor) -> Tensor:
    """Convert one-hot emoji categories `[B, n, 11]` to class labels `[B]`; all zeros: 10 (no category)."""
    one_hot = context[:, 0]
    return torch.where(one_hot.abs().amax(dim=1) > 0, one_hot.argmax(dim=1), UNCONDITIONAL)


def conditioning(category: str) -> list:
    """Return ComfyUI's CONDITIONING for a category of emoji, or for "none"."""
    one_hot = torch.zeros(1, 1, CLASSES + 1)
    if category != NONE:
        one_hot[0, 0, CATEGORIES.index(category)] = 1.0
    return [[one_hot, {}]]


class DemoModel(io.ComfyNode):
    """Load the demo model, with the conditionings and the LATENT that a sampler needs."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDDemoModel",
            display_name="AMED Demo Model",
            search_aliases=["amed", "emoji", "test model", "no download"],
            description="A small diffusion model of emoji, included in this pack, to try samplers without a "
            "download.",
            inputs=[
                io.Combo.Input(
                    "category",
                    options=[*CATEGORIES, NONE],
                    default=CATEGORIES[0],
                    tooltip="The kind of emoji to make, in place of a prompt.",
                ),
                io.Int.Input(
                    "width",
                    default=32,
                    min=16,
                    max=64,
                    step=4,
                    tooltip="Width in pixels. The model was trained at 32.",
                ),
                io.Int.Input(
                    "height",
                    default=32,
                    min=16,
                    max=64,
                    step=4,
                    tooltip="Height in pixels. The model was trained at 32.",
                ),
                io.Int.Input("batch_size", default=4, min=1, max=256, tooltip="Number of images."),
            ],
            outputs=[
                io.Model.Output(tooltip="The demo model, for any sampler."),
                io.Conditioning.Output(display_name="positive", tooltip="The conditioning for the category."),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The conditioning without a category, to link as the negative prompt.",
                ),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the given size."),
            ],
        )

    @classmethod
    def execute(cls, category, width, height, batch_size):
        if not WEIGHTS.is_file():
            raise ValueError(
                f"the demo model's weights are missing: {WEIGHTS.name} belongs in this pack's demo folder. "
                "Install the pack again"
            )
        settings = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "sigma_data": SIGMA_DATA}
        model = pixel_model(DiffusionModel(load_unet()), FAMILY, settings)
        latent = {"samples": torch.zeros(batch_size, 3, height, width)}
        return io.NodeOutput(model, conditioning(category), conditioning(NONE), latent)
