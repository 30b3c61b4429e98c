"""The host's own samplers, and those of other packs, with a predictor around them (amed.outside).

Host: comfy/samplers.py, KSAMPLER's sampler_function, extra_options and inpaint_options."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..amed import Fitted
from ..amed.choose import Report
from ..amed.constants import same_times
from ..amed.fit import HostSampler
from ..amed.outside import BoundDenoiser, Outside, ScaledDenoiser
from ..amed.schedules import checked
from .counting import count_rows
from .denoiser import Kept, model_sampling_of
from .fitting import Prompted
from .model import own_options
from .register import as_sampler, named_sampler, schedules_of
from .running import executing_node, show_text
from .sampling import Counted, brief, note, other_levels


def host_sampler(sampler: Any, denoiser: Prompted, model_sampling: Any) -> HostSampler:
    """A SAMPLER as amed.fit wants it, with the host's schedules. It runs inside a sampling of the host, whose
    attributes and options it sees; what it asks is answered by the `denoiser` of the fit. Raises ValueError
    for one that is no k-diffusion sampler."""
    function, options = parts_of(sampler)

    def run(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any]) -> Tensor:
        levels = sigmas.to(x)

        def work(real: Any, extra_args: dict[str, Any]) -> Tensor:
            own = own_options(extra_args)
            own.setdefault("transformer_options", {})
            return function(
                BoundDenoiser(model, args, real), x, levels,
                extra_args=extra_args | {"model_options": own}, callback=None, disable=True, **options,
            )  # fmt: skip

        return denoiser.inside(work, len(x), levels)

    return HostSampler(named_sampler(sampler), run, partial(schedules_of, model_sampling))


def parts_of(sampler: Any) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Its function and options. Raises ValueError where there is none."""
    function = getattr(sampler, "sampler_function", None)
    if function is None:
        wrong = f"this SAMPLER ({type(sampler).__name__}) has no sampler function that could be wrapped"
        raise ValueError(f"{wrong}: take one from KSamplerSelect, or another pack's of that kind")
    return function, dict(getattr(sampler, "extra_options", None) or {})


def wrapped(sampler: Any, fitted: Fitted, report: Report | None = None) -> Any:
    """A SAMPLER that is `sampler` with the predictor around it; the report is filled, or what ran is shown
    on the node that runs it. Raises ValueError for another sampler than the predictor's."""
    function, options = parts_of(sampler)
    name, predictor = named_sampler(sampler), fitted.predictor
    assert isinstance(predictor, Outside)
    if name != fitted.spec.of:
        raise ValueError(f"{fitted.label} is not for {name}: take {fitted.spec.of} as the sampler")

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **more):
        if len(sigmas) > 1:
            checked(sigmas)
        told, own = report is not None, Report() if report is None else report
        own.batch, own.fitted = len(x), fitted
        extra_args = dict(extra_args or {})
        extra_args["model_options"] = own_options(extra_args)
        count_rows(extra_args["model_options"], own)
        if not same_times(sigmas, fitted.base):
            note(own, other_levels(fitted, model_sampling_of(model)))
        kept = Kept(extra_args)
        model = ScaledDenoiser(Counted(model, own), predictor.at, lambda: kept.mask)
        result = function(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **more)
        if not told and (node := executing_node()):
            show_text(node, brief(own))
        return result

    made = as_sampler(sample, **options)
    made.inpaint_options = getattr(sampler, "inpaint_options", {})
    return made


def around(fitted: Fitted) -> Callable[..., Tensor]:
    """The host's SAMPLER_SAMPLE wrapper for a MODEL that carries the predictor: its own sampler is run with
    it, any other as it is."""

    def sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        own = executor.class_obj
        if named_sampler(own) != fitted.spec.of:
            if node := executing_node():
                show_text(node, f"{fitted.label} is not for {named_sampler(own)}, which ran without it")
            return executor(*args, **kwargs)
        ours, then = wrapped(own, fitted), copy.copy(executor)
        then.class_obj, then.original = ours, ours.sample
        return then(*args, **kwargs)

    return sample
