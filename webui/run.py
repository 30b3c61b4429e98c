"""What happens during generation: which predictor, at which noise levels, sampled and said in the infotext.

amed.choose decides. A generation's settings are a `Wish` on the processing object (`p.amed`); no state is
kept elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from amed import SAMPLERS, Fitted, PredictorError, schedules
from amed.choose import (
    AUTO,
    PLAIN,
    UNTRAINED,
    Choice,
    Identity,
    Report,
    Request,
    choose,
    plain_for,
    preferred,
    untrained_for,
    within_reach,
)
from amed.constants import same_times
from amed.double import as_double

from . import host
from .evaluate import HostEvaluate
from .samplers import SCHEDULE_LABEL, Line, label_of

SETTINGS, ERROR = "as in settings", "error"
FALLBACKS = (PLAIN, UNTRAINED, ERROR)
MADE = {PLAIN: plain_for, UNTRAINED: untrained_for}  # what needs no file
ADVICE = (
    "Fit one in the AMED tab (some minutes, once), or set 'Where no predictor fits' to plain in the AMED "
    "accordion."
)
# on the demo model, 3 to 10 steps, these were best on Karras's noise levels and the others in uniform time
ON_KARRAS = ("amed", "amed_dpm_2", "amed_dpmpp_2m", "amed_dpmpp_3m", "amed_uni_pc")


@dataclass
class Wish:
    """What a generation asks for. predictor: auto, plain, untrained or a name; nfe: evaluations, 0 for as
    many as the steps take; fallback: one of FALLBACKS. prepared: the choice that the steps were set
    by; error: what is wrong with these, raised when sampling begins. calibrate: what to do instead, see
    calibrate.py."""

    predictor: str = AUTO
    nfe: int = 0
    fallback: str = PLAIN
    prepared: Choice | None = None
    error: Exception | None = None
    calibrate: Callable | None = None
    reports: list[Report] = field(default_factory=list)

    @classmethod
    def of(cls, p: Any, predictor: Any = AUTO, nfe: Any = 0, fallback: Any = SETTINGS) -> "Wish":
        """From the accordion (or API) and, where it leaves things open, the settings page. An X/Y/Z plot's
        `p.amed_predictor` and `p.amed_nfe` come first. Raises ValueError for what is no choice."""
        predictor = getattr(p, "amed_predictor", None) or (predictor if predictor != AUTO else None)
        predictor = predictor or host.setting("amed_predictor", AUTO) or AUTO
        given = getattr(p, "amed_nfe", None) or nfe or host.setting("amed_nfe", 0) or 0
        try:
            count = int(given)
        except (TypeError, ValueError, OverflowError):
            count = -1
        if not 0 <= count <= 200 or count != float(given):
            raise ValueError(
                f"AMED NFE is {given!r}: give a whole number of evaluations up to 200, or 0 to use Steps"
            )
        if fallback in (None, "", SETTINGS):
            fallback = host.setting("amed_fallback", PLAIN)
        if fallback not in FALLBACKS:
            raise ValueError(f"AMED fallback is {fallback!r}: choose one of {', '.join(FALLBACKS)}")
        return cls(str(predictor), count, fallback)

    @property
    def named(self) -> bool:
        return self.predictor != AUTO and self.predictor not in MADE

    def request(self, line: Line, who: Identity, scale: float, **more: Any) -> Request:
        """What amed.choose is asked; `more`: its other fields."""
        return Request(
            who, line.sampler, scale, self.nfe or None, if_missing=self.fallback, advice=ADVICE, **more
        )


def wish_of(p: Any) -> Wish:
    """A generation's wish; the settings' where no script of ours has run (other extensions' generations).
    Raises what is wrong with it."""
    wish = getattr(p, "amed", None)
    if wish is None:
        wish = p.amed = Wish.of(p)
    if wish.error is not None:
        raise wish.error
    return wish


# --- which predictor, which noise levels -------------------------------------------------------------------


def prepare(p: Any, line: Line, wish: Wish) -> None:
    """Before a generation: its NFE, or its predictor's, become its number of steps. Raises PredictorError
    or ValueError."""
    if not (wish.nfe or wish.named):
        return
    choice = foreseen(line, wish, host.identity(p.sd_model), host.guidance(p))
    if wish.nfe not in (0, choice.fitted.nfe):
        raise PredictorError(
            f"{choice.fitted.label} takes {choice.fitted.nfe} evaluations, not {wish.nfe}: set NFE to 0 or "
            f"{choice.fitted.nfe}, or choose another predictor"
        )
    wish.prepared, p.steps = choice, len(choice.sigmas) - 1


def foreseen(line: Line, wish: Wish, who: Identity, scale: float, steps: int = 0) -> Choice:
    """What a generation takes, by its predictor, its NFE or else its steps; where nothing was fitted the
    noise levels are not yet its own. Raises PredictorError."""
    request = wish.request(line, who, scale, schedule=lambda count: schedules.logsnr(count, 0.03, 15.0))
    if wish.named:
        return choose(host.library(), replace(request, nfe=None, fitted=named(wish.predictor, line)))
    if not wish.nfe:
        request = replace(request, times=steps + 1)
    return made(wish.predictor, request) if wish.predictor in MADE else choose(host.library(), request)


def named(name: str, line: Line) -> Fitted:
    """The library's predictor of that name, if it is this sampler's. Raises PredictorError."""
    fitted = host.library().load(name)
    if not fitted.spec.answers(line.sampler):
        whose = fitted.spec.of or label_of(fitted.spec.sampler)
        raise PredictorError(
            f"{fitted.label} was fitted for {whose}, not for {line.label}: choose "
            "that sampler, or another predictor"
        )
    return fitted


def made(kind: str, request: Request, remarks: tuple[str, ...] = ()) -> Choice:
    """The plain or the untrained solver, whatever files there are."""
    fitted = MADE[kind](request)
    return replace(
        choose(host.library(), replace(request, sampler=AUTO, nfe=None, fitted=fitted)), remarks=remarks
    )


def plan(line: Line, wish: Wish, p: Any, times: int | Tensor, schedule: Callable[[int], Tensor]) -> Choice:
    """What a pass takes for these noise levels, or for so many. `schedule(count)`: the untrained solver's.
    Raises PredictorError."""
    request = wish.request(
        line, host.identity(p.sd_model), host.guidance(p), times=times, below=host.starts_below(p),
        schedule=schedule, afs=host.prediction_type(p.sd_model) != "flow",
        halves=not host.whole_guidance(p.sd_model),
    )  # fmt: skip
    first = not host.is_hires(p)
    prepared = wish.prepared if first else None
    if wish.predictor in MADE or request.count < 2:  # one level and 0: there is nothing to choose
        return made(wish.predictor if wish.predictor in MADE else UNTRAINED, request)
    if (
        isinstance(times, Tensor) and not wish.named
    ):  # another schedule than ours: no table is stretched onto it
        if prepared is not None and not same_times(times, prepared.fitted.base):
            prepared = None
        request = replace(request, nfe=None, exact=True, advice=how_to_fit(request))
    is_named = wish.named and (first or host.library().load(wish.predictor).spec.answers(line.sampler))
    if not is_named and prepared is not None and prepared.fitted.name in MADE:
        return made(prepared.fitted.name, request, worded(prepared.remarks))
    if prepared is not None and not within_reach(prepared.fitted, request.count):
        prepared = None
    choice, _ = preferred(
        lambda fitted: choose(host.library(), replace(request, fitted=fitted, nfe=None)),
        lambda: choose(host.library(), request),
        named=(lambda: named(wish.predictor, line)) if is_named else None,
        attached=None if prepared is None else prepared.fitted,
    )
    remarks = worded(choice.remarks)
    if choice.grid != "own" and choice.fitted.name not in MADE:
        name = choice.fitted.name
        said = f"these noise levels are not those {name} was fitted on: choose the AMED schedule"
        remarks = (said, *remarks)
    return replace(choice, remarks=remarks)


def how_to_fit(request: Request) -> str:
    """What to do for a predictor in place of a plain solver on another schedule: choose ours, where the
    library has one for as many steps, else fit one first. request: with the noise levels above 0."""
    schedule = f"the schedule type {SCHEDULE_LABEL} or Automatic"
    try:
        choice = choose(host.library(), replace(request, times=request.count + 1, if_missing=ERROR))
    except PredictorError:
        return f"Fit one in the AMED tab, then choose {schedule}."
    return f"Choose {schedule} to run {choice.fitted.name}."


def worded(remarks: tuple[str, ...]) -> tuple[str, ...]:
    """As they stand in an infotext."""
    return tuple(remark.replace("untrained, as asked: ", "untrained: ") for remark in remarks)


def times(line: Line, sampler: Any, p: Any, steps: int) -> Tensor:
    """The noise levels of a pass with `steps` steps, `[steps + 1]`; the choice stays with the host's sampler
    object."""
    low, high = host.sigma_range(sampler.model_wrap)
    host.tell_schedule(p, SCHEDULE_LABEL)
    wish = wish_of(p)
    untrained = UNTRAINED in (wish.predictor, wish.fallback)

    def schedule(count: int) -> Tensor:
        if untrained and line.sampler in ON_KARRAS and count > 1:
            return schedules.make("polynomial", count, low, high)
        return host.base_times(sampler.model_wrap, count, low, high)

    sampler.amed_choice = plan(line, wish, p, steps + 1, schedule)
    return sampler.amed_choice.sigmas.float()


# --- sampling ----------------------------------------------------------------------------------------------


def run(
    line: Line,
    sampler: Any,
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None,
    callback: Callable | None,
    disable: bool | None,
) -> Tensor:
    """A sampler of the dropdown: the engine's, with the chosen predictor, asking the host and counting."""
    p, extra_args = model.p, extra_args or {}
    wish = wish_of(p)
    if wish.calibrate is not None:
        return wish.calibrate(model, x, sigmas, extra_args, callback)
    if len(sigmas) < 2:
        return x
    choice = getattr(sampler, "amed_choice", None)
    if choice is None:  # noise levels that were not ours to choose (another schedule)
        given = as_double(sigmas)
        given = given[given > 0]
        choice = plan(line, wish, p, given, lambda count: given)
    masked = getattr(model, "mask", None) is not None
    evaluate = HostEvaluate(host.current_network, host.row_order())
    try:
        return SAMPLERS[choice.sampler](
            model,
            x,
            sigmas,
            extra_args,
            callback,
            disable,
            predictor=choice.fitted.to(x.device),
            afs=False if masked else None,
            evaluate=evaluate,
        )
    finally:
        remarks = list(choice.remarks)
        if evaluate.failed:
            remarks.append(
                f"the bottleneck could not be read in {evaluate.failed} of {evaluate.evaluations} "
                "evaluations: zeros in its place"
            )
        report = Report(evaluate.evaluations, evaluate.rows, len(x), choice.fitted, remarks)
        wish.reports.append(report)
        tell(p, report)


def tell(p: Any, report: Report) -> None:
    """A pass, in the infotext (the second pass of hires fix under names of its own) and below the image."""
    infotext, kind = p.extra_generation_params, "AMED hires" if host.is_hires(p) else "AMED"
    name = report.fitted.name
    infotext[f"{kind} predictor"] = name if name in MADE else name_of(report.fitted)
    infotext[f"{kind} evaluations"] = report.evaluations
    if report.passes is not None:
        infotext[f"{kind} network passes"] = report.passes
    infotext.pop(f"{kind} note", None)
    if report.remarks:
        infotext[f"{kind} note"] = "; ".join(report.remarks)
        for remark in report.remarks:
            p.comment(f"{kind}: {remark}")


def name_of(fitted: Fitted) -> str:
    """The name the library knows it by (a file may lie in a subfolder)."""
    return next((n for n, other in host.library().named().items() if other.base is fitted.base), fitted.name)
