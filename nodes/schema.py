"""A node's face, on hosts that know more or fewer fields than this pack."""

import inspect
from typing import Any

from comfy_api.latest import io

from ..amed import SAMPLERS
from ..amed.choose import AUTO, PLAIN, UNTRAINED
from .host.request import CALIBRATE

CATEGORY = "sampling/AMED"
SOLVERS = [AUTO, *SAMPLERS]
Predictor = io.Custom("AMED_PREDICTOR")


def schema(**fields: Any) -> io.Schema:
    """io.Schema of the fields this host's Schema takes; newer ones (search_aliases) are left out on older
    hosts."""
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{"category": CATEGORY} | {k: v for k, v in fields.items() if k in known})


def missing_input(calibrate: bool = True, **more: Any) -> Any:
    """What runs where no predictor was fitted."""
    options = [PLAIN, *([CALIBRATE] if calibrate else []), "error", UNTRAINED]
    fit = "; calibrate now fits one first, kept for next time" if calibrate else ""
    return io.Combo.Input(
        "if_missing",
        options=options,
        default=PLAIN,
        tooltip=f"no predictor for this model yet: plain runs the best plain solver known{fit}; error stops; "
        "untrained runs AMED's own solver without its constants",
        **more,
    )


def nfe_input(least: int = 1, **more: Any) -> Any:
    """Evaluations; `more`: the input's other fields."""
    said = "evaluations of the network, one after the other; with guidance each costs two passes"
    return io.Int.Input("nfe", **{"default": 8, "min": least, "max": 10_000, "tooltip": said} | more)


def cfg_input(**more: Any) -> Any:
    """The guidance scale of a run; `more`: the input's other fields."""
    said = "classifier-free guidance, the cfg of other samplers; 1 is none, and half the work"
    usual = {"default": 5.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": said}
    return io.Float.Input("guidance", **usual | more)


def denoise_input() -> Any:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="below 1 (img2img): begin with the given latent, on the lower part of the schedule",
    )


def scene_inputs(model: str, positive: str, negative: str, latent_image: str) -> list:
    """MODEL, prompts and a LATENT, each with its tooltip."""
    return [
        io.Model.Input("model", tooltip=model),
        io.Conditioning.Input("positive", tooltip=positive),
        io.Conditioning.Input("negative", tooltip=negative),
        io.Latent.Input("latent_image", tooltip=latent_image),
    ]


def shown_inputs(model: str, latent_image: str) -> list:
    """What a picture of sampling is made of."""
    return scene_inputs(model, "the prompt", "the negative prompt; unused at guidance 1", latent_image)


def fit_inputs() -> list:
    """What a fit is made for."""
    return scene_inputs(
        "with its LoRAs and patches, as you sample with it",
        "a prompt of the kind you use",
        "the negative prompt you use",
        "its size; the fit starts from noise",
    )


def guidance_input() -> Any:
    """The guidance scale a fit is for."""
    return cfg_input(tooltip="the cfg you will sample with; 1 is none")


def seed_input(
    tooltip: str = "of the noise that is fitted to; another seed gives another fit, about as good",
) -> Any:
    """A seed that stays. The page gives an INT called `seed` a widget that draws another after every run,
    unless this says otherwise: a fit is for keeps, and pictures are to be compared."""
    return io.Int.Input(
        "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip=tooltip
    )


CONTROLS = ("fixed", "increment", "decrement", "randomize")


def name_input(default: str, tooltip: str) -> Any:
    """What a fit is saved as."""
    return io.String.Input("name", default=default, tooltip=tooltip)


def checked_name(name: str) -> str:
    """A fit's name. Raises ValueError for what a workflow has there that was saved while the page still gave
    the seed such a widget: its value, one place too far."""
    if name in CONTROLS:
        raise ValueError(
            f"name is {name!r}, which an older version of this node kept for its seed: type the name again"
        )
    return name


def fit_outputs() -> list:
    """What a fit gives."""
    return [
        Predictor.Output(
            display_name="predictor", tooltip="to link into Apply AMED Predictor or AMED Sampler"
        ),
        io.Image.Output(display_name="report", tooltip="pictures and errors beside the plain solvers"),
        io.String.Output(display_name="text", tooltip="what was fitted, measured and saved"),
    ]
