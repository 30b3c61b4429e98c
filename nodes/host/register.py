"""ComfyUI's samplers and schedules: the pack's are added to its lists, and its own are made and named here.

The lists are only extended, never replaced, because other packs hold references to them. Host:
comfy/samplers.py, comfy/k_diffusion/sampling.py."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from torch import Tensor

from ...amed import SAMPLERS
from ...amed.outside import BoundDenoiser
from .content import captured, content_hash, samplers_in
from .folders import add_folder
from .hooks import function_of, options_of
from .model import host_sigmas
from .sampling import SCHEDULER, sampler_function

LONGEST = 80  # characters of the options in a sampler's name


def register() -> list[str]:
    """Add the pack's samplers, schedule and model folder to ComfyUI; idempotent.

    Returns a message for each that could not be added."""
    problems = []
    for name, add in (
        ("samplers", add_samplers),
        ("schedule", add_schedule),
        ("predictor folder", add_folder),
    ):
        try:
            add()
        except Exception as error:  # a feature that this version lacks must not prevent its start
            problems.append(f"this ComfyUI does not accept AMED's {name} ({type(error).__name__}: {error})")
    return problems


def add_samplers() -> None:
    """Add `sample_<name>` to ComfyUI's k-diffusion module, and the names to its dropdowns."""
    for name in SAMPLERS:
        if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
            setattr(comfy.k_diffusion.sampling, f"sample_{name}", sampler_function(name))
        for names in (comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS):
            if name not in names:  # usually one list under two names
                names.append(name)


def add_schedule() -> None:
    """Add the `amed` schedule to ComfyUI's dropdowns."""
    handler = comfy.samplers.SchedulerHandler(host_sigmas)
    comfy.samplers.SCHEDULER_HANDLERS.setdefault(SCHEDULER, handler)
    for names in (comfy.samplers.SCHEDULER_NAMES, comfy.samplers.KSampler.SCHEDULERS):
        if SCHEDULER not in names:
            names.append(SCHEDULER)


def as_sampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """Return a SAMPLER that calls a k-diffusion function with these options."""
    return comfy.samplers.KSAMPLER(function, options)


def amed_sampler(name: str, **options: Any) -> Any:
    """Return a SAMPLER that runs one of the pack's samplers.

    Args:
        name: the sampler's name, e.g. "amed", or "auto".
        options: options of its function, e.g. `predictor` (see `sampling.sampler_function`)."""
    return as_sampler(sampler_function(name), **options)


def dropdown_names() -> tuple[list[str], list[str]]:
    """Return the names in ComfyUI's dropdowns: samplers, schedulers."""
    return comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


def ksampler_setting(model: Any, name: str, scheduler: str, steps: int) -> tuple[Any, Tensor]:
    """Return the SAMPLER and SIGMAS that KSampler uses for this MODEL, sampler, scheduler and steps."""
    ksampler = comfy.samplers.KSampler(model, steps, torch.device("cpu"), name, scheduler, 1.0)
    return comfy.samplers.sampler_object(name), ksampler.sigmas


def schedules_of(model_sampling: Any, steps: int) -> dict[str, Tensor]:
    """Return the noise levels of each schedule of ComfyUI and of other packs, by the schedule's name.

    Schedules that fail for this model or this number of steps are left out."""
    schedules = {}
    for name in comfy.samplers.KSampler.SCHEDULERS:
        with contextlib.suppress(Exception):  # some are for other models or more steps
            if name != SCHEDULER:
                schedules[name] = comfy.samplers.calculate_sigmas(model_sampling, name, steps)
    return schedules


def sampler_name(sampler: Any) -> str:
    """Return a name that identifies a SAMPLER and its options, for predictors that are fitted to it.

    It consists of the name in ComfyUI's dropdown, else that of the function; the options, or a hash of them
    if they are long; the names of SAMPLERs inside it; and a hash of any other value that it holds."""
    function, extras = function_of(sampler), []
    plain = inner = function
    while isinstance(inner, functools.partial):
        plain = inner = inner.func
    name = getattr(plain, "__name__", None if plain is None else type(plain).__name__)
    name = str(name or type(sampler).__name__).removeprefix("sample_")
    for listed in comfy.samplers.KSampler.SAMPLERS:
        if listed.replace("_", "") == name.replace("_", ""):
            name = listed
            break
    if not is_listed(function) and (values := captured(function)):
        extras.append(values)
    options = options_of(sampler)
    scalars = {k: v for k, v in options.items() if isinstance(v, bool | int | float | str)}
    settings = ", ".join(f"{k} {v}" for k, v in sorted(scalars.items()))
    if len(settings) > LONGEST:
        settings = f"{len(scalars)} settings, {hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    others = {k: v for k, v in options.items() if k not in scalars}
    if any(v is not None for v in others.values()):
        extras.append(others)
    around = [f"around {sampler_name(inner)}" for inner in samplers_in(extras)]
    hashes = [content_hash(extras)] if extras else []
    details = ", ".join(filter(None, (settings, *around, *hashes)))
    return f"{name} ({details})" if details else name


def is_listed(function: Any) -> bool:
    """Whether a function is in ComfyUI's k-diffusion module under its own name, which then identifies it."""
    name = str(getattr(function, "__name__", ""))
    places = (getattr(comfy.k_diffusion.sampling, at, None) for at in (name, f"sample_{name}"))
    return any(function is place for place in places if place is not None)


def drops_last_level(name: str) -> bool:
    """Whether KSampler makes one more step for a sampler and then drops the last noise level before 0."""
    return name in getattr(comfy.samplers.KSampler, "DISCARD_PENULTIMATE_SIGMA_SAMPLERS", ())


def sampler_by_name(name: str) -> Any:
    """Return the SAMPLER with this name in ComfyUI's dropdown. Raises ValueError if there is none."""
    if name not in comfy.samplers.KSampler.SAMPLERS:
        raise ValueError(
            f"this ComfyUI has no sampler {name!r}, which the predictor was fitted to: link that SAMPLER to "
            "`wrapped`"
        )
    return comfy.samplers.sampler_object(name)


def guider_for(model: Any, conditionings: dict[str, list], guidance: float) -> Any:
    """Return a CFGGuider of a MODEL.

    conditionings: the CONDITIONINGs by name, e.g. "positive" and "negative"."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditionings)
    guider.set_cfg(guidance)
    return guider


def host_rivals(
    model_sampling: Any, scheduler: str, nfe: int, within_sampling: Callable[..., Tensor]
) -> dict[str, Callable[[Any, Tensor, dict[str, Any]], Tensor]]:
    """Return ComfyUI's DPM++ 2M, UniPC and iPNDM as functions, by label, to compare a predictor with.

    Each function `run(denoiser, noise, arguments)` returns the sampled images.

    Args:
        model_sampling: the MODEL's `model_sampling`, from which the schedule is computed.
        scheduler: name of ComfyUI's schedule.
        nfe: number of steps, with one evaluation each.
        within_sampling: a function `within_sampling(work, count, sigmas)` that starts a ComfyUI sampling of
            `count` samples and calls `work(denoiser, extra_args)` in it."""
    sigmas: Tensor = comfy.samplers.calculate_sigmas(model_sampling, scheduler, nfe)

    def rival(name: str) -> Callable[..., Tensor]:
        function = function_of(comfy.samplers.sampler_object(name))

        def run(model: Any, noise: Tensor, args: dict[str, Any]) -> Tensor:
            x, levels = noise * sigmas[0].to(noise), sigmas.to(noise)

            def work(denoiser: Any, _extra_args: dict[str, Any]) -> Tensor:
                asking = BoundDenoiser(model, args, denoiser)
                return function(asking, x, levels, extra_args={}, callback=None, disable=True)

            return within_sampling(work, len(x), levels)

        return run

    names = {"DPM++ 2M": "dpmpp_2m", "UniPC": "uni_pc", "iPNDM": "ipndm"}
    offered = {k: v for k, v in names.items() if v in comfy.samplers.KSampler.SAMPLERS}
    return {f"{label}, {scheduler}": rival(name) for label, name in offered.items()}
