"""Calibrations of a MODEL for the node Calibrate AMED and the option `calibrate now` of other nodes."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..amed.choose import AUTO
from ..amed.files.names import fit_file_name, name_part
from ..amed.fit import Job, Outcome, Progress, SavedFit, fit
from ..pictures import report
from .host.fitting import Prompts, prompted_denoiser, target_of
from .host.folders import user_folder
from .host.hooks import whole_guidance
from .host.model import identity, preview_pixels, sampling_of
from .host.nested import blank_sample, visible_part
from .host.outside import fit_sampler
from .host.running import progress_bar, show_text

BATCH = 8  # samples per call of the MODEL
INTERVAL = 2.0  # seconds between two pictures


class ProgressDisplay:
    """The progress of a calibration on its node: a bar, a picture and a line of text.

    The bar moves after every evaluation; picture and text change every few seconds.

    Args:
        to_rgb: function that converts latents to RGB images `[n, 3, H, W]` for the picture.
        node_id: id of the node that shows the progress; None: show it on no node.
        total: number of model evaluations in the whole calibration, for the bar."""

    def __init__(self, to_rgb: Callable[[Tensor], Tensor], node_id: str | None, total: int):
        self.to_rgb, self.node_id, self.bar = to_rgb, node_id, progress_bar(node_id, total)
        self.stage, self.drawn_at = ("", 0), -math.inf

    def __call__(self, progress: Progress) -> None:
        stage, now = (progress.stage, progress.nfe), time.monotonic()
        if stage == self.stage and now - self.drawn_at < INTERVAL and progress.text != report.DONE:
            self.bar(progress.evaluations)
            return
        self.stage, self.drawn_at = stage, now
        look = progress.preview()
        names = {"reference": "reference", "plain": "best plain", "fit": "AMED so far"}
        images = {names[k]: self.to_rgb(v[:1]) for k, v in look.images.items()}
        self.bar(progress.evaluations, report.live(progress, look, images))
        if self.node_id:
            share = progress.evaluations / progress.budget
            show_text(self.node_id, f"{share:.0%} done{report.time_left(progress.seconds)}: {progress.text}")


def calibrate(
    model: Any, prompts: Prompts, job: Job, name: str, node_id: str | None = None, wrapped: Any = None
) -> Outcome:
    """Fit predictors to a MODEL and save them.

    If the user interrupts, the finished predictors and the best so far of the current one are saved.

    Args:
        model: the MODEL.
        prompts: the prompts (CONDITIONING) and a LATENT of the image size to fit with.
        job: sampler, numbers of evaluations, guidance scale and other settings; one predictor is fitted for
            each number of evaluations.
        name: beginning of the predictor files' names.
        node_id: id of the node that shows the progress; None: show it on no node.
        wrapped: a SAMPLER of ComfyUI or another pack to improve with AMED-Plugin; None: fit the sampler named
            in `job`.

    Raises:
        ValueError: if the settings are not possible with this MODEL."""

    def path(nfe: int) -> Path:
        return user_folder() / fit_file_name(name, nfe, job.guidance, job.passes)

    for nfe in job.nfe:  # raises for a wrong name before the MODEL is loaded
        path(nfe)
    if job.passes is not None and (patches := whole_guidance(model.model_options)):
        raise ValueError(
            f"passes cannot be limited, because this MODEL has {', '.join(patches)}, which needs the results "
            "of both prompts (positive and negative) at every evaluation. Set passes to 0, or calibrate "
            "without that patch"
        )
    total = sum(settings.budget for settings in job.settings())
    display = ProgressDisplay(rgb_converter(model, prompts), node_id, total)
    outcome = Outcome()

    try:
        with prompted_denoiser(model, prompts, job.guidance, job.seed, max(job.nfe)) as denoiser:
            host = None if wrapped is None else fit_sampler(wrapped, denoiser, sampling_of(model))
            fit(target_of(model, denoiser), replace(job, host=host), path, display, outcome)
    finally:
        if outcome.text:
            if node_id:
                show_text(node_id, outcome.text)
            logging.info("AMED: %s", outcome.text)
    return outcome


def calibrate_now(
    model: Any, prompts: Prompts, sampler: str, nfe: int, guidance: float, node_id: str | None
) -> SavedFit:
    """Run a quick calibration for a node that found no predictor.

    The predictor is saved in models/amed_predictors, where nodes find it the next time."""
    model_identity = identity(model)
    job = Job((nfe,), "amed_multistep" if sampler == AUTO else sampler, guidance, "quick", batch=BATCH)
    checkpoint, sampler = model_identity.fingerprint[:8] or "unknown", job.sampler.removeprefix("amed_")
    name = f"{name_part(model_identity.family)}-{checkpoint}-{sampler}"
    return calibrate(model, prompts, job, name, node_id).fits[0]


def rgb_converter(model: Any, prompts: Prompts) -> Callable[[Tensor], Tensor]:
    """Return a function that converts sampled latents to rough RGB previews, without a VAE.

    Of latents that combine e.g. video and sound, it converts the video."""
    blank = blank_sample(model, prompts.latent)
    return lambda samples: preview_pixels(model, visible_part(blank, samples))
