"""Predictors around ComfyUI's own samplers and those of other packs (amed.outside).

Host: the fields of KSAMPLER (see `hooks`) in comfy/samplers.py."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ...amed import Fitted
from ...amed.choose import Report
from ...amed.constants import same_times
from ...amed.fit import HostSampler
from ...amed.outside import BoundDenoiser, Outside, ScaledDenoiser
from ...amed.schedules import checked
from .counting import count_rows
from .denoiser import InpaintMask, model_sampling_of
from .fitting import PromptedDenoiser
from .hooks import copy_inpaint_options, function_of, network_options, options_of
from .model import copied_options
from .register import as_sampler, sampler_name, schedules_of
from .running import executing_node, show_text
from .sampling import CountedDenoiser, add_remarks, other_levels_remark, short_report


def fit_sampler(sampler: Any, denoiser: PromptedDenoiser, model_sampling: Any) -> HostSampler:
    """Prepare a SAMPLER of ComfyUI, as a HostSampler, for fitting a predictor to it with amed.fit.

    The SAMPLER runs inside a ComfyUI sampling, but evaluates the denoiser that the fit gives it.

    Args:
        sampler: the SAMPLER.
        denoiser: the MODEL as a denoiser, which starts a ComfyUI sampling for each run of the SAMPLER.
        model_sampling: the MODEL's `model_sampling`, from which ComfyUI's schedules are computed.

    Raises:
        ValueError: the SAMPLER has no k-diffusion function."""
    function, options = function_and_options(sampler)

    def run(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any]) -> Tensor:
        levels = sigmas.to(x)

        def work(host_denoiser: Any, extra_args: dict[str, Any]) -> Tensor:
            model_options = copied_options(extra_args)
            network_options(model_options)
            return function(
                BoundDenoiser(model, args, host_denoiser), x, levels, callback=None, disable=True,
                extra_args=extra_args | {"model_options": model_options}, **options,
            )  # fmt: skip

        return denoiser.within_sampling(work, len(x), levels)

    return HostSampler(sampler_name(sampler), run, partial(schedules_of, model_sampling))


def function_and_options(sampler: Any) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Return a SAMPLER's k-diffusion function and its options. Raises ValueError if it has no function."""
    function = function_of(sampler)
    if function is None:
        raise ValueError(
            f"this SAMPLER ({type(sampler).__name__}) has no sampler function that AMED could wrap: use a "
            "SAMPLER from KSamplerSelect"
        )
    return function, options_of(sampler)


def wrapped(sampler: Any, fitted: Fitted, report: Report | None = None) -> Any:
    """Return a SAMPLER that runs another one and corrects its evaluations by a predictor.

    Args:
        sampler: the SAMPLER that the predictor was fitted to.
        fitted: the predictor.
        report: a Report, in which evaluations and remarks on the run are stored. None: they are shown on the
            node that samples.

    Raises:
        ValueError: if the predictor was fitted to another sampler."""
    function, options = function_and_options(sampler)
    name, predictor = sampler_name(sampler), fitted.predictor
    assert isinstance(predictor, Outside)
    if name != fitted.spec.of:
        raise ValueError(
            f"the predictor {fitted.label} is not for the sampler {name}: use the sampler {fitted.spec.of}"
        )

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **more):
        if len(sigmas) > 1:
            checked(sigmas)
        run_report = Report() if report is None else report
        run_report.batch, run_report.fitted = len(x), fitted
        extra_args = dict(extra_args or {})
        extra_args["model_options"] = copied_options(extra_args)
        count_rows(extra_args["model_options"], run_report)
        if not same_times(sigmas, fitted.base):
            add_remarks(run_report, other_levels_remark(fitted, model_sampling_of(model)))
        inpaint = InpaintMask(extra_args)
        model = ScaledDenoiser(CountedDenoiser(model, run_report), predictor.at, lambda: inpaint.mask)
        result = function(model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **more)
        if report is None and (node := executing_node()):
            show_text(node, short_report(run_report))
        return result

    wrapping = as_sampler(sample, **options)
    copy_inpaint_options(sampler, wrapping)
    return wrapping


def sampling_wrapper(fitted: Fitted) -> Callable[..., Tensor]:
    """Return a ComfyUI wrapper of `SAMPLER.sample` that runs a predictor with the sampler it was fitted to.

    Any other sampler runs without the predictor, and a text on the node says so."""

    def sample(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        sampler = executor.class_obj
        name = sampler_name(sampler)
        if name != fitted.spec.of:
            if node := executing_node():
                show_text(node, f"{fitted.label} is not for {name}, which ran without it")
            return executor(*args, **kwargs)
        wrapping, inner = wrapped(sampler, fitted), copy.copy(executor)
        inner.class_obj, inner.original = wrapping, wrapping.sample
        return inner(*args, **kwargs)

    return sample
