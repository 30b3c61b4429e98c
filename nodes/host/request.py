"""Requests to amed.choose for a MODEL, and the noise levels of a choice that a run uses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...amed import Fitted, schedules
from ...amed.choose import AUTO, PLAIN, Choice, Request, choose, plain_for
from ...amed.fit import plain_solvers
from ...amed.kdiffusion import solver_of
from ...amed.recipes import Solver
from .folders import library
from .hooks import whole_guidance
from .model import base_times, identity, is_flow, sampling_of, sigma_range, start_sigma

CALIBRATE = "calibrate now (quick)"
ADVICE = f"Set if_missing to {PLAIN} or {CALIBRATE!r}, or fit one with Calibrate AMED."


def request(model: Any, sampler: str, guidance: float, halves: bool = True, **fields: Any) -> Request:
    """Return a Request: the settings of a run, by which amed.choose finds a predictor for it.

    Args:
        model: the MODEL.
        sampler: name of the sampler, or "auto".
        guidance: guidance scale (cfg).
        halves: whether a predictor may be chosen that needs the denoised images of the positive and of the
            negative prompt separately.
        fields: other fields of Request, e.g. `nfe`."""
    model_sampling = sampling_of(model)
    return Request(
        identity(model),
        sampler,
        guidance,
        schedule=lambda count: base_times(model_sampling, count),
        afs=not is_flow(model_sampling),
        halves=halves and not whole_guidance(model.model_options),
        advice=ADVICE,
        **fields,
    )


def plain_choice(model: Any, nfe: int, guidance: float) -> Choice:
    """Choose the best known solver without a predictor for a MODEL, even if a predictor file is installed."""
    plain_request = request(model, AUTO, guidance, nfe=nfe)
    return choose(library(), replace(plain_request, fitted=plain_for(plain_request)))


def reference_setting(model: Any, evaluations: int) -> plain_solvers.Setting:
    """Return the solver and schedule of a run of many evaluations, to compare shorter runs with."""
    model_sampling = sampling_of(model)
    low, high = sigma_range(model_sampling)
    rho = 1.0 if is_flow(model_sampling) else 7.0
    return plain_solvers.Setting(Solver("ipndm", 3), "polynomial", rho, evaluations + 1, False, low, high)


def sampler_for(fitted: Fitted | None, sampler: str) -> str:
    """Return the sampler that a predictor was fitted to, if `sampler` differs from it only in its order.

    E.g. a predictor fitted to DPM++ 2M runs with DPM++ 2M although DPM++ 3M is selected. For samplers that
    differ in more, return `sampler`."""
    if fitted is None or fitted.spec.of or sampler == AUTO:
        return sampler
    fitted_sampler = fitted.spec.sampler
    return fitted_sampler if solver_of(fitted_sampler).name == solver_of(sampler).name else sampler


def denoise_remarks(
    nfe: int, denoise: float, evaluations: int, choice_for: Callable[[int], Choice] | None, model: Any
) -> list[str]:
    """Return a remark if denoise < 1 left a run with fewer evaluations than `nfe`, else nothing.

    Args:
        nfe: the number of evaluations set on the node.
        denoise: the `denoise` set on the node, as in KSampler.
        evaluations: number of evaluations that the run made.
        choice_for: a function that returns the predictor and noise levels for another nfe, so that the
            remark can advise an nfe. None if the predictor is fixed, e.g. linked to the node.
        model: the MODEL."""
    if not 0.0 < denoise < 1.0 or evaluations >= nfe:
        return []
    more = None if choice_for is None else nfe_for_denoise(nfe, denoise, choice_for, model)
    advice = "" if more is None else f"set nfe to {more}, or "
    return [
        f"denoise {denoise:g} starts inside this schedule, so only {evaluations} of the {nfe} evaluations "
        f"ran. For {nfe} evaluations, {advice}use the ordinary KSampler with {nfe} steps and the amed "
        "scheduler, which places all steps below the start"
    ]


def nfe_for_denoise(nfe: int, denoise: float, choice_for: Callable[[int], Choice], model: Any) -> int | None:
    """Return the nfe to set so that a run with this `denoise` makes at least `nfe` evaluations.

    It is the lowest such number up to 10 times `nfe`, or None if there is none. A run with denoise < 1 skips
    the high noise levels of its schedule, and every nfe has another schedule."""
    for more in range(nfe + 1, 10 * nfe + 1):
        try:
            choice = choice_for(more)
            levels = below_denoise(choice.sigmas, model, denoise)
        except ValueError:  # no predictor for this nfe, or no step below the start
            continue
        spec = choice.fitted.spec
        if spec.student.evaluations(len(levels), False, spec.learned) >= nfe:
            return more
    return None


def below_denoise(times: Tensor, model: Any, denoise: float) -> Tensor:
    """Return the part of a schedule that a run with this `denoise` takes, as float32.

    It is the noise level where the run starts, then the levels below it; empty at denoise 0, as in ComfyUI.

    Args:
        times: noise levels of the whole schedule, falling.
        model: the MODEL.
        denoise: ComfyUI's denoise, in [0, 1].

    Raises:
        ValueError: No step is left."""
    if denoise >= 1.0:
        return times.float()
    if denoise <= 0.0:
        return times[:0].float()
    start = start_sigma(sampling_of(model), denoise)
    rest = schedules.from_start(times, start)
    if len(rest) < 2:
        raise ValueError(
            f"denoise {denoise:g} starts at noise level {start:.4g}, below this schedule's last level "
            f"({float(times[-1]):.4g}), so no step is left. Raise denoise"
        )
    return rest.float()
