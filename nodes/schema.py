"""A node's face, on hosts that know more or fewer fields than this pack."""

import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "sampling/AMED"
Predictor = io.Custom("AMED_PREDICTOR")


def schema(**fields: Any) -> io.Schema:
    """io.Schema of the fields this host's Schema takes; newer ones (search_aliases) are left out on older
    hosts."""
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{"category": CATEGORY} | {k: v for k, v in fields.items() if k in known})


def fit_inputs() -> list:
    """What a fit is made for: MODEL, prompts, and a LATENT for its size."""
    return [
        io.Model.Input("model"),
        io.Conditioning.Input("positive", tooltip="a prompt of the kind you use"),
        io.Conditioning.Input("negative"),
        io.Latent.Input("latent_image", tooltip="its size; the fit starts from noise"),
    ]


def guidance_input() -> Any:
    """The guidance scale a fit is for."""
    return io.Float.Input(
        "guidance",
        default=1.0,
        min=0.0,
        max=100.0,
        step=0.1,
        tooltip="the cfg you will sample with; 1 is none",
    )


def fit_outputs() -> list:
    """What a fit gives."""
    return [
        Predictor.Output(display_name="predictor"),
        io.Image.Output(display_name="report"),
        io.String.Output(display_name="text"),
    ]
