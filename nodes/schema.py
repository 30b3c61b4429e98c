"""Inputs and outputs that several nodes share, and schemas for older versions of ComfyUI."""

import inspect
from typing import Any

from comfy_api.latest import io

from ..amed import SAMPLERS
from ..amed.choose import AUTO, PLAIN, UNTRAINED
from .host.request import CALIBRATE

CATEGORY = "sampling/AMED"
SOLVERS = [AUTO, *SAMPLERS]
Predictor = io.Custom("AMED_PREDICTOR")
DEFAULT_PREDICTOR = (
    "The predictor to use. Not linked: the one applied to the MODEL, else the best installed one for it."
)


def schema(**fields: Any) -> io.Schema:
    """Return a node's io.Schema, without fields that an older ComfyUI does not know (search_aliases)."""
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{"category": CATEGORY} | {k: v for k, v in fields.items() if k in known})


def missing_input(calibrate: bool = True, **fields: Any) -> Any:
    """Return the node input `if_missing`: what to do if there is no predictor for the model.

    Args:
        calibrate: whether to offer the option "calibrate now".
        fields: other arguments of io.Combo.Input."""
    options = [PLAIN, *([CALIBRATE] if calibrate else []), "error", UNTRAINED]
    now = "; calibrate now fits a predictor first and saves it" if calibrate else ""
    return io.Combo.Input(
        "if_missing",
        options=options,
        default=PLAIN,
        tooltip=f"What to do if no predictor fits this model: plain runs the best plain solver known{now}; "
        "error stops the run; untrained runs AMED-Solver without fitted constants.",
        **fields,
    )


def nfe_input(minimum: int = 1, **fields: Any) -> Any:
    """Return the node input `nfe`, the number of evaluations.

    Args:
        minimum: lowest number that the user can set.
        fields: other arguments of io.Int.Input."""
    tooltip = (
        "Number of network evaluations, one after the other. With guidance each needs two passes of the "
        "network."
    )
    return io.Int.Input("nfe", **{"default": 8, "min": minimum, "max": 10_000, "tooltip": tooltip} | fields)


def cfg_input(**fields: Any) -> Any:
    """Return the node input `guidance`, the guidance scale (cfg).

    fields: other arguments of io.Float.Input."""
    tooltip = "Classifier-free guidance scale (cfg in other samplers). 1: no guidance, which halves the work."
    usual = {"default": 5.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": tooltip}
    return io.Float.Input("guidance", **usual | fields)


def denoise_input() -> Any:
    """Return the input `denoise`, the share of the schedule that runs (img2img below 1)."""
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Share of the schedule to run. 1: start from pure noise. Below 1 (img2img): start from the "
        "given latent, in the lower part of the schedule.",
    )


def scene_inputs(model: str, positive: str, negative: str, latent_image: str) -> list:
    """Return the node inputs for a MODEL, two prompts and a LATENT; each argument is the tooltip of one."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Conditioning.Input("positive", tooltip=positive),
        io.Conditioning.Input("negative", tooltip=negative),
        io.Latent.Input("latent_image", tooltip=latent_image),
    ]


def sampled_inputs(model: str, latent_image: str) -> list:
    """Return the node inputs MODEL, two prompts and LATENT for sampling.

    The arguments are the tooltips of the MODEL and of the LATENT."""
    return scene_inputs(model, "The prompt.", "The negative prompt. Not used at guidance 1.", latent_image)


def fit_inputs() -> list:
    """Return the node inputs MODEL, prompts and LATENT of nodes that fit a predictor."""
    return scene_inputs(
        "The model to fit for, with the LoRAs and patches that you sample with.",
        "A prompt of the kind you use.",
        "The negative prompt you use.",
        "A latent of the size you sample at. Its content is not used; the fit starts from noise.",
    )


def guidance_input() -> Any:
    """Return the input `guidance` for nodes that fit a predictor."""
    return cfg_input(tooltip="The guidance scale (cfg) that you will sample with. 1: no guidance.")


def seed_input(
    tooltip: str = "Seed of the noise that is fitted to. Another seed gives another fit of about the same "
    "quality.",
) -> Any:
    """Return the node input `seed`, without ComfyUI's control that changes the seed after every run.

    So a fit or a picture is the same when it is made again."""
    return io.Int.Input(
        "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip=tooltip
    )


CONTROLS = ("fixed", "increment", "decrement", "randomize")  # values of that widget


def name_input(default: str, tooltip: str) -> Any:
    """Return the input `name`, the beginning of the saved predictor's file name."""
    return io.String.Input("name", default=default, tooltip=tooltip)


def checked_name(name: str) -> str:
    """Check and return the input `name`, the beginning of a predictor's file name.

    Raises ValueError for "fixed", "increment", "decrement" and "randomize": ComfyUI can put this value of the
    old seed control into `name` when it loads a workflow of an older version."""
    if name in CONTROLS:
        raise ValueError(
            f"name is {name!r}, which ComfyUI read from the seed control of an older version of this node: "
            "type the name again"
        )
    return name


def fit_outputs() -> list:
    """Return the outputs of nodes that fit a predictor: the predictor, a picture and a text."""
    return [
        Predictor.Output(
            display_name="predictor",
            tooltip="The fitted predictor, for Apply AMED Predictor or AMED Sampler.",
        ),
        io.Image.Output(
            display_name="report",
            tooltip="A picture: images sampled with the fitted predictor and with plain solvers (without "
            "fitted constants), and the error of each.",
        ),
        io.String.Output(display_name="text", tooltip="What was fitted, its errors, and where it was saved."),
    ]
