"""Helpers of the test nodes."""

import sys
from typing import Any

PROMPTS = {
    "model": ("MODEL",),
    "positive": ("CONDITIONING",),
    "negative": ("CONDITIONING",),
    "latent_image": ("LATENT",),
}


def pack(room: str) -> Any:
    """Return a module of the pack's nodes, as this host loaded it."""
    return next(m for name, m in list(sys.modules.items()) if name.endswith(f"comfyui-amed.nodes.{room}"))


def patched(model, change):
    """Return a changed clone of a MODEL."""
    clone = model.clone()
    change(clone)
    return (clone,)


class OfModel:
    """A node that takes only a MODEL, and runs every time."""

    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")
