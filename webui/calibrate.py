"""Calibration: fits a predictor to the loaded checkpoint during a generation of the WebUI.

It needs only evaluations of the model. The predictor is saved in models/AMED, where "auto" finds it."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from amed_pictures import report
from PIL import Image
from torch import Tensor

from amed.files.names import fit_file_name
from amed.fit import Job, Outcome, Progress, Result, Target, fit, numbers
from amed.loop import Denoiser, Evaluation

from . import host, host_samplers
from .evaluate import HostEvaluate
from .run import GenerationSettings
from .samplers import LABELS, SamplerEntry, entry_of, label_of

DEFAULT_PROMPTS = "a portrait photo of a woman\na landscape with mountains, oil painting\na red sports car"
MAX_PROMPTS = 8
MAX_NAME_BYTES = 120  # length of a file name that is made from the checkpoint's


@dataclass(frozen=True)
class Form:
    """The settings of a calibration, from the WebUI's AMED tab or from a request POST /amed/calibrate."""

    prompts: list[str]  # 1 to 8 prompts
    negative: str = ""  # negative prompt
    width: int = 512  # pixels, a multiple of 8
    height: int = 512  # pixels, a multiple of 8
    sampler: str = label_of("amed_multistep")  # label: an AMED sampler or one of the WebUI's
    nfe: tuple[int, ...] = (5,)  # evaluations per image; one predictor is fitted for each number
    guidance: float = 7.0  # CFG scale
    budget: str | int = "quick"  # evaluations that each fit may use, or a name of amed.fit.PRESETS
    batch: int = 4  # images per evaluation
    seed: int = 0
    name: str = ""  # name of the saved files; "": made from the checkpoint and the sampler

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Form":
        """Read and check the settings from the AMED tab or an API request; absent ones get their defaults.

        Raises ValueError, with the setting's name, for an unknown setting or a value that is not possible."""
        fields = dict(given)
        prompts = fields.pop("prompts", DEFAULT_PROMPTS)
        lines = prompts.splitlines() if isinstance(prompts, str) else prompts
        lines = [str(line).strip() for line in lines if str(line).strip()]
        if not 1 <= len(lines) <= MAX_PROMPTS:
            raise ValueError(f"prompts: give 1 to {MAX_PROMPTS}, one per line (got {len(lines)})")
        nfe = fields.pop("nfe", "5")
        parts = numbers(" ".join(map(str, nfe)) if isinstance(nfe, list | tuple) else str(nfe))
        known = {"negative": str, "width": int, "height": int, "sampler": str, "guidance": float,
                 "budget": str, "batch": int, "seed": int, "name": str}  # fmt: skip
        if unknown := set(fields) - set(known):
            raise ValueError(
                f"unknown fields: {', '.join(sorted(unknown))}. Use prompts, nfe, {', '.join(known)}"
            )
        values = {}
        for field_name, value in fields.items():
            kind = known[field_name]
            try:
                values[field_name] = kind(value)
            except (TypeError, ValueError, OverflowError):
                kind_of_number = "whole number" if kind is int else "number"
                raise ValueError(f"{field_name} is {value!r}: give a {kind_of_number}") from None
        form = cls(lines, nfe=parts, **values)
        if entry_of(form.sampler) is None and form.sampler not in host_samplers.labels():
            raise ValueError(f"sampler is {form.sampler!r}: choose one of {', '.join(choices())}")
        for side, pixels in (("width", form.width), ("height", form.height)):
            if not 64 <= pixels <= 4096 or pixels % 8:
                raise ValueError(f"{side} is {pixels}: give a multiple of 8 pixels from 64 to 4096")
        if not 0 < form.guidance <= 100 or not 1 <= form.batch <= 64:
            raise ValueError(
                f"guidance is {form.guidance:g} and batch {form.batch}: give a guidance above 0 and at most "
                "100, and a batch of 1 to 64"
            )
        form.job()
        return form

    @property
    def entry(self) -> SamplerEntry:
        """The selected AMED sampler; AMED Multistep if one of the WebUI's own samplers is selected."""
        return entry_of(self.sampler) or entry_of(label_of("amed_multistep"))

    @property
    def is_host_sampler(self) -> bool:
        """Whether one of the WebUI's own samplers is selected, not one of AMED's."""
        return entry_of(self.sampler) is None

    def job(self) -> Job:
        """Return the calibration's settings as an amed.fit.Job. Raises ValueError if one is out of range."""
        job = Job(self.nfe, self.entry.sampler, self.guidance, self.budget, self.seed, self.batch)
        job.settings()
        return job

    def file_name(self, nfe: int, checkpoint: str) -> str:
        """Return the name of the predictor file fitted at `nfe` evaluations per image.

        It begins with the user's name for it or, if there is none, with the checkpoint's and the sampler's.
        Raises ValueError if the user's name is not a valid file name."""
        sampler = self.sampler if self.is_host_sampler else self.entry.sampler.removeprefix("amed_")
        default = re.sub(r"[^\w.+-]+", "-", f"{checkpoint}-{sampler}").strip("-.")
        default = default.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        return fit_file_name(self.name.strip() or default, nfe, self.guidance)


def choices() -> list[str]:
    """Return the labels of all samplers that a predictor can be fitted for: AMED's, then the WebUI's."""
    return [*LABELS, *host_samplers.labels()]


class PromptDenoiser:
    """The WebUI's denoiser for a batch whose samples have different prompts.

    It is called as `denoiser(x, sigma, prompt=numbers)`, where `numbers` `[B]` has the index of each sample's
    prompt in the list of prompts.

    Args:
        denoiser: the WebUI's CFGDenoiser.
        extra_args: the arguments that the WebUI gives it for a batch with one sample per prompt, in the order
            of the list."""

    def __init__(self, denoiser: Any, extra_args: dict[str, Any]):
        self.denoiser, self.extra_args = denoiser, extra_args
        self.host = HostEvaluate(host.current_network, host.row_order())

    def __call__(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        self.denoiser.step = 0  # scheduled prompts ([a:b:0.5]) change with the step: use them as at the start
        return self.denoiser(x, sigma, **host.args_for_prompts(self.extra_args, prompt.tolist()))

    def evaluate(
        self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
    ) -> Evaluation:
        """Evaluate the model once, for samples with different prompts (an amed.loop.Evaluate).

        Args:
            model: this PromptDenoiser, or a wrapper that calls it.
            extra_args: has as `prompt` `[B]` the index of each sample's prompt in the list of prompts.
            wants: additional outputs: "bottleneck" (the output of the U-Net's middle block), "halves" (the
                results of the prompt and of the negative prompt alone)."""
        args = host.args_for_prompts(self.extra_args, extra_args["prompt"].tolist())
        return self.host.record(lambda: model(x, sigma, **extra_args), self.denoiser, len(x), args, wants)


def make_target(form: Form, checkpoint: Any, denoiser: Any, x: Tensor, extra_args: dict) -> Target:
    """Describe the WebUI's model for a calibration (as an amed.fit.Target): how to call it and draw noise.

    Args:
        x: a batch `[B, C, H, W]`; the noise of each sample has the shape `[C, H, W]`.
        extra_args: the WebUI's arguments for a batch with one sample per prompt. Each sample of the
            calibration gets a random one of these prompts."""
    low, high = host.sigma_range(denoiser.inner_model)
    scale, identity = host.noise_scale(checkpoint, high), host.identity(checkpoint)
    model = PromptDenoiser(denoiser, extra_args)

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn(count, *x.shape[1:], generator=generator) * scale
        prompt = torch.randint(len(form.prompts), (count,), generator=generator)
        return noise.to(x.device), {"prompt": prompt}

    return Target(
        model, draw, low, high, host.prediction_type(checkpoint), identity.family, identity.fingerprint,
        host.checkpoint_name(checkpoint), model.evaluate, signature=identity.signature,
    )  # fmt: skip


@dataclass
class CalibrationOutcome(Outcome):
    """The saved predictors of a calibration, with a picture of the report for each."""

    pictures: list[Image.Image] = field(default_factory=list)  # the report of each fit

    @property
    def saved(self) -> list[str]:
        """The names of the saved predictor files."""
        return [saved.path.name for saved in self.fits]


def show_progress(progress: Progress) -> None:
    """Show the progress of a fit in the WebUI's progress bar."""
    text = f"AMED, {progress.nfe} evaluations: {progress.text}"
    host.set_progress(progress.evaluations, progress.budget, text)


def fit_function(form: Form, checkpoint: Any, outcome: CalibrationOutcome) -> Callable[..., Tensor]:
    """Return a function that calibrates; the WebUI calls it in place of a sampler.

    It fits a predictor for each number of evaluations in `form` and adds it to `outcome`. After an
    interruption, the finished fits and the best unfinished one are saved. Raises ValueError if the user's
    name for the predictors is not a valid file name."""
    name = host.checkpoint_name(checkpoint)
    names = {nfe: form.file_name(nfe, name) for nfe in form.nfe}  # raises before any evaluation is made

    def calibrate(denoiser: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any) -> Tensor:
        target = make_target(form, checkpoint, denoiser, x, extra_args)
        try:
            with suppress(host.Interrupted):
                job = form.job()
                if form.is_host_sampler:
                    job = replace(job, host=host_samplers.host_sampler(form.sampler, denoiser))
                fit(target, job, lambda nfe: host.user_folder() / names[nfe], show_progress, outcome)
        finally:
            for saved in outcome.fits:
                host.warn(f"{saved.result.text}; {saved.text}")
        return torch.zeros_like(x)

    return calibrate


def calibrate(form: Form) -> CalibrationOutcome:
    """Fit and save a predictor for each number of evaluations that the user gave; draw a report of each.

    Must run in the WebUI's queue and on its thread for generations (see `calibrate_in_queue`)."""
    outcome, checkpoint = CalibrationOutcome(), host.checkpoint()
    settings = GenerationSettings(calibrate=fit_function(form, checkpoint, outcome))
    host.generate(
        form.entry.label,
        form.prompts,
        form.negative,
        (form.width, form.height),
        form.guidance,
        form.seed % 2**32,  # the WebUI's limit; the fit draws its noise with the whole seed
        settings,
    )
    outcome.pictures = [report_picture(saved.result) for saved in outcome.fits]
    return outcome


def report_picture(result: Result) -> Image.Image:
    """Draw the report of one fit, with samples decoded by the checkpoint's VAE."""
    plain_name = f"best plain\n{result.rows[1].solver}"
    labels = {"reference": "reference", "fit": "AMED" if result.improved else "kept", "plain": plain_name}
    samples = {label: result.images[name][:4] for name, label in labels.items()}
    return report.calibration(result, {label: host.decode(latents) for label, latents in samples.items()})


def calibrate_in_queue(form: Form) -> CalibrationOutcome:
    """Fit a predictor to the loaded checkpoint, after waiting in the WebUI's queue as a generation does."""
    with host.gpu_queue("AMED calibration"):
        return host.on_main_thread(calibrate, form)
