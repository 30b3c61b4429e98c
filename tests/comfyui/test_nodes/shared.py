"""What the test nodes share."""

import sys
from typing import Any

PROMPTS = {
    "model": ("MODEL",),
    "positive": ("CONDITIONING",),
    "negative": ("CONDITIONING",),
    "latent_image": ("LATENT",),
}


def pack(room: str) -> Any:
    """A module of the pack's nodes, as this host loaded it."""
    return next(m for name, m in list(sys.modules.items()) if name.endswith(f"comfyui-amed.nodes.{room}"))


def patched(model, change):
    """A clone of a MODEL, changed."""
    clone = model.clone()
    change(clone)
    return (clone,)


class OfModel:
    """A node of a MODEL alone, which runs every time."""

    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")
