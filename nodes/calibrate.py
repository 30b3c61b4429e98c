"""Calibrate AMED: a predictor for this MODEL, by forward evaluations only."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..amed import SAMPLERS
from ..amed.choose import AUTO
from ..amed.files.store import as_name, saved_as
from ..amed.fit import PRESETS, Job, Outcome, Progress, Result, SavedFit, fit, numbers
from ..hosts import report
from .fitting import Prompts, fitted_on, target_of
from .folders import user_folder
from .model import identity, preview_pixels, sampling_of, whole_guidance
from .nested import blank_of, first_part
from .outside import host_sampler
from .running import face, progress_bar, show_text
from .schema import checked_name, fit_inputs, fit_outputs, guidance_input, name_input, schema, seed_input

MORE = tuple(f"positive_{i}" for i in (2, 3, 4))
BATCH = 8  # samples in one call of the MODEL
DRAWN = 2.0  # seconds between two pictures


class Shown:
    """What a node shows of a calibration: its bar after every evaluation; a picture, and a line of text, when
    a stage begins and then every DRAWN seconds. pixels: what turns samples into RGB."""

    def __init__(self, pixels: Callable[[Tensor], Tensor], node_id: str | None, total: int):
        self.pixels, self.node_id, self.bar = pixels, node_id, progress_bar(node_id, total)
        self.stage, self.drawn = ("", 0), -math.inf

    def __call__(self, progress: Progress) -> None:
        stage, now = (progress.stage, progress.nfe), time.monotonic()
        if stage == self.stage and now - self.drawn < DRAWN and progress.text != report.DONE:
            self.bar(progress.evaluations)
            return
        self.stage, self.drawn = stage, now
        look = progress.preview()
        names = {"reference": "reference", "plain": "best plain", "fit": "AMED so far"}
        shown = {names[k]: self.pixels(v[:1]) for k, v in look.images.items()}
        self.bar(progress.evaluations, report.live(progress, look, shown))
        if self.node_id:
            share = progress.evaluations / progress.budget
            show_text(self.node_id, f"{share:.0%} done{report.left(progress.seconds)}: {progress.text}")


def calibrate(
    model: Any, prompts: Prompts, job: Job, name: str, node_id: str | None = None, wrapped: Any = None
) -> Outcome:
    """Fit and keep each number of evaluations of a job, as amed.fit does; wrapped: a SAMPLER of the host's
    or another pack's, to which AMED-Plugin is fitted from outside in place of a sampler of ours. What is
    finished when the user interrupts, and the best so far of the one under way, is saved. Raises ValueError
    for what cannot be."""

    def path(nfe: int) -> Path:
        return user_folder() / saved_as(name, nfe, job.guidance, job.passes)

    for nfe in job.nfe:  # before the MODEL is loaded
        path(nfe)
    if job.passes is not None and (patches := whole_guidance(model.model_options)):
        wrong = f"passes: this MODEL has {', '.join(patches)} on its guided result, so guidance stays whole"
        raise ValueError(f"{wrong}. Set passes to 0, or calibrate without that patch")
    shown = Shown(pixels_of(model, prompts), node_id, sum(one.budget for one in job.settings()))
    outcome = Outcome()

    try:
        with fitted_on(model, prompts, job.guidance, job.seed, max(job.nfe)) as denoiser:
            host = None if wrapped is None else host_sampler(wrapped, denoiser, sampling_of(model))
            fit(target_of(model, denoiser), replace(job, host=host), path, shown, outcome)
    finally:
        if outcome.text:
            if node_id:
                show_text(node_id, outcome.text)
            logging.info("AMED: %s", outcome.text)
    return outcome


def calibrate_now(
    model: Any, prompts: Prompts, sampler: str, nfe: int, guidance: float, node_id: str | None
) -> SavedFit:
    """A quick calibration because there is none yet; saved under the checkpoint's own name, found the next
    time."""
    who = identity(model)
    job = Job((nfe,), "amed_multistep" if sampler == AUTO else sampler, guidance, "quick", batch=BATCH)
    whose, sampler = who.fingerprint[:8] or "unknown", job.sampler.removeprefix("amed_")
    name = f"{as_name(who.family)}-{whose}-{sampler}"
    return calibrate(model, prompts, job, name, node_id).fits[0]


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
        images = reports(pixels_of(model, prompts), [kept.result for kept in outcome.fits])
        return io.NodeOutput(
            outcome.fits[0].fitted, images, outcome.text, ui=face(cls.hidden.unique_id, outcome.text)
        )


def pixels_of(model: Any, prompts: Prompts) -> Callable[[Tensor], Tensor]:
    """What turns the samples of a fit into rough RGB; of nested ones the first part."""
    one = blank_of(model, prompts.latent)
    return lambda samples: preview_pixels(model, first_part(one, samples))


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


NODES = [Calibrate]
