"""The demo model as a ComfyUI MODEL: 32x32 emoji, no download."""

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
    """demo.model.UNet as the host calls a diffusion model.

    x `[B, 3, H, W]`, c_noise `[B]`; context `[B, n, 11]`: a one-hot category, all zeros for none. Patches
    that listen to the middle block (output_block_patch at ("output", 0), middle_block_after_patch) are
    honoured."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet, self.dtype = unet, torch.float32

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, control: object = None, **call: Any
    ) -> Tensor:
        if x.shape[-1] % 4 or x.shape[-2] % 4:
            raise ValueError(
                f"the AMED demo model makes images whose sides are multiples of 4, got a LATENT of "
                f"{x.shape[-1]}x{x.shape[-2]}: take the one AMED Demo Model gives"
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
    """`[B]` category of a one-hot context `[B, n, 11]`; all zeros means none."""
    one_hot = context[:, 0]
    return torch.where(one_hot.abs().amax(dim=1) > 0, one_hot.argmax(dim=1), UNCONDITIONAL)


def conditioning(category: str) -> list:
    """A host's CONDITIONING for a category."""
    one_hot = torch.zeros(1, 1, CLASSES + 1)
    if category != NONE:
        one_hot[0, 0, CATEGORIES.index(category)] = 1.0
    return [[one_hot, {}]]


class DemoModel(io.ComfyNode):
    """The demo model with what a sampler needs."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDDemoModel",
            display_name="AMED Demo Model",
            search_aliases=["amed", "emoji", "test model", "no download"],
            description="A small trained diffusion model of emoji, part of the pack: try samplers at once.",
            inputs=[
                io.Combo.Input(
                    "category",
                    options=[*CATEGORIES, NONE],
                    default=CATEGORIES[0],
                    tooltip="the prompt, so to speak",
                ),
                io.Int.Input("width", default=32, min=16, max=64, step=4, tooltip="in pixels; trained at 32"),
                io.Int.Input(
                    "height", default=32, min=16, max=64, step=4, tooltip="in pixels; trained at 32"
                ),
                io.Int.Input("batch_size", default=4, min=1, max=256, tooltip="how many images"),
            ],
            outputs=[
                io.Model.Output(tooltip="a MODEL like any other"),
                io.Conditioning.Output(display_name="positive", tooltip="the category"),
                io.Conditioning.Output(display_name="negative", tooltip="no category"),
                io.Latent.Output(display_name="latent", tooltip="empty, of this size"),
            ],
        )

    @classmethod
    def execute(cls, category, width, height, batch_size):
        if not WEIGHTS.is_file():
            raise ValueError(
                f"the demo model's weights are missing: {WEIGHTS.name} belongs in this pack's demo folder; "
                "install the pack again"
            )
        settings = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "sigma_data": SIGMA_DATA}
        model = pixel_model(DiffusionModel(load_unet()), FAMILY, settings)
        latent = {"samples": torch.zeros(batch_size, 3, height, width)}
        return io.NodeOutput(model, conditioning(category), conditioning(NONE), latent)
