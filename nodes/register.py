"""The host's lists of samplers and schedules: ours in them, and its own for us.

Lists are only added to, never bound anew: that is what broke other packs. Host: comfy/samplers.py,
comfy/k_diffusion/sampling.py."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from torch import Tensor

from ..amed import SAMPLERS
from ..amed.outside import BoundDenoiser
from .content import bound_to, code_of, samplers_in
from .folders import add_folder
from .model import host_sigmas
from .sampling import SCHEDULER, sampler_function

LONG = 80  # characters of a sampler's options, as a name has them


def register() -> list[str]:
    """Add our samplers, schedule and model folder to the host; idempotent. Returns what could not be
    added."""
    problems = []
    for what, add in (
        ("samplers", add_samplers),
        ("schedule", add_schedule),
        ("predictor folder", add_folder),
    ):
        try:
            add()
        except Exception as error:  # whatever this host's version lacks must not stop its start
            problems.append(f"this ComfyUI does not take our {what} ({type(error).__name__}: {error})")
    return problems


def add_samplers() -> None:
    """`sample_<name>` where the host looks for it at each run, and the names in its dropdowns."""
    for name in SAMPLERS:
        if not hasattr(comfy.k_diffusion.sampling, f"sample_{name}"):
            setattr(comfy.k_diffusion.sampling, f"sample_{name}", sampler_function(name))
        for names in (comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS):
            if name not in names:  # usually one list under two names
                names.append(name)


def add_schedule() -> None:
    """The `amed` schedule in the host's dropdowns."""
    handler = comfy.samplers.SchedulerHandler(host_sigmas)
    comfy.samplers.SCHEDULER_HANDLERS.setdefault(SCHEDULER, handler)
    for names in (comfy.samplers.SCHEDULER_NAMES, comfy.samplers.KSampler.SCHEDULERS):
        if SCHEDULER not in names:
            names.append(SCHEDULER)


def as_sampler(function: Callable[..., Tensor], **options: Any) -> Any:
    """A SAMPLER that calls `function` with these options."""
    return comfy.samplers.KSAMPLER(function, options)


def our_sampler(name: str, **options: Any) -> Any:
    """A SAMPLER of ours; `options` as in sampling.sampler_function."""
    return as_sampler(sampler_function(name), **options)


def host_samplers() -> tuple[list[str], list[str]]:
    """The names in the host's dropdowns: samplers, schedulers."""
    return comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


def host_sampler(model: Any, name: str, scheduler: str, steps: int) -> tuple[Any, Tensor]:
    """SAMPLER and SIGMAS that the host's KSampler takes for this setting."""
    chosen = comfy.samplers.KSampler(model, steps, torch.device("cpu"), name, scheduler, 1.0)
    return comfy.samplers.sampler_object(name), chosen.sigmas


def schedules_of(model_sampling: Any, steps: int) -> dict[str, Tensor]:
    """The host's schedules, other packs' among them, of so many steps, by name: those that can be had for
    this model."""
    found = {}
    for name in comfy.samplers.KSampler.SCHEDULERS:
        with contextlib.suppress(Exception):  # some are for other models, or for more steps
            if name != SCHEDULER:
                found[name] = comfy.samplers.calculate_sigmas(model_sampling, name, steps)
    return found


def named_sampler(sampler: Any) -> str:
    """What a SAMPLER is called: as in the host's dropdown where it is one of those, else by its function; the
    options it has, where they are many by a short code of them; the SAMPLERs it wraps; and a code of whatever
    else it was made with."""
    function, extras = getattr(sampler, "sampler_function", None), []
    plain = inner = function
    while isinstance(inner, functools.partial):
        plain = inner = inner.func
    name = getattr(plain, "__name__", None if plain is None else type(plain).__name__)
    name = str(name or type(sampler).__name__).removeprefix("sample_")
    for own in comfy.samplers.KSampler.SAMPLERS:
        if own.replace("_", "") == name.replace("_", ""):
            name = own
            break
    if not is_known(function) and (bound := bound_to(function)):
        extras.append(bound)
    options = getattr(sampler, "extra_options", None) or {}
    scalars = {k: v for k, v in options.items() if isinstance(v, bool | int | float | str)}
    told = ", ".join(f"{k} {v}" for k, v in sorted(scalars.items()))
    if len(told) > LONG:
        told = f"{len(scalars)} settings, {hashlib.sha256(told.encode()).hexdigest()[:8]}"
    others = {k: v for k, v in options.items() if k not in scalars}
    if any(v is not None for v in others.values()):
        extras.append(others)
    around = [f"around {named_sampler(held)}" for held in samplers_in(extras)]
    codes = [code_of(extras)] if extras else []
    told = ", ".join(filter(None, (told, *around, *codes)))
    return f"{name} ({told})" if told else name


def is_known(function: Any) -> bool:
    """Whether a function is the host's, or a pack's, under a name of the dropdowns: the name says it all."""
    name = str(getattr(function, "__name__", ""))
    places = (getattr(comfy.k_diffusion.sampling, at, None) for at in (name, f"sample_{name}"))
    return any(function is place for place in places if place is not None)


def dropped(name: str) -> bool:
    """Whether the host's KSampler takes the last noise level before 0 away from a sampler, and makes one more
    for it."""
    return name in getattr(comfy.samplers.KSampler, "DISCARD_PENULTIMATE_SIGMA_SAMPLERS", ())


def sampler_named(name: str) -> Any:
    """The host's SAMPLER of a name from its dropdown. Raises ValueError for another."""
    if name not in comfy.samplers.KSampler.SAMPLERS:
        raise ValueError(f"this ComfyUI has no sampler {name!r}: link the SAMPLER that it was fitted for")
    return comfy.samplers.sampler_object(name)


def guider_for(model: Any, conditionings: dict[str, list], guidance: float) -> Any:
    """The host's guider of a MODEL, with conditionings by name ("positive", "negative", more)."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditionings)
    guider.set_cfg(guidance)
    return guider


def shipped(
    model_sampling: Any, scheduler: str, nfe: int, opened: Callable[..., Tensor]
) -> dict[str, Callable[[Any, Tensor, dict[str, Any]], Tensor]]:
    """DPM++ 2M, UniPC and iPNDM as the host ships them, at `nfe` steps of a schedule of its own, each an
    amed.fit.Rival. `opened(work, count, sigmas)`: calls `work(denoiser, extra_args)` inside a sampling of the
    host, whose denoiser has the attributes that a sampler may look for."""
    sigmas: Tensor = comfy.samplers.calculate_sigmas(model_sampling, scheduler, nfe)

    def rival(name: str) -> Callable[..., Tensor]:
        function = comfy.samplers.sampler_object(name).sampler_function

        def run(model: Any, noise: Tensor, args: dict[str, Any]) -> Tensor:
            x, levels = noise * sigmas[0].to(noise), sigmas.to(noise)

            def work(real: Any, _extra_args: dict[str, Any]) -> Tensor:
                own = BoundDenoiser(model, args, real)
                return function(own, x, levels, extra_args={}, callback=None, disable=True)

            return opened(work, len(x), levels)

        return run

    names = {"DPM++ 2M": "dpmpp_2m", "UniPC": "uni_pc", "iPNDM": "ipndm"}
    offered = {k: v for k, v in names.items() if v in comfy.samplers.KSampler.SAMPLERS}
    return {f"{label}, {scheduler}": rival(name) for label, name in offered.items()}
