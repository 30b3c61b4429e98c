"""Calibrate: a predictor for the loaded checkpoint, fitted inside the host's own sampling by forward
evaluations only, saved under models/AMED and found by "auto" from then on."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from amed import plain, report, store
from amed.calibration import Calibration, References, Result, Settings, budget_of, numbers

from . import host
from .run import Job
from .samplers import ENTRIES, entry_of

DEFAULT_PROMPTS = "a portrait photo of a woman\na landscape with mountains, oil painting\na red sports car"
MOST = 8  # prompts


@dataclass(frozen=True)
class Request:
    """What is calibrated, for the loaded checkpoint: prompts (best of the kind you use), size in pixels,
    sampler label, numbers of evaluations, CFG scale, budget of each, batch of the network, seed, name to save
    under ("" for the checkpoint's)."""

    prompts: list[str]
    negative: str = ""
    width: int = 512
    height: int = 512
    sampler: str = ENTRIES[-1].label
    nfe: tuple[int, ...] = (5,)
    guidance: float = 7.0
    budget: str | int = "quick"
    batch: int = 4
    seed: int = 0
    name: str = ""

    @classmethod
    def of(cls, told: dict[str, Any]) -> "Request":
        """From the tab, or the API's JSON. Raises ValueError naming the field that will not do."""
        fields = dict(told)
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
            request = cls(lines, nfe=parts, **{k: known[k](v) for k, v in fields.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a calibration: {error}") from None
        if entry_of(request.sampler) is None:
            raise ValueError(f"sampler is {request.sampler!r}: choose one of "
                             + ", ".join(e.label for e in ENTRIES))  # fmt: skip
        for what in ("width", "height"):
            if not 64 <= getattr(request, what) <= 4096 or getattr(request, what) % 8:
                raise ValueError(f"{what} is {getattr(request, what)}: 64 to 4096 pixels, by eights")
        if not 0 < request.guidance <= 100 or not 1 <= request.batch <= 64:
            raise ValueError("guidance must be above 0 and at most 100, batch 1 to 64")
        for one in request.nfe:
            budget_of(request.budget, one)
        return request


@dataclass
class Outcome:
    """What came of it: files saved, their results, a picture of each; whether it was interrupted."""

    saved: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    interrupted: bool = False

    @property
    def text(self) -> str:
        told = [result.table(name) for result, name in zip(self.results, self.saved)]
        if self.interrupted:
            kept = "the best so far is kept." if self.saved else "too early: nothing was saved."
            told.append(f"Interrupted: {kept}")
        return "\n\n".join(told)


class Prompted:
    """The host's denoiser for samples of several prompts: `prompted(x, sigma, prompt=)`, `prompt` `[B]` the
    number of each sample's prompt."""

    def __init__(self, model: Any, extra_args: dict[str, Any]):
        self.model, self.extra_args = model, extra_args

    def __call__(self, x: Tensor, sigma: Tensor, prompt: Tensor, factor: float = 1.0) -> Tensor:
        self.model.step = 0  # prompts with a schedule count steps: here all are as at the start
        args = host.of_prompts(self.extra_args, prompt.tolist())
        if factor != 1:
            return host.guide(self.model, x, sigma, args, factor)
        return self.model(x, sigma, **args)


def guide(model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], factor: float) -> Tensor:
    """amed.sampling.Guide for Prompted."""
    return model(x, sigma, **extra_args, factor=factor)


def settings_of(request: Request, model: Any, ends: tuple[float, float], nfe: int) -> Settings:
    who, kind = host.identity(model), host.prediction_type(model)
    flow = kind == "flow"
    return Settings(
        nfe, *ends, entry_of(request.sampler).sampler, budget_of(request.budget, nfe), request.guidance,
        afs=not flow, seed=request.seed, batch=request.batch,
        kinds=plain.FLOW_SCHEDULES if flow else plain.SCHEDULES, prediction_type=kind,
        model_family=who.family, model_fingerprint=who.fingerprint, model_name=host.checkpoint_name(model),
    )  # fmt: skip


def file_stem(request: Request, model: Any) -> str:
    """The name given, or the checkpoint's and the sampler's. What a file name cannot hold is left out."""
    sampler = entry_of(request.sampler).sampler.removeprefix("amed_")
    own = re.sub(r"[^\w.+-]+", "-", f"{host.checkpoint_name(model)}-{sampler}").strip("-.")
    return request.name.strip() or own


def work(request: Request, checkpoint: Any, outcome: Outcome) -> Callable[..., Tensor]:
    """What a Job runs in place of sampling. An interruption keeps what was finished and the best so far."""
    stem = file_stem(request, checkpoint)
    for nfe in request.nfe:  # before any work is done
        store.saved_as(stem, nfe, request.guidance)

    def calibrate(denoiser: Any, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Any) -> Tensor:
        wrap = denoiser.inner_model
        ends = host.sigma_range(wrap)
        settings = [settings_of(request, checkpoint, ends, nfe) for nfe in request.nfe]
        total, before = sum(one.budget for one in settings), 0
        scale, prompts = host.noise_scale(checkpoint, ends[1]), len(request.prompts)

        def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict]:
            noise = torch.randn(count, *x.shape[1:], generator=generator) * scale
            numbers = torch.randint(prompts, (count,), generator=generator)
            return noise.to(x.device), {"prompt": numbers}

        def keep(calibration: Calibration, one: Settings) -> None:
            result = calibration.result()
            path = host.user_folder() / store.saved_as(stem, one.nfe, request.guidance)
            store.save(path, result.fitted)
            outcome.saved.append(path.name)
            outcome.results.append(replace(result, fitted=replace(result.fitted, name=path.name)))
            host.warn(f"{result.text}; saved as {path}")

        ask = Prompted(denoiser, extra_args)
        references = References(ask, draw, settings[0])
        for one in settings:
            calibration = Calibration(ask, draw, one, references=references, guide=guide)
            try:
                for progress in calibration.run():
                    told = f"AMED, {one.nfe} evaluations: {progress.text}"
                    host.tell_progress(before + progress.evaluations, total, told)
            except host.Interrupted:
                outcome.interrupted = True
                if calibration.ready:
                    keep(calibration, one)
                return torch.zeros_like(x)
            keep(calibration, one)
            before += one.budget
        return torch.zeros_like(x)

    return calibrate


def calibrate(request: Request) -> Outcome:
    """Fit, compare and save each number of evaluations. To be called where the host generates (its queue, its
    thread)."""
    outcome = Outcome()
    checkpoint = host.checkpoint()
    job = Job(calibrate=work(request, checkpoint, outcome))
    host.generate(
        request.sampler, request.prompts, request.negative, (request.width, request.height), request.guidance,
        request.seed, job,
    )  # fmt: skip
    outcome.pictures = [picture(result) for result in outcome.results]
    return outcome


def picture(result: Result) -> Image.Image:
    """The report, with decoded samples."""
    plain_name = f"best plain\n{result.rows[1].solver}"
    named = {"reference": "reference", "fit": "AMED" if result.improved else "kept", "plain": plain_name}
    shown = {told: result.images[name][:4] for name, told in named.items()}
    return report.picture(result, {name: host.pixels(latents) for name, latents in shown.items()})


def started(request: Request) -> Outcome:
    """`calibrate`, queued like a generation."""
    with host.the_gpu("AMED calibration"):
        return host.on_main_thread(calibrate, request)
