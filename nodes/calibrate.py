"""The node Calibrate AMED."""

from collections.abc import Callable

import torch
from comfy_api.latest import io
from torch import Tensor

from ..amed import SAMPLERS
from ..amed.fit import PRESETS, Job, Result, numbers
from ..hosts import report
from .calibration import BATCH, calibrate, pixels_of
from .host.fitting import Prompts
from .host.running import face
from .schema import checked_name, fit_inputs, fit_outputs, guidance_input, name_input, schema, seed_input

MORE = tuple(f"positive_{i}" for i in (2, 3, 4))


class Calibrate(io.ComfyNode):
    """MODEL, prompts, LATENT size -> AMED_PREDICTOR, saved and found by `auto` from then on."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDCalibrate",
            display_name="Calibrate AMED",
            search_aliases=["amed", "calibrate", "fit predictor", "few steps"],
            description="Fit a few dozen constants to this model, by sampling only: better images at few "
            "evaluations. Saved under models/amed_predictors and found by auto from then on.",
            inputs=[
                *fit_inputs(),
                io.Combo.Input("sampler", options=list(SAMPLERS), default="amed_multistep",
                               tooltip="amed_multistep is the best there is; the others are the paper's"),
                io.String.Input("nfe", default="8", tooltip="evaluations; several in one run: 5, 7, 9"),
                guidance_input(),
                io.Combo.Input("budget", options=[*PRESETS, "custom"], default="quick",
                               tooltip=", ".join(f"{k}: {v}" for k, v in PRESETS.items()) + " evaluations"),
                io.Int.Input("evaluations", default=PRESETS["quick"], min=1000, max=1_000_000, step=100,
                             tooltip="the budget if it is custom"),
                seed_input(),
                name_input("calibrated", "files are NAME-nfe5-cfg1.safetensors"),
                *(io.Conditioning.Input(n, optional=True, tooltip="another prompt to fit to") for n in MORE),
                io.Int.Input("passes", default=0, min=0, max=200, optional=True,
                             tooltip="network passes an image, with guidance: fewer than two an evaluation "
                             "leave the negative half out of some. 0: two each"),
                io.Sampler.Input("wrapped", optional=True,
                                 tooltip="a SAMPLER of ComfyUI or another pack that is to get better at few "
                                 "steps, in place of `sampler`"),
            ],
            outputs=fit_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        sampler,
        nfe,
        guidance,
        budget,
        evaluations,
        seed,
        name,
        **more,
    ):
        positives = [positive, *(more[key] for key in MORE if more.get(key) is not None)]
        budget = evaluations if budget == "custom" else budget
        job = Job(numbers(nfe), sampler, guidance, budget, seed, BATCH, more.get("passes") or None)
        prompts = Prompts(positives, negative, latent_image)
        outcome = calibrate(
            model, prompts, job, checked_name(name), cls.hidden.unique_id, more.get("wrapped")
        )
        images = reports(pixels_of(model, prompts), [kept.result for kept in outcome.kept])
        return io.NodeOutput(
            outcome.kept[0].fitted, images, outcome.text, ui=face(cls.hidden.unique_id, outcome.text)
        )


def reports(pixels: Callable[[Tensor], Tensor], results: list[Result]) -> torch.Tensor:
    """The pictures of calibrations, as an IMAGE."""
    images = [report.as_image(report.picture(result, pictures(pixels, result))) for result in results]
    high = max(image.shape[1] for image in images)
    return torch.cat(
        [torch.nn.functional.pad(i, (0, 0, 0, 0, 0, high - i.shape[1]), value=1.0) for i in images]
    )


def pictures(pixels: Callable[[Tensor], Tensor], result: Result) -> dict[str, torch.Tensor]:
    """Rows of the sample grid, each with its name."""
    labels = {
        "reference": "reference",
        "fit": "AMED" if result.improved else "kept",
        "plain": f"best plain\n{result.rows[1].solver}",
    }
    return {label: pixels(result.images[name][: report.SAMPLES]) for name, label in labels.items()}
