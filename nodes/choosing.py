"""What amed.choose is asked, for a MODEL of this host; it alone decides."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..amed import Fitted, schedules
from ..amed.choose import AUTO, PLAIN, Choice, Request, choose, plain_for
from ..amed.fit import plain_solvers
from ..amed.kdiffusion import solver_of
from ..amed.recipes import Solver
from .folders import library
from .model import base_times, identity, is_flow, sampling_of, sigma_range, start_sigma, whole_guidance

CALIBRATE = "calibrate now (quick)"
ADVICE = f"Set if_missing to {PLAIN} or {CALIBRATE!r}, or fit one with Calibrate AMED."


def request(model: Any, sampler: str, guidance: float, halves: bool = True, **asked: Any) -> Request:
    """For a MODEL; halves: whether whatever runs it lets guidance be taken apart; `asked`: the other fields
    of Request."""
    model_sampling = sampling_of(model)
    return Request(
        identity(model),
        sampler,
        guidance,
        schedule=lambda count: base_times(model_sampling, count),
        afs=not is_flow(model_sampling),
        halves=halves and not whole_guidance(model.model_options),
        advice=ADVICE,
        **asked,
    )


def plain_choice(model: Any, nfe: int, guidance: float) -> Choice:
    """The best plain solver known for a MODEL, whatever was fitted."""
    asked = request(model, AUTO, guidance, nfe=nfe)
    return choose(library(), replace(asked, fitted=plain_for(asked)))


def reference_setting(model: Any, evaluations: int) -> plain_solvers.Setting:
    """The many-step run that others are measured by, as calibrations have it."""
    model_sampling = sampling_of(model)
    low, high = sigma_range(model_sampling)
    rho = 1.0 if is_flow(model_sampling) else 7.0
    return plain_solvers.Setting(Solver("ipndm", 3), "polynomial", rho, evaluations + 1, False, low, high)


def own_name(sampler: str, fitted: Fitted | None) -> str:
    """The sampler to ask for with a predictor at hand: its own where it is the same solver. DPM++ 2M and 3M
    are one, the file's own order runs."""
    if fitted is None or fitted.spec.of or sampler == AUTO:
        return sampler
    own = fitted.spec.sampler
    return own if solver_of(own).name == solver_of(sampler).name else sampler


def cut_short(nfe: int, denoise: float, ran: int) -> list[str]:
    """What is to be said where `cut` left fewer evaluations than were asked for."""
    if not 0.0 < denoise < 1.0 or ran >= nfe:
        return []
    return [
        f"denoise {denoise:g} begins inside this schedule: {ran} of the {nfe} evaluations were below it and "
        f"ran. For about {nfe}, set nfe to {round(nfe / denoise)}; or use the ordinary KSampler with {nfe} "
        "steps and the amed scheduler, which puts all its steps below"
    ]


def cut(times: Tensor, model: Any, denoise: float) -> Tensor:
    """The base times from the noise level on at which `denoise` of the model's time is left, float32; none at
    denoise 0, as the host has it.

    Raises ValueError when that is below the last time."""
    if denoise >= 1.0:
        return times.float()
    if denoise <= 0.0:
        return times[:0].float()
    start = start_sigma(sampling_of(model), denoise)
    rest = schedules.from_start(times, start)
    if len(rest) < 2:
        raise ValueError(
            f"denoise {denoise:g} starts at the noise level {start:.4g}, below this schedule's last one "
            f"({float(times[-1]):.4g}): nothing is left to do. Raise denoise"
        )
    return rest.float()
