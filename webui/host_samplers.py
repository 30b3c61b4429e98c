"""Predictors for the WebUI's own samplers, which AMED wraps without changing them (see amed.outside).

Such a predictor is fitted in the AMED tab. It runs if it is named in the accordion and its sampler is
selected. Only the sampler object of that one generation is changed."""

import functools
from typing import Any

import torch
from torch import Tensor

from amed import Fitted, PredictorError
from amed.constants import same_times
from amed.fit import HostSampler
from amed.outside import BoundDenoiser, Outside, ScaledDenoiser

from . import host
from .run import other_levels_remark
from .samplers import AUTOMATIC, SCHEDULE_LABEL


def labels() -> list[str]:
    """Return the labels of the WebUI's samplers that add no noise; a predictor can be fitted for each."""
    return list(host.sampler_functions())


def host_sampler(label: str, denoiser: Any) -> HostSampler:
    """Return one of the WebUI's own samplers, and its schedules, for a calibration (an amed.fit.HostSampler).

    Args:
        label: one of `labels()`; KeyError for any other.
        denoiser: the WebUI's CFGDenoiser, whose attributes the sampler may read."""
    name, function = host.sampler_functions()[label]

    def run(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any]) -> Tensor:
        return function(BoundDenoiser(model, args, denoiser), x, sigmas.to(x), extra_args={}, disable=True)

    return HostSampler(name, run, functools.partial(host.host_schedules, denoiser.inner_model))


def load_predictor(name: str, label: str) -> Fitted | None:
    """Return the predictor `name`, which must be for the WebUI's sampler `label`; None if it is for an AMED
    sampler.

    Raises PredictorError if there is no such predictor, or if it is for another of the WebUI's samplers."""
    fitted = host.library().load(name)
    if not fitted.spec.of:
        return None
    functions = host.sampler_functions()
    if functions.get(label, ("", None))[0] != fitted.spec.of:
        fitted_sampler = next((k for k, v in functions.items() if v[0] == fitted.spec.of), fitted.spec.of)
        raise PredictorError(
            f"the predictor {fitted.label} was fitted for {fitted_sampler}, not for {label}: choose the "
            f"sampler {fitted_sampler}, or another predictor"
        )
    return fitted


def prepare(p: Any, name: str) -> None:
    """Prepare a generation that uses one of the WebUI's samplers with the predictor `name`.

    The number of steps becomes that of the predictor.

    Raises PredictorError if the predictor is missing or is for another sampler."""
    fitted = load_predictor(name, p.sampler_name)
    if fitted is None:
        return
    p.amed_wrapper, p.steps = fitted, len(fitted.base)
    p.extra_generation_params["AMED predictor"] = name


def wrap_sampler(p: Any) -> None:
    """Just before a pass samples, wrap its sampler object with the predictor that `prepare` found, if any."""
    fitted, sampler = getattr(p, "amed_wrapper", None), getattr(p, "sampler", None)
    if fitted is None or not hasattr(sampler, "func"):
        return
    predictor, inner, inner_sigmas = fitted.predictor, sampler.func, sampler.get_sigmas
    assert isinstance(predictor, Outside)

    @functools.wraps(inner)
    def sample(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wrapped = ScaledDenoiser(model, predictor.at)
        try:
            return inner(wrapped, x, *args, **kwargs)
        finally:
            write_infotext(p, fitted, len(wrapped.levels), kwargs.get("sigmas"))

    def get_sigmas(p: Any, steps: int) -> Tensor:
        if steps != len(fitted.base) or host.schedule_of(p) not in AUTOMATIC or host.runs_lower_part(p):
            return inner_sigmas(p, steps)
        host.set_schedule_in_infotext(p, SCHEDULE_LABEL)
        return torch.cat([fitted.sigmas().float(), torch.zeros(1)])

    sampler.func, sampler.get_sigmas = sample, get_sigmas


def write_infotext(p: Any, fitted: Fitted, evaluations: int, sigmas: Tensor | None) -> None:
    """Write a pass's number of evaluations to the infotext, and a remark if the predictor was fitted on other
    noise levels."""
    prefix = "AMED hires" if host.is_hires(p) else "AMED"
    p.extra_generation_params[f"{prefix} evaluations"] = evaluations
    if sigmas is not None and not same_times(sigmas, fitted.base):
        remark = other_levels_remark(fitted)
        p.extra_generation_params[f"{prefix} note"] = remark
        p.comment(f"{prefix}: {remark}")
