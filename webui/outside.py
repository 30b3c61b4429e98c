"""The host's own samplers with a predictor around them (amed.outside): fitted in the AMED tab, and run where
the accordion names such a predictor and that very sampler is chosen. Only one generation's own sampler object
is changed."""

import functools
from typing import Any

import torch
from torch import Tensor

from amed import Fitted, PredictorError
from amed.constants import same_times
from amed.fit import HostSampler
from amed.outside import BoundDenoiser, Outside, ScaledDenoiser

from . import host
from .samplers import AUTOMATIC, SCHEDULE_LABEL


def labels() -> list[str]:
    """Of the host's samplers that can be fitted from outside, but for those that draw noise."""
    return list(host.sampler_functions())


def host_sampler(label: str, real: Any) -> HostSampler:
    """A sampler of the host's as amed.fit wants it, with the host's schedules; `real`: its denoiser, for its
    attributes. Raises KeyError."""
    name, function = host.sampler_functions()[label]

    def run(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any]) -> Tensor:
        return function(BoundDenoiser(model, args, real), x, sigmas.to(x), extra_args={}, disable=True)

    return HostSampler(name, run, functools.partial(host.schedules_of, real.inner_model))


def named(name: str, label: str) -> Fitted | None:
    """The library's predictor of that name if it is for a sampler of the host's, None if for ours. Raises
    PredictorError where it is for another than `label`."""
    fitted = host.library().load(name)
    if not fitted.spec.of:
        return None
    mine = host.sampler_functions().get(label, ("", None))[0]
    if mine != fitted.spec.of:
        theirs = next((k for k, v in host.sampler_functions().items() if v[0] == fitted.spec.of), "")
        wrong = f"{fitted.label} was fitted for {theirs or fitted.spec.of}, not for {label}"
        raise PredictorError(f"{wrong}: choose that sampler, or another predictor")
    return fitted


def prepare(p: Any, name: str) -> None:
    """Before a generation by a sampler of the host's: its predictor's number of steps. Raises
    PredictorError."""
    fitted = named(name, p.sampler_name)
    if fitted is None:
        return
    p.amed_outside, p.steps = fitted, len(fitted.base)
    p.extra_generation_params["AMED predictor"] = name


def put_around(p: Any) -> None:
    """The generation's predictor around its sampler, just before it samples."""
    fitted, sampler = getattr(p, "amed_outside", None), getattr(p, "sampler", None)
    if fitted is None or not hasattr(sampler, "func"):
        return
    predictor, inner, own_levels = fitted.predictor, sampler.func, sampler.get_sigmas
    assert isinstance(predictor, Outside)

    @functools.wraps(inner)
    def sample(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wrapped = ScaledDenoiser(model, predictor.at)
        try:
            return inner(wrapped, x, *args, **kwargs)
        finally:
            tell(p, fitted, len(wrapped.levels), kwargs.get("sigmas"))

    def get_sigmas(p: Any, steps: int) -> Tensor:
        if steps != len(fitted.base) or host.schedule_of(p) not in AUTOMATIC or host.starts_below(p):
            return own_levels(p, steps)
        host.tell_schedule(p, SCHEDULE_LABEL)
        return torch.cat([fitted.sigmas().float(), torch.zeros(1)])

    sampler.func, sampler.get_sigmas = sample, get_sigmas


def tell(p: Any, fitted: Fitted, evaluations: int, sigmas: Tensor | None) -> None:
    """A pass, in the infotext and below the image."""
    kind = "AMED hires" if host.is_hires(p) else "AMED"
    p.extra_generation_params[f"{kind} evaluations"] = evaluations
    if sigmas is not None and not same_times(sigmas, fitted.base):
        said = f"these noise levels are not those {fitted.name} was fitted on: choose the AMED schedule"
        p.extra_generation_params[f"{kind} note"] = said
        p.comment(f"{kind}: {said}")
