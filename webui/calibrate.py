"""Calibrate: a predictor for the loaded checkpoint, fitted inside the host's own sampling by forward
evaluations only, saved under models/AMED and found by "auto" from then on."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from amed.files.store import saved_as
from amed.fit import Job, Outcome, Progress, Result, Target, fit, numbers
from amed.loop import Denoiser, Evaluation

from . import host, outside, report
from .evaluate import HostEvaluate
from .run import Wish
from .samplers import LABELS, Line, label_of, line_of

DEFAULT_PROMPTS = "a portrait photo of a woman\na landscape with mountains, oil painting\na red sports car"
MOST, LONGEST = 8, 120  # prompts; bytes of a checkpoint's name in a file's


@dataclass(frozen=True)
class Form:
    """What is calibrated, for the loaded checkpoint: prompts (best of the kind you use), size in pixels,
    sampler label, numbers of evaluations, CFG scale, budget of each, batch of the network, seed, name to save
    under ("" for the checkpoint's)."""

    prompts: list[str]
    negative: str = ""
    width: int = 512
    height: int = 512
    sampler: str = label_of("amed_multistep")
    nfe: tuple[int, ...] = (5,)
    guidance: float = 7.0
    budget: str | int = "quick"
    batch: int = 4
    seed: int = 0
    name: str = ""

    @classmethod
    def of(cls, filled: dict[str, Any]) -> "Form":
        """From the tab, or the API's JSON. Raises ValueError naming the field that will not do."""
        fields = dict(filled)
        prompts = fields.pop("prompts", DEFAULT_PROMPTS)
        lines = prompts.splitlines() if isinstance(prompts, str) else prompts
        lines = [str(line).strip() for line in lines if str(line).strip()]
        if not 1 <= len(lines) <= MOST:
            raise ValueError(f"prompts: give 1 to {MOST}, a line each; these are {len(lines)}")
        nfe = fields.pop("nfe", "5")
        parts = numbers(" ".join(map(str, nfe)) if isinstance(nfe, list | tuple) else str(nfe))
        known = {"negative": str, "width": int, "height": int, "sampler": str, "guidance": float,
                 "budget": str, "batch": int, "seed": int, "name": str}  # fmt: skip
        if unknown := set(fields) - set(known):
            raise ValueError(f"no such field: {', '.join(sorted(unknown))}; there are prompts, nfe, "
                             + ", ".join(known))  # fmt: skip
        try:
            form = cls(lines, nfe=parts, **{k: known[k](v) for k, v in fields.items()})
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a calibration: {error}") from None
        if line_of(form.sampler) is None and form.sampler not in outside.labels():
            raise ValueError(f"sampler is {form.sampler!r}: choose one of {', '.join(choices())}")
        for what in ("width", "height"):
            if not 64 <= getattr(form, what) <= 4096 or getattr(form, what) % 8:
                raise ValueError(f"{what} is {getattr(form, what)}: 64 to 4096 pixels, by eights")
        if not 0 < form.guidance <= 100 or not 1 <= form.batch <= 64:
            raise ValueError("guidance must be above 0 and at most 100, batch 1 to 64")
        form.job()
        return form

    @property
    def ours(self) -> Line:
        """The line that is fitted, or one of ours to sample with where it is a sampler of the host's."""
        return line_of(self.sampler) or line_of(label_of("amed_multistep"))

    @property
    def wrapped(self) -> bool:
        """Whether a sampler of the host's is fitted, from outside."""
        return line_of(self.sampler) is None

    def job(self) -> Job:
        """What amed.fit is asked for. Raises ValueError for what cannot be."""
        job = Job(self.nfe, self.ours.sampler, self.guidance, self.budget, self.seed, self.batch)
        job.settings()
        return job

    def file_name(self, nfe: int, checkpoint: str) -> str:
        """The file a fit is saved as: under the name given, or the checkpoint's and the sampler's. Raises
        ValueError for a name that is none."""
        sampler = self.sampler if self.wrapped else self.ours.sampler.removeprefix("amed_")
        own = re.sub(r"[^\w.+-]+", "-", f"{checkpoint}-{sampler}").strip("-.")  # what a file name can hold
        own = own.encode()[:LONGEST].decode(errors="ignore")
        return saved_as(self.name.strip() or own, nfe, self.guidance)


def choices() -> list[str]:
    """What can be fitted: our samplers, and the host's own."""
    return [*LABELS, *outside.labels()]


class OfPrompts:
    """The host's denoiser for samples of several prompts: `ask(x, sigma, prompt=)`, `prompt` `[B]` the
    number of each sample's prompt; and amed.loop.Evaluate for it, or for what calls it."""

    def __init__(self, denoiser: Any, extra_args: dict[str, Any]):
        self.denoiser, self.extra_args = denoiser, extra_args
        self.host = HostEvaluate(host.current_network, host.row_order())

    def __call__(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        self.denoiser.step = 0  # prompts with a schedule count steps: here all are as at the start
        return self.denoiser(x, sigma, **host.of_prompts(self.extra_args, prompt.tolist()))

    def evaluate(
        self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
    ) -> Evaluation:
        args = host.of_prompts(self.extra_args, extra_args["prompt"].tolist())
        return self.host.listened(lambda: model(x, sigma, **extra_args), self.denoiser, len(x), args, wants)


def target_of(form: Form, checkpoint: Any, denoiser: Any, x: Tensor, extra_args: dict) -> Target:
    """What is fitted to: the host's denoiser on noise like x `[B, C, H, W]`, each sample with one of the
    prompts."""
    low, high = host.sigma_range(denoiser.inner_model)
    scale, who = host.noise_scale(checkpoint, high), host.identity(checkpoint)
    ask = OfPrompts(denoiser, extra_args)

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn(count, *x.shape[1:], generator=generator) * scale
        prompt = torch.randint(len(form.prompts), (count,), generator=generator)
        return noise.to(x.device), {"prompt": prompt}

    return Target(
        ask, draw, low, high, host.prediction_type(checkpoint), who.family, who.fingerprint,
        host.checkpoint_name(checkpoint), ask.evaluate, signature=who.signature,
    )  # fmt: skip


@dataclass
class Calibrated(Outcome):
    """What came of it, with a picture of each fit."""

    pictures: list[Image.Image] = field(default_factory=list)

    @property
    def saved(self) -> list[str]:
        """The files' names."""
        return [kept.path.name for kept in self.fits]


def tell(progress: Progress) -> None:
    """A job's progress, where the host shows its own."""
    text = f"AMED, {progress.nfe} evaluations: {progress.text}"
    host.tell_progress(progress.evaluations, progress.budget, text)


def work(form: Form, checkpoint: Any, outcome: Calibrated) -> Callable[..., Tensor]:
    """What a Wish runs in place of sampling. An interruption keeps what was finished and the best so far."""
    name = host.checkpoint_name(checkpoint)
    names = {nfe: form.file_name(nfe, name) for nfe in form.nfe}  # before any work is done

    def calibrate(denoiser: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any) -> Tensor:
        target = target_of(form, checkpoint, denoiser, x, extra_args)
        try:
            with suppress(host.Interrupted):
                job = form.job()
                if form.wrapped:
                    job = replace(job, host=outside.host_sampler(form.sampler, denoiser))
                fit(target, job, lambda nfe: host.user_folder() / names[nfe], tell, outcome)
        finally:
            for kept in outcome.fits:
                host.warn(f"{kept.result.text}; {kept.text}")
        return torch.zeros_like(x)

    return calibrate


def calibrate(form: Form) -> Calibrated:
    """Fit, compare and save each number of evaluations. To be called where the host generates (its queue, its
    thread)."""
    outcome, checkpoint = Calibrated(), host.checkpoint()
    wish = Wish(calibrate=work(form, checkpoint, outcome))
    host.generate(
        form.ours.label,
        form.prompts,
        form.negative,
        (form.width, form.height),
        form.guidance,
        form.seed % 2**32,  # the host adds to it; what is fitted to is drawn from the whole seed
        wish,
    )
    outcome.pictures = [picture(kept.result) for kept in outcome.fits]
    return outcome


def picture(result: Result) -> Image.Image:
    """The report, with decoded samples."""
    plain_name = f"best plain\n{result.rows[1].solver}"
    named = {"reference": "reference", "fit": "AMED" if result.improved else "kept", "plain": plain_name}
    shown = {label: result.images[name][:4] for name, label in named.items()}
    return report.picture(result, {label: host.pixels(latents) for label, latents in shown.items()})


def started(form: Form) -> Calibrated:
    """`calibrate`, queued like a generation."""
    with host.the_gpu("AMED calibration"):
        return host.on_main_thread(calibrate, form)
