"""Calibrations of a MODEL, by forward evaluations only: for Calibrate AMED, and for `calibrate now`."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..amed.choose import AUTO
from ..amed.files.store import as_name, saved_as
from ..amed.fit import Job, Kept, Outcome, Progress, fit
from ..hosts import report
from .host.fitting import Prompts, fitted_on, target_of
from .host.folders import user_folder
from .host.hooks import whole_guidance
from .host.model import identity, preview_pixels, sampling_of
from .host.nested import blank_of, first_part
from .host.outside import host_sampler
from .host.running import progress_bar, show_text

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
        look = progress.look()
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
) -> Kept:
    """A quick calibration because there is none yet; saved under the checkpoint's own name, found the next
    time."""
    who = identity(model)
    job = Job((nfe,), "amed_multistep" if sampler == AUTO else sampler, guidance, "quick", batch=BATCH)
    whose, sampler = who.fingerprint[:8] or "unknown", job.sampler.removeprefix("amed_")
    name = f"{as_name(who.family)}-{whose}-{sampler}"
    return calibrate(model, prompts, job, name, node_id).kept[0]


def pixels_of(model: Any, prompts: Prompts) -> Callable[[Tensor], Tensor]:
    """What turns the samples of a fit into rough RGB; of nested ones the first part."""
    one = blank_of(model, prompts.latent)
    return lambda samples: preview_pixels(model, first_part(one, samples))
