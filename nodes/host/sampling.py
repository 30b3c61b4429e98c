"""The pack's samplers as ComfyUI calls them: choice of the predictor, counting, previews and reports.

Host: the signature of comfy/k_diffusion/sampling.py, `fn(model, x, sigmas, extra_args, callback, disable,
**options)`. The model is comfy/samplers.py's KSamplerX0Inpaint, whose inner_model is the guider, or whatever
another pack's sampler wraps around it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...amed import SAMPLERS, Fitted, PredictorError
from ...amed.choose import AUTO, PLAIN, Choice, Identity, Report, Request, choose, preferred
from ...amed.constants import from_the_top, same_times
from ...amed.files import Library
from ...amed.fit.plain_solvers import Setting
from ...amed.kdiffusion import sample as engine_sample
from .counting import count_rows
from .denoiser import InpaintMask, guider_of, model_sampling_of
from .evaluate import evaluate, missing_outputs
from .folders import library
from .hooks import at_listed_level, guides_plainly, whole_guidance
from .log import warn_once
from .model import (
    applied_predictor,
    copied_options,
    host_sigmas,
    is_flow,
    sampling_of,
    sigma_range,
    stop_if_interrupted,
)
from .request import request, sampler_for
from .running import executing_node, show_text

SCHEDULER = "amed"
HIDDEN = (
    "the sampler that runs this one does not show the model: no predictor was looked up, a plain solver ran. "
    "Link a predictor to AMED Sampler"
)


class CountedDenoiser:
    """ComfyUI's denoiser, which counts its evaluations in a Report and stops if the user interrupts."""

    def __init__(self, model: Any, report: Report):
        self._inner, self._report = model, report

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        stop_if_interrupted()
        self._report.evaluations += 1
        return self._inner(x, sigma, **at_listed_level(extra_args, sigma))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def sampler_function(name: str) -> Callable[..., Tensor]:
    """Return a sampler of this pack as a k-diffusion function, which ComfyUI calls as `sample_<name>`.

    The function's options, besides the arguments of a k-diffusion sampler:
        predictor: the predictor. None: the one applied to the MODEL, else the best in the library.
        if_missing: what to do if the library has no predictor for the run: "error" (raise PredictorError),
            "plain" (run the best solver without predictor) or "untrained" (run the sampler's own solver).
            With these, a predictor fitted on other noise levels may run, interpolated. None: as "plain", but
            only a predictor fitted on exactly the run's noise levels is used.
        report: a Report, in which evaluations and remarks on the run are stored. None: they are shown on the
            node that samples.
        on_request: a function that is given the run's settings (Request) before the library is searched.

    Args:
        name: the sampler's name, one of amed.SAMPLERS. "auto": the sampler of the chosen predictor."""

    def sample(
        model,
        x,
        sigmas,
        extra_args=None,
        callback=None,
        disable=None,
        *,
        predictor=None,
        if_missing=None,
        report=None,
        on_request=None,
        **_options,
    ):
        if len(sigmas) < 2:
            return x  # no step, as in ComfyUI's own samplers
        shows_report, report = report is None, Report() if report is None else report
        report.batch = len(x)
        extra_args = dict(extra_args or {})
        options = extra_args["model_options"] = copied_options(extra_args)
        inpaint = InpaintMask(extra_args)
        guider, applied = guider_of(model), applied_predictor(options)

        def choice_with(fitted=None):
            return choose_for_run(guider, name, sigmas, fitted, if_missing, options, on_request)

        choice, _ = preferred(choice_with, choice_with, named=predictor, attached=applied)
        fitted, sampler = None, "amed" if name == AUTO else name
        if choice is not None:
            fitted, sampler = choice.fitted, choice.sampler
            add_remarks(report, *choice.remarks, *grid_remarks(choice, model_sampling_of(model)))
            for remark in report.remarks:
                warn_once(f"{fitted.label}: {remark}")
        report.fitted = fitted

        def evaluate_and_report(model, x, sigma, extra_args, wants):
            evaluation = evaluate(model, x, sigma, extra_args, wants)
            add_remarks(report, *missing_outputs(evaluation, wants))
            return evaluation

        count_rows(options, report)
        counted = CountedDenoiser(model, report)
        result = SAMPLERS[sampler](
            counted,
            x,
            sigmas,
            extra_args,
            callback,
            disable,
            predictor=None if fitted is None else fitted.to(x.device),
            afs=None if may_start_analytically(model, extra_args, fitted) else False,
            evaluate=evaluate_and_report,
        )
        result = inpaint.restore(counted, result, sigmas[-1], extra_args)
        if shows_report and (node := executing_node()):
            show_text(node, short_report(report))
        return result

    sample.__name__ = sample.__qualname__ = f"sample_{name}"
    return sample


def choose_for_run(
    guider: Any,
    name: str,
    sigmas: Tensor,
    fitted: Any,
    if_missing: str | None,
    options: dict,
    on_request: Callable[[Request], None] | None = None,
) -> Choice | None:
    """Choose the predictor of a run over given noise levels.

    Args:
        guider: ComfyUI's guider, or None if it cannot be found.
        name: the sampler, or "auto".
        sigmas: the run's noise levels.
        fitted: the predictor to use; None: search the library.
        if_missing: what to do if the library has no predictor for the run: "error" (raise PredictorError),
            "plain" (run the best solver without predictor) or "untrained" (run the sampler's own solver).
            With these, a predictor fitted on other noise levels may run, interpolated. None: as "plain", but
            only a predictor fitted on exactly the run's noise levels is used.
        options: the run's model options.
        on_request: a function that is given the run's settings (Request) before the library is searched.

    Returns:
        The choice. None if `fitted` is None and only one noise level is above 0: the run is one step then,
        for which all solvers give the same result."""
    times = sigmas[sigmas > 0]
    if fitted is None and len(times) < 2:
        return None
    name, guidance = sampler_for(fitted, name), float(getattr(guider, "cfg", 1.0))
    if guider is None:
        return choose_without_model(name, times, fitted, if_missing or PLAIN)
    run_request = request(
        guider.model_patcher, name, guidance, guides_plainly(guider) and not whole_guidance(options),
        times=times, fitted=fitted, if_missing=if_missing or PLAIN, exact=if_missing is None,
    )  # fmt: skip
    if on_request is not None:
        on_request(run_request)
    if if_missing is None:
        advice = apply_advice(run_request, sigma_range(sampling_of(guider.model_patcher))[1])
    else:
        advice = f"Set if_missing to {PLAIN}, or fit one with Calibrate AMED."
    return choose(library(), replace(run_request, advice=advice))


def choose_without_model(name: str, times: Tensor, fitted: Fitted | None, if_missing: str) -> Choice:
    """Choose what to run if the MODEL cannot be found: the given predictor, or a solver without predictor.

    Args:
        name: the sampler, or "auto".
        times: the run's noise levels above 0.
        fitted: the predictor, or None.
        if_missing: what to do without a predictor: "error" (raise PredictorError), "plain" (run the best
            solver) or "untrained" (run the sampler's own solver)."""
    run_request = Request(Identity("", ""), name, times=times, fitted=fitted, halves=False,
                          if_missing=if_missing, advice=HIDDEN)  # fmt: skip
    choice = choose(Library([]), run_request)
    return choice if fitted is not None else replace(choice, remarks=(HIDDEN,))


def apply_advice(run_request: Request, sigma_max: float) -> str:
    """Return advice on how to run a predictor in ComfyUI's own KSampler, which ran a solver without one.

    It is to use the node Apply AMED Predictor if the library has a predictor for this model, guidance and
    number of evaluations, else Calibrate AMED. "" if the run starts below sigma_max, because an
    applied predictor is for runs from sigma_max."""
    nfe = run_request.count  # one per noise level, the last one to 0
    if not from_the_top(run_request.times, sigma_max):
        return ""
    for sampler in dict.fromkeys((run_request.sampler, AUTO)):
        wanted = replace(run_request, sampler=sampler, times=None, nfe=nfe, if_missing="error", exact=False)
        try:
            choice = choose(library(), wanted)
        except PredictorError:
            continue
        if not choice.remarks:
            setting = f"sampler {sampler}, nfe {nfe}, guidance {run_request.guidance:g}"
            return f"Put Apply AMED Predictor before this KSampler ({setting}) to run {choice.fitted.name}."
    return (
        f"Calibrate AMED with nfe {nfe}, then Apply AMED Predictor before this KSampler, runs a fitted one."
    )


def grid_remarks(choice: Choice, model_sampling: Any) -> list[str]:
    """Return a remark if a run's noise levels are not those its predictor was fitted on, else nothing.

    model_sampling: the MODEL's `model_sampling` (noise levels), or None if it cannot be found."""
    if choice.grid == "other":
        return [other_levels_remark(choice.fitted, model_sampling)]
    if choice.grid == "below":
        return [
            "started below the top of the schedule: no analytic first step, and the constants are "
            "interpolated between the fitted noise levels where the run's levels differ"
        ]
    return []


def other_levels_remark(fitted: Fitted, model_sampling: Any) -> str:
    """Return a remark that tells the user how to run a predictor at the noise levels it was fitted on.

    It names the node AMED Scheduler and, if it gives the same levels on this MODEL, the `amed` schedule."""
    ways, steps = ["AMED Scheduler"], fitted.spec.num_steps - (not fitted.spec.of)
    if model_sampling is not None and same_times(host_sigmas(model_sampling, steps), fitted.base):
        ways.insert(0, f"the {SCHEDULER} schedule with {steps} steps")
    return f"choose {', or '.join(ways)}: these noise levels are not those {fitted.name} was fitted on"


def short_report(report: Report) -> str:
    """Return a report as text to show on one of ComfyUI's nodes.

    Remarks come first, because the node shows only about two lines."""
    passes = "" if report.passes is None else f", {report.passes} passes per image"
    name = report.fitted.name if report.fitted else "no predictor"
    return "\n".join([*report.remarks, f"AMED: {report.evaluations} evaluations{passes}, {name}"])


def add_remarks(report: Report, *remarks: str) -> None:
    """Add remarks to a report, each only once."""
    report.remarks += [remark for remark in dict.fromkeys(remarks) if remark not in report.remarks]


def plain_function(setting: Setting) -> Callable[..., Tensor]:
    """Return a k-diffusion function that runs a solver without a predictor.

    Its analytic first step (AFS) is only used if the run starts from pure noise."""

    def sample_plain(model, x, sigmas, extra_args=None, callback=None, disable=None, **_options):
        if len(sigmas) < 2:
            return x
        extra_args = dict(extra_args or {})
        extra_args["model_options"] = copied_options(extra_args)
        inpaint, counted = InpaintMask(extra_args), CountedDenoiser(model, Report())
        from_pure_noise = float(sigmas[0]) > 0.99 * setting.sigma_max
        afs = setting.afs and from_pure_noise and may_start_analytically(model, extra_args)
        result = engine_sample(counted, x, sigmas, setting.solver, extra_args, callback, disable, afs=afs)
        return inpaint.restore(counted, result, sigmas[-1], extra_args)

    return sample_plain


def may_start_analytically(model: Any, extra_args: dict[str, Any], fitted: Fitted | None = None) -> bool:
    """Whether a run may use the analytic first step (AFS).

    It may not with an inpainting mask. For a flow model, only a learned predictor that was fitted to a flow
    model may use it; if the model cannot be found, only a learned predictor."""
    sampling = model_sampling_of(model)
    flow, learned = sampling is not None and is_flow(sampling), fitted is not None and fitted.spec.learned
    as_fitted = learned and (sampling is None or fitted.spec.prediction_type == "flow")
    fits = as_fitted or (sampling is not None and not flow)
    return fits and extra_args.get("denoise_mask") is None
