"""Our samplers, as the host calls them: which predictor runs, and what is counted.

Host: the contract of comfy/k_diffusion/sampling.py, `fn(model, x, sigmas, extra_args, callback, disable,
**options)`; model is comfy/samplers.py's KSamplerX0Inpaint, its inner_model the guider, or what another
pack's sampler put around it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..amed import SAMPLERS, Fitted, PredictorError
from ..amed.choose import AUTO, PLAIN, Choice, Identity, Report, Request, choose
from ..amed.constants import from_the_top, same_times
from ..amed.files import Library
from ..amed.fit.plain_solvers import Setting
from ..amed.kdiffusion import sample as engine_sample
from .choosing import own_name, request
from .counting import count_rows
from .denoiser import Kept, guider_of, model_sampling_of
from .evaluate import evaluate, lacking
from .folders import library
from .log import warn_once
from .model import (
    attached,
    guides_plainly,
    host_sigmas,
    is_flow,
    own_options,
    sampling_of,
    sigma_range,
    stop_if_asked,
    whole_guidance,
)
from .running import executing_node, show_text

SCHEDULER = "amed"
HIDDEN = (
    "the sampler that runs this one does not show the model: no predictor was looked up, a plain solver ran. "
    "Link a predictor to AMED Sampler"
)


class Counted:
    """The host's denoiser, counted, and stoppable before every evaluation (not only once a step)."""

    def __init__(self, model: Any, report: Report):
        self._inner, self._report = model, report

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        stop_if_asked()
        self._report.evaluations += 1
        return self._inner(x, sigma, **in_its_step(extra_args, sigma))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def in_its_step(extra_args: dict[str, Any], sigma: Tensor) -> dict[str, Any]:
    """Arguments in which the host's context windows find the step of a call: they look for its noise level
    in the run's list, where one between two steps, or told otherwise, is not. It takes the place of the one
    above it."""
    options = extra_args.get("model_options") or {}
    own = options.get("transformer_options") or {}
    levels = own.get("sample_sigmas")
    if options.get("context_handler") is None or levels is None:
        return extra_args
    level = sigma.flatten()[0].to(levels)
    if torch.isclose(levels, level, rtol=1e-4).any():
        return extra_args
    levels = levels.clone()
    levels[max(int((levels > level).sum()) - 1, 0)] = level
    own = {**own, "sample_sigmas": levels}
    return {**extra_args, "model_options": {**options, "transformer_options": own}}


def sampler_function(name: str) -> Callable[..., Tensor]:
    """The host's `sample_<name>`: the engine's sampler with the MODEL's predictor, or the library's, and with
    counting and capture. `name` "auto": the sampler of the predictor that is chosen.

    `predictor`: a Fitted, or None for what the MODEL carries, else what the library has for it. `if_missing`:
    as amed.choose has it; None: the host's own KSampler runs, where a plain solver takes the place of what
    was not fitted for its very noise levels. `report`: a Report to fill; None: what ran is shown on the node
    that runs it. `asked`: hears what the library is asked. Raises PredictorError."""

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
        asked=None,
        **_options,
    ):
        if len(sigmas) < 2:
            return x  # nothing to do, as the host's own samplers have it
        told, report = report is not None, Report() if report is None else report
        report.batch = len(x)
        extra_args = dict(extra_args or {})
        options = extra_args["model_options"] = own_options(extra_args)
        kept = Kept(extra_args)
        choice = chosen_for(
            guider_of(model), name, sigmas, predictor or attached(options), if_missing, options, asked
        )
        fitted, runs = None, "amed" if name == AUTO else name
        if choice is not None:
            fitted, runs = choice.fitted, choice.sampler
            note(report, *choice.remarks, *off_grid(choice, model_sampling_of(model)))
            for remark in report.remarks:
                warn_once(f"{fitted.label}: {remark}")
        report.fitted = fitted

        def ask(model, x, sigma, extra_args, wants):
            seen = evaluate(model, x, sigma, extra_args, wants)
            note(report, *lacking(seen, wants))
            return seen

        count_rows(options, report)
        counted = Counted(model, report)
        result = SAMPLERS[runs](
            counted,
            x,
            sigmas,
            extra_args,
            callback,
            disable,
            predictor=None if fitted is None else fitted.to(x.device),
            afs=None if may_start_analytically(model, extra_args, fitted) else False,
            evaluate=ask,
        )
        result = kept.put_back(counted, result, sigmas[-1], extra_args)
        if not told and (node := executing_node()):
            show_text(node, brief(report))
        return result

    sample.__name__ = sample.__qualname__ = f"sample_{name}"
    return sample


def chosen_for(
    guider: Any, name: str, sigmas: Tensor, fitted: Any, if_missing: str | None, options: dict,
    told: Callable[[Request], None] | None = None,
) -> Choice | None:  # fmt: skip
    """What a run over `sigmas` takes; None where there is one noise level and nothing to choose. guider: None
    where it is not found. options: the run's own, which may carry more than the MODEL's. told: hears what is
    asked."""
    times = sigmas[sigmas > 0]
    if fitted is None and len(times) < 2:
        return None
    name, guidance = own_name(name, fitted), float(getattr(guider, "cfg", 1.0))
    if guider is None:
        return without_model(name, times, fitted, if_missing or PLAIN)
    asked = request(
        guider.model_patcher, name, guidance, guides_plainly(guider) and not whole_guidance(options),
        times=times, fitted=fitted, if_missing=if_missing or PLAIN, exact=if_missing is None,
    )  # fmt: skip
    if told is not None:
        told(asked)
    if if_missing is None:
        advice = how_to_apply(asked, sigma_range(sampling_of(guider.model_patcher))[1])
    else:
        advice = f"Set if_missing to {PLAIN}, or fit one with Calibrate AMED."
    return choose(library(), replace(asked, advice=advice))


def without_model(name: str, times: Tensor, fitted: Fitted | None, if_missing: str) -> Choice:
    """What a run takes that does not know its model: the predictor it was given, or none of the library."""
    asked = Request(Identity("", ""), name, times=times, fitted=fitted, halves=False, if_missing=if_missing,
                    advice=HIDDEN)  # fmt: skip
    choice = choose(Library([]), asked)
    return choice if fitted is not None else replace(choice, remarks=(HIDDEN,))


def how_to_apply(asked: Request, sigma_max: float) -> str:
    """What to do in the host's own KSampler for a predictor in place of a plain solver: Apply AMED Predictor,
    where the library has one for this very model, guidance and number of evaluations; else to calibrate.
    Nothing for a run that begins below the top, to which an applied one would only be stretched."""
    nfe = asked.count  # one at each noise level, the last to 0
    if not from_the_top(asked.times, sigma_max):
        return ""
    for sampler in dict.fromkeys((asked.sampler, AUTO)):
        wanted = replace(asked, sampler=sampler, times=None, nfe=nfe, if_missing="error", exact=False)
        try:
            choice = choose(library(), wanted)
        except PredictorError:
            continue
        if not choice.remarks:
            setting = f"sampler {sampler}, nfe {nfe}, guidance {asked.guidance:g}"
            return f"Put Apply AMED Predictor before this KSampler ({setting}) to run {choice.fitted.name}."
    return (
        f"Calibrate AMED with nfe {nfe}, then Apply AMED Predictor before this KSampler, runs a fitted one."
    )


def off_grid(choice: Choice, model_sampling: Any) -> list[str]:
    """What is to be said of noise levels that a predictor was not fitted on. model_sampling: the MODEL's, or
    None where it is not known."""
    if choice.grid == "other":
        return [other_levels(choice.fitted, model_sampling)]
    if choice.grid == "below":
        return [
            "started below the top of the schedule: no analytic first step, and the constants are "
            "interpolated between the fitted noise levels where these are others"
        ]
    return []


def other_levels(fitted: Fitted, model_sampling: Any) -> str:
    """What to do for the noise levels a predictor was fitted on: the `amed` schedule, where that gives them
    on this MODEL, or AMED Scheduler, which always does."""
    ways, steps = ["AMED Scheduler"], fitted.spec.num_steps - (not fitted.spec.of)
    if model_sampling is not None and same_times(host_sigmas(model_sampling, steps), fitted.base):
        ways.insert(0, f"the {SCHEDULER} schedule with {steps} steps")
    wrong = f"these noise levels are not those {fitted.name} was fitted on"
    return f"choose {', or '.join(ways)}: {wrong}"


def brief(report: Report) -> str:
    """For a node of the host's own, whose page shows two lines of it: what is to be done comes first."""
    passes = "" if report.passes is None else f", {report.passes} passes an image"
    name = report.fitted.name if report.fitted else "no predictor"
    return "\n".join([*report.remarks, f"AMED: {report.evaluations} evaluations{passes}, {name}"])


def note(report: Report, *remarks: str) -> None:
    """Put remarks on a report that does not have them yet."""
    report.remarks += [remark for remark in dict.fromkeys(remarks) if remark not in report.remarks]


def plain_function(setting: Setting) -> Callable[..., Tensor]:
    """As the host calls a sampler: a plain solver; the analytic first step only where the start is pure
    noise."""

    def sample_plain(model, x, sigmas, extra_args=None, callback=None, disable=None, **_options):
        if len(sigmas) < 2:
            return x
        extra_args = dict(extra_args or {})
        extra_args["model_options"] = own_options(extra_args)
        kept, counted = Kept(extra_args), Counted(model, Report())
        from_the_top = float(sigmas[0]) > 0.99 * setting.sigma_max
        afs = setting.afs and from_the_top and may_start_analytically(model, extra_args)
        result = engine_sample(counted, x, sigmas, setting.solver, extra_args, callback, disable, afs=afs)
        return kept.put_back(counted, result, sigmas[-1], extra_args)

    return sample_plain


def may_start_analytically(model: Any, extra_args: dict[str, Any], fitted: Fitted | None = None) -> bool:
    """Whether the analytic first step's assumption can hold: no inpainting mask, and not a flow model, but
    for a table that was fitted to one so. Of a model that is not found a table's own is known."""
    sampling = model_sampling_of(model)
    flow, learned = sampling is not None and is_flow(sampling), fitted is not None and fitted.spec.learned
    as_fitted = learned and (sampling is None or fitted.spec.prediction_type == "flow")
    fits = as_fitted or (sampling is not None and not flow)
    return fits and extra_args.get("denoise_mask") is None
