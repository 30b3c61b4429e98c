"""Which predictor a run takes: the one place where that is decided, for every host.

choice = choose(library, Request(identity, sampler="auto", nfe=5, guidance=4.0))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from . import known
from .constants import Constants, Multistep, as_multistep, from_the_top, same_times
from .double import as_double
from .files import Fitted, Library, PredictorError, Spec
from .fingerprint import Identity as Identity
from .kdiffusion import solver_of

AUTO, PLAIN, UNTRAINED = "auto", "plain", "untrained"
PATCHED = "this run's guidance (a patch like RescaleCFG or PAG, or a guider of its own) does not allow"
FAILED = "is no better than no sampling at all, as its own fit measured it"
REACH = 1.6  # a predictor is stretched to at most so many times its noise levels, or shrunk as much


def no_schedule(count: int) -> Tensor:
    raise ValueError("no schedule was given to run untrained on")


@dataclass(frozen=True)
class Request:
    """What a run asks for.

    model, guidance: what it samples with. sampler: of kdiffusion.ENTRIES, or "auto": the best of all, by the
    error that files state. nfe: evaluations; or times: the noise levels above 0 it will run over, or how many
    of them. fitted: a predictor named, or carried by the model. below: only the lower part of these is run
    (img2img, hires fix), so one fitted for this very checkpoint for about as many serves. halves: whether
    guidance's halves can be taken apart here; if not, no predictor that does so is taken. of: the sampler of
    the host's own that is to be wrapped; "": one of ours runs. if_missing: "error"; "plain", the best plain
    solver known (see known.py); or "untrained", AMED's own solvers with no constants: both on
    `schedule(count)`. afs: whether a first step may be analytic. exact: a predictor of the library is taken
    for just the noise levels it was fitted on, and never interpolated onto `times`. advice: the host's words
    for what to do, in an error, and with `exact` where a plain solver runs."""

    model: Identity
    sampler: str = AUTO
    guidance: float = 1.0
    nfe: int | None = None
    times: Tensor | int | None = None
    fitted: Fitted | None = None
    below: bool = False
    halves: bool = True
    of: str = ""
    if_missing: str = "error"
    schedule: Callable[[int], Tensor] = no_schedule
    afs: bool = True
    exact: bool = False
    advice: str = ""

    @property
    def count(self) -> int:
        """How many noise levels are asked for, 0 where it is evaluations."""
        return len(self.times) if isinstance(self.times, Tensor) else self.times or 0


@dataclass(frozen=True)
class Choice:
    """What runs: a predictor, by which sampler, over which noise levels (float64, no 0), and what is to be
    said. grid: whether these are "own", the ones it was fitted on, "below" them, or "other"."""

    fitted: Fitted
    sigmas: Tensor
    remarks: tuple[str, ...] = ()
    grid: str = "own"

    @property
    def sampler(self) -> str:
        return self.fitted.spec.sampler


def choose(library: Library, request: Request) -> Choice:
    """The predictor for a request: the one it names, else the library's for this checkpoint, else for its
    family; of these the one for the nearest guidance scale. Raises PredictorError: what was looked for, what
    there is, and what to do; ValueError for an untrained run that cannot be."""
    fitted, said, count = request.fitted, list[str](), request.count
    missing = PredictorError("")
    if fitted is not None:
        agree(fitted, request)
        said += [f"{fitted.name} {FAILED}: calibrate again, or choose another"] * (not fitted.spec.usable)
    else:
        try:
            fitted = find(library, request)
            if request.below and not within_reach(fitted, count):
                raise PredictorError(f"{fitted.label} is not for {count - 1} steps")
        except PredictorError as error:
            fitted, missing = near(library, request) if request.below and not request.exact else None, error
    if fitted is None:
        if request.if_missing == PLAIN:
            fitted = plain_for(request)
            said.append(instead(fitted, missing, request))
        elif request.if_missing == UNTRAINED:
            fitted = untrained_for(request)
            said.append(f"untrained, as asked: {str(missing).splitlines()[0]}")
        else:
            raise missing
    sigmas, grid = fitted.sigmas(), "own"
    if isinstance(request.times, Tensor):
        sigmas = as_double(request.times)
        if not same_times(sigmas, fitted.base):
            high = fitted.spec.sigma_max
            grid = "other" if from_the_top(sigmas, high) or sigmas[0] > high else "below"
    elif count not in (0, len(sigmas)):
        said.append(f"fitted for {len(sigmas) - 1} steps, running {count - 1}: constants are interpolated")
        sigmas = spread(sigmas, count)
    said += mismatches(fitted, request.model, request.guidance)
    said += left_out(library, request, fitted)
    return Choice(fitted, sigmas, tuple(said), grid)


def left_out(library: Library, request: Request, fitted: Fitted) -> list[str]:
    """What is said of predictors for this checkpoint and so many evaluations that cannot be used here."""
    apart = [
        f for f in library.fitted()
        if f.halved and not request.halves and f.nfe == fitted.nfe and request.model.same(f.spec.identity)
    ]  # fmt: skip
    return [f"{f.label} left out: it takes guidance apart, which {PATCHED}" for f in apart[:1]]


def agree(fitted: Fitted, request: Request) -> None:
    """Raises PredictorError where a predictor that was named is not for the sampler or the evaluations, or
    takes guidance apart where that cannot be."""
    sampler, nfe = fitted.spec.sampler, fitted.nfe
    if fitted.halved and not request.halves:
        wrong = f"takes the halves of guidance apart, which {PATCHED}"
        raise PredictorError(f"{fitted.label} {wrong}: take it off, or choose another predictor")
    if fitted.spec.of != request.of:
        whose = f"for the host's sampler {fitted.spec.of}" if fitted.spec.of else f"for {sampler}"
        mend = f"run it where you can choose {fitted.spec.of or sampler}, or choose another predictor"
        raise PredictorError(f"{fitted.label} was fitted {whose}, not for {request.of or 'our own'}: {mend}")
    if not fitted.spec.answers(request.sampler):
        wrong = f"was fitted for {sampler}, not for {request.sampler}: set sampler to auto or {sampler}"
        raise PredictorError(f"{fitted.label} {wrong}, or choose another predictor")
    if request.nfe not in (None, nfe):
        wrong = f"takes {nfe} evaluations, not {request.nfe}: set nfe to {nfe}"
        raise PredictorError(f"{fitted.label} {wrong}, or choose another predictor")


def find(library: Library, request: Request) -> Fitted:
    """The library's, by noise levels or by evaluations. Raises PredictorError."""
    mine = [f for f in usable(library, request) if f.spec.answers(request.sampler)]
    if request.times is None:
        return by_nfe(library, mine, request, request.nfe)
    times = request.times if isinstance(request.times, Tensor) else torch.empty(0)
    # what a fit for this sampler kept instead takes other evaluations a step: it serves on its own levels
    mine = [f for f in mine if request.sampler in (AUTO, f.spec.sampler) or same_times(times, f.base)]
    family, count = request.model.family, request.count
    fits = [f for f in mine if f.spec.num_steps == count and f.spec.model_family == family]
    own = [f for f in fits if same_times(times, f.base)]
    if own or (fits and not request.exact):
        return best(own or fits, request)
    nfe = count - 1
    if request.sampler != AUTO:
        nfe = solver_of(request.sampler).evaluations(count, False, True)
    if request.exact:
        raise none_for(library, request, nfe)
    return by_nfe(library, mine, request, nfe)


def usable(library: Library, request: Request) -> list[Fitted]:
    """The library's for our samplers, or for the host's that is asked for, but for those that take guidance
    apart where that cannot be, and those whose own fit found them no better than no sampling."""
    mine = [f for f in library.fitted() if f.spec.of == request.of and f.spec.usable]
    return [f for f in mine if request.halves or not f.halved]


def by_nfe(library: Library, mine: list[Fitted], request: Request, nfe: int | None) -> Fitted:
    """Of `mine`, the one for so many evaluations. Raises PredictorError."""
    model = request.model
    fits = [f for f in mine if nfe in (None, f.nfe)]
    same = [f for f in fits if model.same(f.spec.identity)]
    kin = [f for f in fits if model.family and f.spec.model_family == model.family]
    fits = same or kin or (fits if not (model.family or model.known) else [])
    if fits:
        return best(fits, request)
    raise none_for(library, request, nfe)


def none_for(library: Library, request: Request, nfe: int | None) -> PredictorError:
    """What was looked for; the nearest there is, and files that cannot be read; what to do: a line each."""
    model, count = request.model, request.count
    levels = f"nfe {nfe}" if nfe else ""
    levels = f"{count} noise levels (about {nfe} evaluations)" if count else levels
    asked = ("" if request.sampler == AUTO else request.sampler, levels, f"guidance {request.guidance:g}")
    whose = f"this {model.family or 'model'}"
    whose += f" checkpoint ({model.fingerprint[:8]})" if model.fingerprint else ""
    wanted = f"no predictor for {', '.join(filter(None, asked))} and {whose}"

    def distance(f: Fitted) -> tuple[bool, float, bool, float]:
        other_sampler = not f.spec.answers(request.sampler)
        away = ratio(f.nfe, nfe or f.nfe), other_sampler, ratio(f.spec.guidance, request.guidance)
        return model.known and not model.same(f.spec.identity), *away

    kin = [f for f in usable(library, request) if model.family and f.spec.model_family == model.family]
    least = min(map(distance, kin), default=None)
    near = [f for f in kin if distance(f) == least]
    there = (
        f"The nearest is {best(near, request).label}."
        if near
        else "There is none for this kind of model yet."
    )
    failed = [f for f in library.fitted() if not f.spec.usable and f.nfe == (nfe or f.nfe)]
    own = [f for f in failed if f.spec.model_fingerprint == model.fingerprint]
    broken = " ".join([
        *(f"{f.name} is left out: it {FAILED}." for f in own),
        *(f"Broken file: {problem}." for problem in library.problems()),
    ])  # fmt: skip
    return PredictorError("\n".join(filter(None, (wanted, f"{there} {broken}".strip(), request.advice))))


def best(fits: list[Fitted], request: Request) -> Fitted:
    """Of predictors that all would do: this very checkpoint's (where that cannot be told, one for no
    checkpoint in particular), the nearest guidance scale (by ratio), and the one whose file states the least
    error to the reference, times the root of its Fréchet distance where all state both (where none states an
    error, the least distance)."""

    def distance(f: Fitted) -> tuple[bool, float]:
        model, theirs = request.model, f.spec.identity
        other = not model.same(theirs) if model.known else theirs.known
        return other, ratio(f.spec.guidance, request.guidance)

    nearest = min(map(distance, fits))
    alike = [f for f in fits if distance(f) == nearest]
    both = {f.name: f.spec.stated("rmse_ref") * max(f.spec.stated("fd_ref"), 0.0) ** 0.5 for f in alike}
    if all(value < math.inf for value in both.values()):
        return min(alike, key=lambda f: both[f.name])
    by = "rmse_ref" if any(f.spec.stated("rmse_ref") < math.inf for f in alike) else "fd_ref"
    return min(alike, key=lambda f: f.spec.stated(by))


def near(library: Library, request: Request) -> Fitted | None:
    """For a run over the lower part of a schedule whose steps nobody fitted: the nearest in number that was
    fitted for this very checkpoint."""
    sampler, count = request.sampler, request.count
    mine = [f for f in usable(library, request) if sampler in (AUTO, f.spec.sampler)]
    fits = [f for f in mine if within_reach(f, count) and request.model.same(f.spec.identity)]

    def distance(f: Fitted) -> tuple[float, float]:
        return ratio(f.spec.num_steps, count), ratio(f.spec.guidance, request.guidance)

    return min(fits, key=distance, default=None)


def within_reach(fitted: Fitted, count: int) -> bool:
    return 1 / REACH <= count / fitted.spec.num_steps <= REACH


def ratio(a: float, b: float) -> float:
    return abs(math.log(max(a, 1e-3) / max(b, 1e-3)))


def spread(times: Tensor, count: int) -> Tensor:
    """A schedule's ends and shape with another number of noise levels, float64 `[count]`."""
    at = np.linspace(0, len(times) - 1, count)
    return torch.from_numpy(np.exp(np.interp(at, np.arange(len(times)), times.log().numpy())))


def plain_for(request: Request) -> Fitted:
    """The best plain solver known for a request, as a predictor that learned nothing. Raises ValueError for
    no evaluations at all."""
    solver = known.on_list(request.guidance) if request.exact else known.fallback()
    afs, given = False, request.times
    if request.nfe is not None and request.nfe < 1:
        raise ValueError(f"nfe is {request.nfe}: at least 1 evaluation is needed")
    if isinstance(given, Tensor):
        times, nfe = as_double(given), len(given) - 1
        found = best_known(request, nfe)  # every level given is evaluated: none of an analytic first step
        if found and same_times(times, found.sigmas(nfe, float(times[-1]), float(times[0]))):
            solver = found.solver
    else:
        nfe = request.nfe or request.count - 1
        found, ends = best_known(request, nfe), request.schedule(2)
        times = found.sigmas(nfe, float(ends[-1]), float(ends[0])) if found else request.schedule(nfe + 1)
        solver, afs = (found.solver, found.afs) if found else (solver, afs)
    if len(times) < 2:  # one level and 0: the model's denoised image; no move for a solver to make
        times = torch.cat([times, times / 2])
    spec = Spec.on(solver, times, afs=afs, features="plain", model_name="nothing fitted")
    return Fitted(spec, None, times, PLAIN)


def best_known(request: Request, nfe: int) -> known.Known | None:
    """As known.best, but for what this run cannot do, and in the number of noise levels that it wants."""
    found = known.best(request.model.family, nfe, request.guidance) if nfe > 0 else None
    fits = found is not None and (request.afs or not found.afs)
    return found if fits and found and request.count in (0, found.count(nfe)) else None


def instead(plain: Fitted, missing: PredictorError, request: Request) -> str:
    """What is said where a plain solver runs: that, why, what there is, and what to do or what calibrating
    would give."""
    lines = str(missing).splitlines()
    near = next((f" {line}" for line in lines[1:] if line.startswith("The nearest")), "")
    order = f"-{plain.spec.max_order}" if plain.spec.max_order > 1 else ""
    gain = f"Calibrating once gave {1 - known.GAIN:.0%} less error on the demo model."
    gain = request.advice if request.exact else gain
    return f"the plain solver {plain.spec.solver}{order} ran: {lines[0]}.{near} {gain}".strip()


def untrained_for(request: Request) -> Fitted:
    """The untrained solver for a request. Raises ValueError for a number of evaluations it cannot take."""
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
            f"the untrained {sampler} cannot take {nfe} evaluations on this model: set nfe to {allowed}"
        )
    return untrained(sampler, request.schedule((nfe + 1) // 2 + 1 if two else nfe + 1), odd)


def untrained(sampler: str, times: Tensor, afs: bool = False) -> Fitted:
    """The plain solver as a predictor: geometric midpoints (r = 1/2), no scales; for multistep, iPNDM-2."""
    solver, times = solver_of(sampler), as_double(times)
    if len(times) < 2:  # one level and 0: the model's denoised image; constants have nothing to act on
        times = torch.cat([times, times / 2])
    kind = "geometric midpoints" if solver.has_recipe else known.FALLBACK
    constants: Constants | Multistep
    if solver.has_recipe:
        constants = Constants(times, False, solver.recipe.constants)
    else:
        constants = as_multistep(solver, times, afs)
    spec = Spec.on(solver, times, afs=afs, model_name=f"untrained: {kind}")
    return Fitted(spec, constants, times, UNTRAINED)


def mismatches(fitted: Fitted, model: Identity, guidance: float) -> list[str]:
    """What a predictor was not fitted for, in words."""
    spec, remarks = fitted.spec, []
    if spec.model_family and model.family and spec.model_family != model.family:
        remarks.append(f"fitted for a model of the family {spec.model_family}, this is {model.family}")
    elif spec.identity.known and model.known and not model.same(spec.identity):
        whose = spec.model_name or spec.model_fingerprint
        merged = ", this is a merge" if model.merge else ""
        remarks.append(f"fitted for another checkpoint of this family ({whose}){merged}")
    if fitted.name not in (PLAIN, UNTRAINED) and ratio(spec.guidance, guidance) > 0.01:
        remarks.append(f"fitted at guidance {spec.guidance:g}, running at {guidance:g}")
    return remarks


@dataclass
class Report:
    """What a run did: `evaluations` one after the other, `rows` through the network (None: not countable
    here), `batch` images, the predictor, remarks."""

    evaluations: int = 0
    rows: int | None = None
    batch: int = 1
    fitted: Fitted | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def passes(self) -> int | None:
        """Network passes per image; guidance makes two of most evaluations."""
        return None if self.rows is None else round(self.rows / self.batch)

    def text(self) -> str:
        passes = "" if self.passes is None else f", {self.passes} network passes an image"
        lines = [
            f"predictor: {self.fitted.label}" if self.fitted else "predictor: none",
            f"evaluations counted: {self.evaluations}{passes}",
        ]
        return "\n".join(lines + [f"note: {remark}" for remark in self.remarks])
