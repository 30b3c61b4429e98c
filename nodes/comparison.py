"""What the node Compare AMED runs: the setting of each sampler, and the measurements."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from ..amed import Fitted, PredictorError
from ..amed.choose import Choice, choose, preferred, usable
from ..amed.fit.measures import rmse
from ..amed.fit.plain_solvers import Setting
from .choice.fingerprint import remember
from .host.counting import COUNT, counting, read_count
from .host.folders import library
from .host.hooks import without_hooks
from .host.model import Interrupted, applied_predictor, is_flow, network_space, preview_pixels, sampling_of
from .host.nested import joined_like, packed, parts_of, visible_part
from .host.register import amed_sampler, as_sampler, ksampler_setting
from .host.request import plain_choice, reference_setting, request
from .host.running import run
from .host.sampling import plain_function
from .sampler_list import OWN_SAMPLERS, PLAIN, REFERENCE, Entry

LONGEST = 240  # characters of a note


@dataclass(frozen=True)
class Plan:
    """The SAMPLER and SIGMAS with which one sampler of a comparison runs."""

    sampler: Any  # a SAMPLER
    sigmas: Tensor  # SIGMAS
    setting: str  # name of the setting, e.g. of the scheduler or the predictor
    note: str = ""


@dataclass
class Measured:
    """The results of one compared sampler at one number of evaluations: images and measurements."""

    entry: Entry
    nfe: int  # requested evaluations
    setting: str = ""
    steps: int = 0
    note: str = ""  # remarks; if there are no images, the reason
    images: list[Tensor] | None = None  # the final states, packed, each [1, ...]
    pixels: Tensor | None = None  # the images [n, 3, H, W], uint8; None if the sampler failed
    evaluations: float = 0.0  # counted per image
    passes: float = 0.0  # network passes, counted per image
    seconds: float = 0.0  # median per image
    distance: float = math.nan  # mean RMSE to the reference; nan without a reference


@dataclass(frozen=True)
class Scene:
    """The model, prompts, latents and seeds, which are the same for all samplers of a comparison."""

    model: Any  # a counting MODEL
    positive: list  # CONDITIONING
    negative: list  # CONDITIONING
    latent: dict  # LATENT; of a batch, each image uses the next sample
    guidance: float
    first: int  # seed of the first image
    count: int  # number of images
    vae: Any = None  # decodes the images; None: previews

    @property
    def seeds(self) -> list[int]:
        return [(self.first + number) % 2**64 for number in range(self.count)]

    def start(self, number: int) -> dict:
        """Return the LATENT (a batch of one) from which image `number` (from 0) is sampled."""
        size = len(parts_of(self.latent["samples"])[0])
        parts = {}
        for name in ("samples", "noise_mask"):
            value = self.latent.get(name)
            if value is not None:
                of_batch = [v[[number % size]] if len(v) == size else v for v in parts_of(value)]
                parts[name] = joined_like(value, of_batch)
        return {k: v for k, v in self.latent.items() if k != "batch_index"} | parts

    def sample(self, plan: Plan, number: int) -> Any:
        """Sample image `number` (from 0) with a SAMPLER and SIGMAS (`plan`); return its latent."""
        arguments = self.guidance, self.positive, self.negative, self.start(number)
        seed = self.seeds[number]
        return run(self.model, plan.sampler, plan.sigmas, seed, *arguments, quiet=True)["samples"]

    def pixels(self, samples: Any) -> Tensor:
        """Decode one image to `[3, H, W]`, uint8.

        Of a video, the first frame is returned."""
        if self.vae is None:
            latents = visible_part(samples, network_space(self.model, packed(samples)))
            values = preview_pixels(self.model, latents)[0] / 2 + 0.5
        else:
            decoded = self.vae.decode(parts_of(samples)[0])
            values = decoded.flatten(0, -4)[0, ..., :3].movedim(-1, 0)  # of a video the first frame
        return (values.float().cpu().clamp(0, 1) * 255).round().byte()


# --- plans -------------------------------------------------------------------------------------------------


def plan_row(scene: Scene, entry: Entry, nfe: int) -> Plan:
    """Return the SAMPLER and SIGMAS with which a compared sampler runs at `nfe` evaluations.

    Raises ValueError if the sampler cannot run at `nfe` evaluations."""
    if entry.sampler == REFERENCE:
        return setting_plan(reference_setting(scene.model, nfe))
    if entry.sampler == PLAIN:
        return plain_plan(scene, nfe)
    if entry.sampler in OWN_SAMPLERS:
        return amed_plan(scene, OWN_SAMPLERS[entry.sampler], nfe)
    scheduler = entry.scheduler or ("simple" if is_flow(sampling_of(scene.model)) else "karras")
    steps = steps_within(scene, entry.sampler, scheduler, nfe)
    return Plan(*ksampler_setting(scene.model, entry.sampler, scheduler, steps), scheduler)


def amed_plan(scene: Scene, sampler: str, nfe: int) -> Plan:
    """Return the SAMPLER and SIGMAS of a predictor for the MODEL.

    The predictor is the one applied to the MODEL, if it is for this sampler and nfe, else the best installed
    one. Raises ValueError if there is no predictor for the MODEL at `nfe` evaluations."""
    applied = applied_predictor(scene.model.model_options)
    fits = (
        applied is not None and not applied.spec.of and applied.nfe == nfe and applied.spec.answers(sampler)
    )
    wanted = request(scene.model, sampler, scene.guidance, nfe=nfe)
    if applied is not None and applied.wants_halves and not wanted.halves:
        fits = False  # this MODEL does not allow to use the halves of guidance

    def choice_with(fitted: Fitted | None = None) -> Choice:
        with_predictor = replace(wanted, fitted=fitted)
        remember(with_predictor)
        return choose(library(), with_predictor)

    try:
        choice, _ = preferred(choice_with, choice_with, attached=applied if fits else None)
    except PredictorError:
        family = [f for f in usable(library(), wanted) if f.spec.model_family == wanted.model.family]
        others = sorted({f.nfe for f in family if f.spec.answers(sampler)})
        hint = f" There are some for {', '.join(map(str, others))}." if others else ""
        raise ValueError(
            f"no predictor for this model at {nfe} evaluations.{hint} "
            f"Make one with Calibrate AMED: nfe {nfe}, guidance {scene.guidance:g}."
        ) from None
    return choice_plan(choice, choice.fitted.name.removesuffix(".safetensors"))


def plain_plan(scene: Scene, nfe: int) -> Plan:
    """Return the SAMPLER and SIGMAS of the best plain solver (without a predictor) known for the MODEL."""
    choice = plain_choice(scene.model, nfe, scene.guidance)
    spec = choice.fitted.spec
    return choice_plan(choice, f"{spec.solver}-{spec.max_order}{' + AFS' if spec.afs else ''}")


def choice_plan(choice: Choice, setting: str) -> Plan:
    """Return the SAMPLER and SIGMAS that run a predictor or a plain solver.

    Args:
        choice: the predictor or plain solver, with its noise levels.
        setting: name of the predictor or the schedule, to show in the comparison."""
    sampler = amed_sampler(choice.sampler, predictor=choice.fitted)
    return Plan(sampler, choice.sigmas.float(), setting, "; ".join(choice.remarks))


def setting_plan(setting: Setting) -> Plan:
    """Return the SAMPLER and SIGMAS of a plain solver (without a predictor)."""
    sampler = as_sampler(plain_function(setting))
    return Plan(sampler, setting.sigmas().float(), f"{setting.name}, {setting.schedule}")


class TooManyError(Exception):
    """Raised to end a trial run, which counts a sampler's evaluations, when it takes too many."""


def steps_within(scene: Scene, sampler: str, scheduler: str, nfe: int) -> int:
    """Return the most steps that one of ComfyUI's samplers makes in `nfe` evaluations.

    The evaluations are counted in trial runs that do not call the network, without the MODEL's hooks. Raises
    ValueError if even one step takes more."""
    most, stop_if_interrupted = 4 * nfe + 20, scene.model.model_options[COUNT].before

    def before() -> None:
        stop_if_interrupted()
        if count.evaluations >= most:
            raise TooManyError

    idle = replace(scene, model=counting(without_hooks(scene.model), before))
    count = idle.model.model_options[COUNT]
    count.idle = True

    def trial(steps: int) -> int:
        read_count(idle.model)
        try:
            idle.sample(Plan(*ksampler_setting(idle.model, sampler, scheduler, steps), scheduler), 0)
        except TooManyError:
            return most
        return read_count(idle.model)[0]

    steps, evaluations = nfe, trial(nfe)
    while evaluations > nfe and steps > 1:
        steps = min(steps - 1, steps * nfe // evaluations + 1)
        evaluations = trial(steps)
    while evaluations < nfe and steps < 2 * nfe and (more := trial(steps + 1)) <= nfe:
        steps, evaluations = steps + 1, more
    if not 0 < evaluations <= nfe:
        raise ValueError(
            f"{sampler} cannot keep to {nfe} evaluations with any number of steps: raise nfe, or remove "
            f"{sampler} from samplers"
        )
    return steps


# --- measurements ------------------------------------------------------------------------------------------


def measure(scene: Scene, plan: Plan, row: Measured, reference: list[Tensor] | None) -> None:
    """Sample the images of one compared sampler, and measure evaluations, seconds and distance.

    Args:
        scene: model, prompts, latents and seeds.
        plan: the SAMPLER and SIGMAS to run.
        row: filled with the images and measurements.
        reference: final latents of a run of many evaluations, to measure the distance to; None: not measured.
    """
    row.setting, row.steps = plan.setting, len(plan.sigmas) - 1
    read_count(scene.model)
    images, pixels, seconds = [], [], []
    for number in range(scene.count):
        begin = time.monotonic()
        samples = scene.sample(plan, number)
        if not bool(packed(samples).isfinite().all()):
            raise ValueError(
                "the sampler's result is not finite (NaN or infinity): try other steps or settings"
            )
        seconds.append(time.monotonic() - begin)
        images.append(packed(samples))
        pixels.append(scene.pixels(samples))
    evaluations, rows = read_count(scene.model)
    row.evaluations, row.passes = evaluations / scene.count, rows / scene.count
    row.seconds = median(seconds)
    if reference is not None:
        pairs = ((network_space(scene.model, v) for v in pair) for pair in zip(images, reference))
        row.distance = mean(rmse(a, b) for a, b in pairs)
    row.pixels, row.images = torch.stack(pixels), images
    row.note = plan.note


def attempt(row: Measured, function: Callable[..., Any], *args: Any) -> Any:
    """Return `function(*args)`; if it raises, return None and write the error into `row.note`.

    So one sampler's error does not end the comparison. ComfyUI's interrupt is not caught."""
    try:
        return function(*args)
    except Interrupted:
        raise
    except Exception as error:  # samplers of ComfyUI or other packs may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        row.note = text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " ..."
        return None


def compare(scene: Scene, rows: list[Measured], on_plan: Callable[[int], None]) -> Iterator[Measured]:
    """Run and measure all samplers of a comparison; yield each one's results when it is done or has failed.

    Args:
        scene: model, prompts, latents and seeds.
        rows: one for each sampler and number of evaluations; filled with its images and measurements.
        on_plan: called once, before sampling, with the total number of evaluations, to show progress."""
    plans = [attempt(row, plan_row, scene, row.entry, row.nfe) for row in rows]
    on_plan(scene.count * sum(row.nfe for row, plan in zip(rows, plans) if plan))
    reference = None
    for row, plan in zip(rows, plans):
        if plan is not None:
            attempt(row, measure, scene, plan, row, reference)
            read_count(scene.model)
        reference = row.images if row.entry.sampler == REFERENCE else reference
        yield row
