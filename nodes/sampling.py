"""Our samplers, as the host calls them: which predictor runs, and what is counted.

Host: the contract of comfy/k_diffusion/sampling.py, `fn(model, x, sigmas, extra_args, callback, disable,
**options)`; model is comfy/samplers.py's KSamplerX0Inpaint, its inner_model the guider."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..amed import SAMPLERS, Fitted
from ..amed.choose import AUTO, PLAIN, Choice, Report, Request, choose
from ..amed.fit.plain import Setting
from ..amed.kdiffusion import sample as engine_sample
from .choosing import own_name, request
from .counting import count_rows
from .evaluate import evaluate, lacking
from .folders import library
from .log import warn_once
from .model import attached, guides_plainly, is_flow, own_options, stop_if_asked, whole_guidance
from .running import executing_node, show_text

SCHEDULER = "amed"


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
    as amed.choose has it. `report`: a Report to fill; None: what ran is shown on the node that runs it.
    `asked`: hears what the library is asked. Raises PredictorError."""

    def sample(
        model,
        x,
        sigmas,
        extra_args=None,
        callback=None,
        disable=None,
        *,
        predictor=None,
        if_missing=PLAIN,
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
        choice = chosen_for(
            model.inner_model, name, sigmas, predictor or attached(options), if_missing, options, asked
        )
        fitted, runs = None, "amed" if name == AUTO else name
        if choice is not None:
            fitted, runs = choice.fitted, choice.sampler
            note(report, *choice.remarks, *off_grid(choice))
            for remark in report.remarks:
                warn_once(f"{fitted.label}: {remark}")
        report.fitted = fitted

        def ask(model, x, sigma, extra_args, wants):
            seen = evaluate(model, x, sigma, extra_args, wants)
            note(report, *lacking(seen, wants))
            return seen

        count_rows(options, report)
        result = SAMPLERS[runs](
            Counted(model, report),
            x,
            sigmas,
            extra_args,
            callback,
            disable,
            predictor=None if fitted is None else fitted.to(x.device),
            afs=None if may_start_analytically(model, extra_args, fitted) else False,
            evaluate=ask,
        )
        if not told and (node := executing_node()):
            show_text(node, brief(report))
        return keep_unmasked(model, extra_args, result, sigmas[-1])

    sample.__name__ = sample.__qualname__ = f"sample_{name}"
    return sample


def chosen_for(
    guider: Any, name: str, sigmas: Tensor, fitted: Any, if_missing: str, options: dict,
    told: Callable[[Request], None] | None = None,
) -> Choice | None:  # fmt: skip
    """What a run over `sigmas` takes; None where there is one noise level and nothing to choose. options: the
    run's own, which may carry more than the MODEL's. told: hears what is asked."""
    times = sigmas[sigmas > 0]
    if fitted is None and len(times) < 2:
        return None
    name, guidance = own_name(name, fitted), float(getattr(guider, "cfg", 1.0))
    asked = request(
        guider.model_patcher, name, guidance, guides_plainly(guider) and not whole_guidance(options),
        times=times, fitted=fitted, if_missing=if_missing,
    )  # fmt: skip
    if told is not None:
        told(asked)
    return choose(library(), asked)


def off_grid(choice: Choice) -> list[str]:
    """What is to be said of noise levels that a predictor was not fitted on."""
    if choice.grid == "other":
        steps = choice.fitted.spec.num_steps - 1
        return [
            f"choose the {SCHEDULER} schedule with {steps} steps, or AMED Scheduler: "
            f"these noise levels are not those {choice.fitted.name} was fitted on"
        ]
    if choice.grid == "below":
        return [
            "started below the top of the schedule: no analytic first step, and the constants are "
            "interpolated between the fitted noise levels where these are others"
        ]
    return []


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
        extra_args = extra_args or {}
        from_the_top = float(sigmas[0]) > 0.99 * setting.sigma_max
        afs = setting.afs and from_the_top and may_start_analytically(model, extra_args)
        result = engine_sample(
            Counted(model, Report()), x, sigmas, setting.solver, extra_args, callback, disable, afs=afs
        )
        return keep_unmasked(model, extra_args, result, sigmas[-1])

    return sample_plain


def keep_unmasked(model: Any, extra_args: dict[str, Any], x: Tensor, sigma: Tensor) -> Tensor:
    """An inpainting result with the kept part (mask 0) put back: the host's denoiser does so at every
    evaluation, but a run that ends above noise level 0 does not end with one. x itself without a mask."""
    mask = extra_args.get("denoise_mask")
    if mask is None:
        return x
    scaled = model.inner_model.inner_model.model_sampling.noise_scaling
    kept = scaled(sigma, torch.zeros_like(x), model.latent_image)
    return x * mask + kept * (1 - mask)


def may_start_analytically(model: Any, extra_args: dict[str, Any], fitted: Fitted | None = None) -> bool:
    """Whether the analytic first step's assumption can hold: no inpainting mask, and not a flow model, but
    for a table that was fitted to one so."""
    flow = is_flow(model.inner_model.inner_model.model_sampling)
    fits = not flow or (fitted is not None and fitted.spec.learned and fitted.spec.prediction_type == "flow")
    return fits and extra_args.get("denoise_mask") is None
