"""The node AMED Demo Model: a MODEL of small images that needs no download."""

import torch
from comfy_api.latest import io

from ..demo import model as emoji
from ..demo.avatars import model as avatars
from ..demo.data import CATEGORIES
from .demo_networks import NONE, AvatarNetwork, EmojiNetwork, category_conditioning, text_conditioning
from .host.model import pixel_model
from .schema import schema

MODELS = (EmojiNetwork.name, AvatarNetwork.name)


class DemoModel(io.ComfyNode):
    """Load a demo model, with the conditionings and the LATENT that a sampler needs."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDDemoModel",
            display_name="AMED Demo Model",
            search_aliases=["amed", "emoji", "avatar", "test model", "no download"],
            description="A small diffusion model of emoji or of avatars, included in this pack, to try "
            "samplers without a download.",
            inputs=[
                io.Combo.Input(
                    "category",
                    options=[*CATEGORIES, NONE],
                    default=CATEGORIES[0],
                    tooltip="The kind of emoji to make, in place of a prompt. Not used by avatars32.",
                ),
                io.Int.Input(
                    "width",
                    default=32,
                    min=16,
                    max=64,
                    step=4,
                    tooltip="Width in pixels. The models were trained at 32.",
                ),
                io.Int.Input(
                    "height",
                    default=32,
                    min=16,
                    max=64,
                    step=4,
                    tooltip="Height in pixels. The models were trained at 32.",
                ),
                io.Int.Input("batch_size", default=4, min=1, max=256, tooltip="Number of images."),
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    default=MODELS[0],
                    optional=True,
                    tooltip="emoji32 is an EDM model of emoji. avatars32 is a flow model of avatars; its "
                    "prompts come from AMED Demo Prompt.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The demo model, for any sampler."),
                io.Conditioning.Output(
                    display_name="positive", tooltip="The conditioning for the category; of avatars32, none."
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The conditioning without a category, to link as the negative prompt.",
                ),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the given size."),
            ],
        )

    @classmethod
    def execute(cls, category, width, height, batch_size, model=MODELS[0]):
        weights = avatars.WEIGHTS if model == AvatarNetwork.name else emoji.WEIGHTS
        if not weights.is_file():
            raise ValueError(
                f"the demo model's weights are missing: {weights.name} belongs in this pack's demo folder. "
                "Install the pack again"
            )
        latent = {"samples": torch.zeros(batch_size, 3, height, width)}
        if model == AvatarNetwork.name:
            network = AvatarNetwork(avatars.load_network())
            loaded = pixel_model(network, model, {"shift": avatars.SHIFT}, "FLOW")
            return io.NodeOutput(loaded, text_conditioning(()), text_conditioning(()), latent)
        network = EmojiNetwork(emoji.load_unet())
        levels = {k: getattr(emoji, k.upper()) for k in ("sigma_min", "sigma_max", "sigma_data")}
        loaded = pixel_model(network, model, levels, "EDM")
        return io.NodeOutput(loaded, category_conditioning(category), category_conditioning(NONE), latent)
