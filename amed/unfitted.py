"""The solvers that run where nothing was fitted, as predictors: the best plain one known, or the untrained
one."""

import torch
from torch import Tensor

from . import known
from .constants import Constants, Multistep, as_multistep, same_times
from .double import as_double
from .files import Fitted, PredictorError, Spec
from .kdiffusion import solver_of
from .request import AUTO, PLAIN, UNTRAINED, Request


def plain_for(request: Request) -> Fitted:
    """Return the best known solver without a predictor for a request, as a `Fitted` without constants.

    Raises:
        ValueError: The request is for fewer than 1 evaluation."""
    solver = known.on_list(request.guidance) if request.exact else known.fallback()
    afs, given = False, request.times
    if request.nfe is not None and request.nfe < 1:
        raise ValueError(f"nfe is {request.nfe}, but a run needs an evaluation: set nfe to at least 1")
    if isinstance(given, Tensor):
        times, nfe = as_double(given), len(given) - 1
        measured = best_known(request, nfe)  # without an analytic first step: every given level is evaluated
        if measured and same_times(times, measured.sigmas(nfe, float(times[-1]), float(times[0]))):
            solver = measured.solver
    else:
        nfe = request.nfe or request.count - 1
        measured, ends = best_known(request, nfe), request.schedule(2)
        if measured:
            solver, afs = measured.solver, measured.afs
            times = measured.sigmas(nfe, float(ends[-1]), float(ends[0]))
        else:
            times = request.schedule(nfe + 1)
    spec_times = at_least_two(times)
    spec = Spec.on(solver, spec_times, afs=afs, features="plain", model_name="nothing fitted")
    return Fitted(spec, None, spec_times, PLAIN)


def at_least_two(times: Tensor) -> Tensor:
    """Return the noise levels `times`, at least two of them, because a predictor's header needs two.

    A single level is followed by half of it. This has no effect: a run over one level and 0 only takes the
    model's denoised image."""
    return times if len(times) > 1 else torch.cat([times, times / 2])


def best_known(request: Request, nfe: int) -> known.Known | None:
    """Return the plain solver that was measured as best for the model family and `nfe` evaluations.

    None if nothing was measured, or if that solver needs an analytic first step or a number of noise levels
    that the request does not allow."""
    measured = known.best(request.model.family, nfe, request.guidance) if nfe > 0 else None
    if measured is None or (measured.afs and not request.afs):
        return None
    return measured if request.count in (0, measured.count(nfe)) else None


def plain_remark(plain: Fitted, missing: PredictorError, request: Request) -> str:
    """Return the remark for a run without a predictor: the plain solver that ran and why, the nearest
    predictor, and advice.

    The advice is to calibrate; if `request.exact` is set, it is `request.advice`, a text of the host (ComfyUI
    or WebUI), e.g. to choose another schedule."""
    lines = str(missing).splitlines()
    nearest = next((f" {line}" for line in lines[1:] if line.startswith("The nearest")), "")
    order = f"-{plain.spec.max_order}" if plain.spec.max_order > 1 else ""
    gain = f"Calibrating once gave {1 - known.GAIN:.0%} less error on the demo model."
    gain = request.advice if request.exact else gain
    return f"the plain solver {plain.spec.solver}{order} ran: {lines[0]}.{nearest} {gain}".strip()


def untrained_for(request: Request) -> Fitted:
    """Return the solver of the requested sampler as a predictor with default constants: nothing was fitted.

    Raises:
        ValueError: The solver cannot take this number of evaluations."""
    sampler, nfe = "amed" if request.sampler == AUTO else request.sampler, request.nfe or 0
    two = solver_of(sampler).each(learned=True) == 2
    odd = two and nfe % 2 == 1
    if isinstance(request.times, Tensor):
        return untrained(sampler, request.times)
    if request.times is not None:
        return untrained(sampler, request.schedule(request.times), odd and request.afs)
    if nfe < (1 if request.afs or not two else 2) or (odd and not request.afs):
        allowed = "at least 1" if request.afs else "an even number"
        raise ValueError(
            f"{sampler} without a predictor cannot take {nfe} evaluations on this model: set nfe to {allowed}"
        )
    return untrained(sampler, request.schedule((nfe + 1) // 2 + 1 if two else nfe + 1), odd)


def untrained(sampler: str, times: Tensor, afs: bool = False) -> Fitted:
    """Return a sampler's solver as a predictor with default constants: mid time r = 1/2 and scales of 1.

    Args:
        sampler: the sampler; amed_multistep gets the weights of iPNDM of second order.
        times: noise levels, falling, without a last 0.
        afs: whether the first step is analytic, i.e. without an evaluation of the model."""
    solver, times = solver_of(sampler), at_least_two(as_double(times))
    kind = "geometric midpoints" if solver.has_recipe else known.FALLBACK
    constants: Constants | Multistep
    if solver.has_recipe:
        constants = Constants(times, False, solver.recipe.constants)
    else:
        constants = as_multistep(solver, times, afs)
    spec = Spec.on(solver, times, afs=afs, model_name=f"untrained: {kind}")
    return Fitted(spec, constants, times, UNTRAINED)
