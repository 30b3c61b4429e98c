"""The node Calibrate AMED."""

from collections.abc import Callable

import torch
from comfy_api.latest import io
from torch import Tensor

from ..amed import SAMPLERS
from ..amed.fit import PRESETS, Job, Result, numbers
from ..pictures import report
from .calibration import BATCH, calibrate, rgb_converter
from .host.fitting import Prompts
from .host.running import text_ui
from .schema import checked_name, fit_inputs, fit_outputs, guidance_input, name_input, schema, seed_input

MORE = tuple(f"positive_{i}" for i in (2, 3, 4))  # inputs for additional prompts


class Calibrate(io.ComfyNode):
    """Fit predictors to a MODEL and the linked prompts, by sampling, and save them."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDCalibrate",
            display_name="Calibrate AMED",
            search_aliases=["amed", "calibrate", "fit predictor", "few steps"],
            description="Fit a predictor (a few dozen solver constants) to this model, by sampling only, for "
            "better images at few evaluations. It is saved in models/amed_predictors, where nodes set to "
            "auto find it.",
            inputs=[
                *fit_inputs(),
                io.Combo.Input("sampler", options=list(SAMPLERS), default="amed_multistep",
                               tooltip="The sampler to fit. amed_multistep gives the best images; the others "
                               "are the paper's."),
                io.String.Input("nfe", default="8",
                                tooltip="Number of evaluations to fit for. Several in one run: 5, 7, 9."),
                guidance_input(),
                io.Combo.Input("budget", options=[*PRESETS, "custom"], default="quick",
                               tooltip="How many evaluations the fit may use: "
                               + ", ".join(f"{name} {count}" for name, count in PRESETS.items())
                               + ". custom: as `evaluations` says."),
                io.Int.Input("evaluations", default=PRESETS["quick"], min=1000, max=1_000_000, step=100,
                             tooltip="How many evaluations the fit may use if budget is custom."),
                seed_input(),
                name_input("calibrated", "Beginning of the saved files' names: NAME-nfe5-cfg1.safetensors."),
                *(
                    io.Conditioning.Input(n, optional=True, tooltip="Another prompt of the kind you use. "
                                                                    "The fit uses all prompts.")
                    for n in MORE
                ),
                io.Int.Input("passes", default=0, min=0, max=200, optional=True,
                             tooltip="Network passes per image, with guidance. Fewer than two per "
                             "evaluation: some evaluations skip the negative prompt. 0: two per evaluation."),
                io.Sampler.Input("wrapped", optional=True,
                                 tooltip="A SAMPLER of ComfyUI or another pack to improve at few steps, in "
                                 "place of `sampler`."),
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
        images = report_images(rgb_converter(model, prompts), [saved.result for saved in outcome.fits])
        return io.NodeOutput(
            outcome.fits[0].fitted, images, outcome.text, ui=text_ui(cls.hidden.unique_id, outcome.text)
        )


def report_images(to_rgb: Callable[[Tensor], Tensor], results: list[Result]) -> torch.Tensor:
    """Draw the report of each calibration, and return them as an IMAGE `[n, H, W, 3]` of the same height."""
    images = [report.as_image(report.calibration(result, sample_rows(to_rgb, result))) for result in results]
    high = max(image.shape[1] for image in images)
    return torch.cat(
        [torch.nn.functional.pad(i, (0, 0, 0, 0, 0, high - i.shape[1]), value=1.0) for i in images]
    )


def sample_rows(to_rgb: Callable[[Tensor], Tensor], result: Result) -> dict[str, torch.Tensor]:
    """Return RGB sample images for a calibration's report, by solver: reference, AMED, best plain solver."""
    labels = {
        "reference": "reference",
        "fit": "AMED" if result.improved else "kept",
        "plain": f"best plain\n{result.rows[1].solver}",
    }
    return {label: to_rgb(result.images[name][: report.MAX_SAMPLES]) for name, label in labels.items()}
