"""Decide which predictor a run takes, the same way for every host.

choice = choose(library, Request(identity, sampler="auto", nfe=5, guidance=4.0))

`preferred` has the order of all sources of a predictor; `choose` searches the library."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .constants import from_the_top, same_times
from .double import as_double
from .files import Fitted, Library, PredictorError
from .fingerprint import Identity
from .kdiffusion import solver_of
from .request import AUTO, PLAIN, UNTRAINED, Choice, Report, Request, no_schedule
from .unfitted import plain_for, plain_remark, untrained, untrained_for

__all__ = [  # what hosts need, of this module and of request and unfitted
    "AUTO", "PLAIN", "UNTRAINED", "Choice", "Identity", "Report", "Request", "choose",
    "mismatches", "no_schedule", "plain_for", "preferred", "untrained", "untrained_for", "usable",
    "within_reach",
]  # fmt: skip
T = TypeVar("T")
FAILED = "is no better than no sampling at all, as its own fit measured"
REACH = 1.6  # a predictor may run with at most this many times its number of noise levels, or 1 / REACH of it


def preferred(
    take: Callable[[Fitted], T],
    library: Callable[[], T],
    *,
    named: Fitted | Callable[[], Fitted] | None = None,
    attached: Fitted | None = None,
    carried: Callable[[], Fitted | None] | None = None,
) -> tuple[T, list[str]]:
    """Use the first predictor (the fitted constants of a sampler) that is available, in this order:

    1. the predictor that the user named or linked: first its copy stored in the workflow, then the file;
    2. the predictor attached to the MODEL (in a WebUI: prepared for this generation);
    3. a copy stored in the workflow, of a predictor that an earlier run took from the library;
    4. the library of predictor files, by calling `library`.

    Args:
        take: function that uses a predictor (1 to 3); raises PredictorError if the run cannot use it.
        library: function that searches the library (4), usually by `choose`.
        named: the named predictor (1), or a function that loads it; None if the user named none.
        attached: the attached predictor (2); None if there is none.
        carried: function that returns the copy stored in the workflow, or None if there is none. Pass None
            where there are no workflows (WebUI). A copy that cannot be read or used is skipped with a
            remark.

    Returns:
        The result of `take` or `library`, and remarks for the user.

    Raises:
        PredictorError: A named or attached predictor cannot be used; it is never replaced silently."""
    if named is None and attached is not None:
        return take(attached), []
    remarks = list[str]()
    try:
        copy = carried() if carried is not None else None
        if copy is not None:
            return take(copy), []
    except PredictorError as error:
        remarks.append(f"not taken from the workflow: {error}")
    if named is None:
        return library(), remarks
    return take(named() if callable(named) else named), remarks


def choose(library: Library, request: Request) -> Choice:
    """Return the predictor (fitted constants) for a run: `request.fitted` if it is set, else the best one in
    the library of predictor files.

    Predictors for the same checkpoint are preferred to others of its model family, and of several the nearest
    guidance scale is taken (see `best`). If none fits, `request.if_missing` says whether to raise an error or
    to run a solver without fitted constants.

    Raises:
        PredictorError: No predictor fits. The message says what was looked for, what there is, and what to
            do.
        ValueError: A solver without fitted constants cannot run at this number of evaluations."""
    fitted, remarks, count = request.fitted, list[str](), request.count
    missing = PredictorError("")
    if fitted is not None:
        check_fits(fitted, request)
        if not fitted.spec.usable:
            remarks.append(f"{fitted.name} {FAILED}: calibrate again, or choose another")
    else:
        try:
            fitted = find(library, request)
            if request.below and not within_reach(fitted, count):
                steps = count - 1
                raise PredictorError(
                    f"the predictor {fitted.label} was not fitted for {steps} steps or a similar number: "
                    f"calibrate a predictor for {steps} steps"
                )
        except PredictorError as error:
            fitted, missing = near(library, request) if request.below and not request.exact else None, error
    if fitted is None:
        if request.if_missing == PLAIN:
            fitted = plain_for(request)
            remarks.append(plain_remark(fitted, missing, request))
        elif request.if_missing == UNTRAINED:
            fitted = untrained_for(request)
            remarks.append(f"untrained, as asked: {str(missing).splitlines()[0]}")
        else:
            raise missing
    sigmas, grid = fitted.sigmas(), "own"
    if isinstance(request.times, Tensor):
        sigmas = as_double(request.times)
        if not same_times(sigmas, fitted.base):
            high = fitted.spec.sigma_max
            grid = "other" if from_the_top(sigmas, high) or sigmas[0] > high else "below"
    elif count not in (0, len(sigmas)):
        remarks.append(f"fitted for {len(sigmas) - 1} steps, running {count - 1}: constants are interpolated")
        sigmas = resampled(sigmas, count)
    remarks += mismatches(fitted, request.model, request.guidance)
    remarks += left_out(library, request, fitted)
    return Choice(fitted, sigmas, tuple(remarks), grid)


def left_out(library: Library, request: Request, fitted: Fitted) -> list[str]:
    """Return a remark that names a predictor that the run cannot use, if the library has one: it was fitted
    for the run's checkpoint and number of evaluations, but needs guidance's conditional and unconditional
    result separately, and the run has only the guided one."""
    excluded = [
        f for f in library.fitted()
        if f.wants_halves and not request.halves
        and f.nfe == fitted.nfe and request.model.same(f.spec.identity)
    ]  # fmt: skip
    return [
        f"{f.label} left out: it needs the conditional and the unconditional result separately, which this "
        "run does not give"
        for f in excluded[:1]
    ]


def check_fits(fitted: Fitted, request: Request) -> None:
    """Check that a predictor that the user named, linked or attached fits a request.

    Raises:
        PredictorError: It was fitted for another sampler or number of evaluations, or it needs guidance's
            conditional and unconditional result separately, which the run cannot provide."""
    sampler, nfe = fitted.spec.sampler, fitted.nfe
    if fitted.wants_halves and not request.halves:
        raise PredictorError(
            f"the predictor {fitted.label} needs the conditional and the unconditional result separately, "
            "which this run's guidance (a patch such as RescaleCFG or PAG, or a special guider) does not "
            "allow: remove the patch or guider, or choose another predictor"
        )
    if fitted.spec.of != request.of:
        sampler_name = fitted.spec.of or sampler
        fitted_sampler = f"the host's sampler {sampler_name}" if fitted.spec.of else sampler_name
        run_sampler = request.of or "an AMED sampler"
        raise PredictorError(
            f"the predictor {fitted.label} was fitted for {fitted_sampler}, not for {run_sampler}: "
            f"run it in a node where you can choose {sampler_name}, or choose another predictor"
        )
    if not fitted.spec.answers(request.sampler):
        raise PredictorError(
            f"the predictor {fitted.label} was fitted for {sampler}, not for {request.sampler}: set sampler "
            f"to auto or {sampler}, or choose another predictor"
        )
    if request.nfe not in (None, nfe):
        raise PredictorError(
            f"the predictor {fitted.label} takes {nfe} evaluations, not {request.nfe}: set nfe to {nfe}, or "
            "choose another predictor"
        )


def find(library: Library, request: Request) -> Fitted:
    """Return the best predictor for a run from the library of predictor files, looked up by the run's noise
    levels, or by its number of evaluations if the request states no noise levels.

    Raises:
        PredictorError: No predictor fits."""
    fits = [f for f in usable(library, request) if f.spec.answers(request.sampler)]
    if request.times is None:
        return by_nfe(library, fits, request, request.nfe)
    times = request.times if isinstance(request.times, Tensor) else torch.empty(0)
    family, count = request.model.family, request.count
    # A plain solver that a fit for this sampler saved takes another number of evaluations per step. It is
    # used on its own noise levels, or as the last resort where only their number is given, and it matches.
    saved_plain = [f for f in fits if f.spec.num_steps == count and f.spec.model_family == family]
    fits = [f for f in fits if request.sampler in (AUTO, f.spec.sampler) or same_times(times, f.base)]
    same_count = [f for f in fits if f.spec.num_steps == count and f.spec.model_family == family]
    same_levels = [f for f in same_count if same_times(times, f.base)]
    if same_levels or (same_count and not request.exact):
        return best(same_levels or same_count, request)
    nfe = count - 1
    if request.sampler != AUTO:
        nfe = solver_of(request.sampler).evaluations(count, False, True)
    if request.exact:
        raise not_found(library, request, nfe)
    try:
        return by_nfe(library, fits, request, nfe)
    except PredictorError:
        if isinstance(request.times, int) and saved_plain:
            return best(saved_plain, request)
        raise


def usable(library: Library, request: Request) -> list[Fitted]:
    """Return the predictors of the library (a folder of predictor files) that a run can use.

    Left out are predictors for samplers of another origin (this package, or ComfyUI or the WebUI), those
    whose file says that they are no better than no sampling at all, and those that need guidance's
    conditional and unconditional result separately if the run cannot provide that."""
    fits = [f for f in library.fitted() if f.spec.of == request.of and f.spec.usable]
    return [f for f in fits if request.halves or not f.wants_halves]


def by_nfe(library: Library, candidates: list[Fitted], request: Request, nfe: int | None) -> Fitted:
    """Return the best of the `candidates` (predictors) that take `nfe` evaluations, or any number if `nfe` is
    None. Those for the run's checkpoint are preferred to others for its model family.

    Raises:
        PredictorError: None of the predictors fits."""
    model = request.model
    fits = [f for f in candidates if nfe in (None, f.nfe)]
    same = [f for f in fits if model.same(f.spec.identity)]
    related = [f for f in fits if model.family and f.spec.model_family == model.family]
    fits = same or related or (fits if not (model.family or model.known) else [])
    if fits:
        return best(fits, request)
    raise not_found(library, request, nfe)


def not_found(library: Library, request: Request, nfe: int | None) -> PredictorError:
    """Return the error for a request that no predictor of the library fits. Its lines are: what was looked
    for; the nearest predictor, and files that are unusable or broken; what to do (`Request.advice`)."""
    model, count = request.model, request.count
    levels = f"nfe {nfe}" if nfe else ""
    levels = f"{count} noise levels (about {nfe} evaluations)" if count else levels
    sampler = "" if request.sampler == AUTO else request.sampler
    settings = ", ".join(filter(None, (sampler, levels, f"guidance {request.guidance:g}")))
    checkpoint = f" checkpoint ({model.fingerprint[:8]})" if model.fingerprint else ""
    wanted = f"no predictor for {settings} and this {model.family or 'model'}{checkpoint}"

    def distance(f: Fitted) -> tuple[bool, float, bool, float]:
        other_sampler = not f.spec.answers(request.sampler)
        away = ratio(f.nfe, nfe or f.nfe), other_sampler, ratio(f.spec.guidance, request.guidance)
        return model.known and not model.same(f.spec.identity), *away

    related = [f for f in usable(library, request) if model.family and f.spec.model_family == model.family]
    least = min(map(distance, related), default=None)
    nearest = [f for f in related if distance(f) == least]
    available = (
        f"The nearest is {best(nearest, request).label}."
        if nearest
        else "There is none for this kind of model yet."
    )
    failed = [f for f in library.fitted() if not f.spec.usable and f.nfe == (nfe or f.nfe)]
    failed = [f for f in failed if f.spec.model_fingerprint == model.fingerprint]
    problems = [f"{f.name} is left out: it {FAILED}." for f in failed]
    problems += [f"Broken file: {problem}." for problem in library.problems()]
    lines = wanted, " ".join([available, *problems]), request.advice
    return PredictorError("\n".join(filter(None, lines)))


def best(fits: list[Fitted], request: Request) -> Fitted:
    """Return the best of predictors that all fit a request.

    Predictors for the same checkpoint come first, or, if the model cannot be identified, those whose file
    names no checkpoint; then those at the nearest guidance scale, by ratio. Of these, the one with the lowest
    error according to its file is returned. The error is the RMSE to the reference images times the square
    root of the Fréchet distance if all files state both, else the RMSE if any file states it, else the
    Fréchet distance."""

    def distance(f: Fitted) -> tuple[bool, float]:
        model, identity = request.model, f.spec.identity
        other = not model.same(identity) if model.known else identity.known
        return other, ratio(f.spec.guidance, request.guidance)

    nearest = min(map(distance, fits))
    alike = [f for f in fits if distance(f) == nearest]
    both = {f.name: f.spec.metric("rmse_ref") * max(f.spec.metric("fd_ref"), 0.0) ** 0.5 for f in alike}
    if all(value < math.inf for value in both.values()):
        return min(alike, key=lambda f: both[f.name])
    by = "rmse_ref" if any(f.spec.metric("rmse_ref") < math.inf for f in alike) else "fd_ref"
    return min(alike, key=lambda f: f.spec.metric(by))


def near(library: Library, request: Request) -> Fitted | None:
    """Return a predictor for a run that starts below the highest noise level, e.g. img2img.

    It is the one that was fitted for the run's checkpoint and the nearest number of noise levels; None if all
    these numbers differ from the run's by more than a factor of 1.6."""
    sampler, count = request.sampler, request.count
    fits = [f for f in usable(library, request) if sampler in (AUTO, f.spec.sampler)]
    fits = [f for f in fits if within_reach(f, count) and request.model.same(f.spec.identity)]

    def distance(f: Fitted) -> tuple[float, float]:
        return ratio(f.spec.num_steps, count), ratio(f.spec.guidance, request.guidance)

    return min(fits, key=distance, default=None)


def within_reach(fitted: Fitted, count: int) -> bool:
    """Return whether `count` noise levels differ by at most a factor of 1.6 (REACH) from the number that a
    predictor was fitted on."""
    return 1 / REACH <= count / fitted.spec.num_steps <= REACH


def ratio(a: float, b: float) -> float:
    """Return the distance of two positive numbers on a log scale."""
    return abs(math.log(max(a, 1e-3) / max(b, 1e-3)))


def resampled(times: Tensor, count: int) -> Tensor:
    """Return a schedule with the same ends and shape as `times`, but `count` noise levels, float64
    `[count]`."""
    at = np.linspace(0, len(times) - 1, count)
    return torch.from_numpy(np.exp(np.interp(at, np.arange(len(times)), times.log().numpy())))


def mismatches(fitted: Fitted, model: Identity, guidance: float) -> list[str]:
    """Return remarks on how a run differs from what a predictor was fitted for: model family, checkpoint,
    guidance."""
    spec, remarks = fitted.spec, []
    if spec.model_family and model.family and spec.model_family != model.family:
        remarks.append(f"fitted for a model of the family {spec.model_family}, this is {model.family}")
    elif spec.identity.known and model.known and not model.same(spec.identity):
        checkpoint = spec.model_name or spec.model_fingerprint
        merged = ", this is a merge" if model.merge else ""
        remarks.append(f"fitted for another checkpoint of this family ({checkpoint}){merged}")
    if fitted.name not in (PLAIN, UNTRAINED) and ratio(spec.guidance, guidance) > 0.01:
        remarks.append(f"fitted at guidance {spec.guidance:g}, running at {guidance:g}")
    return remarks
