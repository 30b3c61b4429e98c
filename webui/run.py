"""What happens during generation: which predictor, at which noise levels, sampled and said in the infotext.

A generation's settings are a `Job` on the processing object (`p.amed`); no state is kept elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amed import SAMPLERS, Fitted, PredictorError, choice, schedules
from amed.choice import Identity, Report
from amed.sampling import sampler_of, solver_of

from . import host
from .capture import RowCapture
from .samplers import ENTRIES, SCHEDULE_LABEL, Entry

AUTO, UNTRAINED = "auto", "untrained"
SETTINGS, ERROR = "as in settings", "error"
FALLBACKS = (UNTRAINED, ERROR)
ADVICE = (
    "Choose one of these, fit one in the AMED tab (a minute or two), or set the fallback to untrained in the "
    "AMED accordion."
)
# on the demo model, 3 to 10 steps, these were best on Karras's noise levels and the others in uniform time
ON_KARRAS = ("amed", "amed_dpm_2", "amed_dpmpp_2m", "amed_dpmpp_3m")
REACH = 1.6  # a predictor is stretched to at most so many times its steps, or shrunk as much


@dataclass
class Job:
    """What a generation asks for. predictor: auto, untrained or a name; nfe: evaluations, 0 for as many as
    the steps take; fallback: one of FALLBACKS. found: what NFE was set by; error: what is wrong with these,
    raised when sampling begins. calibrate: what to do instead of sampling, see calibrate.py."""

    predictor: str = AUTO
    nfe: int = 0
    fallback: str = UNTRAINED
    found: Fitted | None = None
    missing: str = ""
    error: Exception | None = None
    calibrate: Callable | None = None
    reports: list[Report] = field(default_factory=list)

    @classmethod
    def of(cls, p: Any, predictor: Any = AUTO, nfe: Any = 0, fallback: Any = SETTINGS) -> "Job":
        """From the accordion (or API) and, where it leaves things open, the settings page. An X/Y/Z plot's
        `p.amed_predictor` and `p.amed_nfe` come first. Raises ValueError for what is no choice."""
        predictor = getattr(p, "amed_predictor", None) or (predictor if predictor != AUTO else None)
        predictor = predictor or host.setting("amed_predictor", AUTO) or AUTO
        given = getattr(p, "amed_nfe", None) or nfe or host.setting("amed_nfe", 0) or 0
        try:
            count = int(given)
        except (TypeError, ValueError):
            count = -1
        if not 0 <= count <= 200 or count != float(given):
            raise ValueError(
                f"AMED NFE is {given!r}: give a whole number of evaluations up to 200, or 0 to use Steps"
            )
        if fallback in (None, "", SETTINGS):
            fallback = host.setting("amed_fallback", UNTRAINED)
        if fallback not in FALLBACKS:
            raise ValueError(f"AMED fallback is {fallback!r}: choose one of {', '.join(FALLBACKS)}")
        return cls(str(predictor), count, fallback)

    @property
    def named(self) -> bool:
        return self.predictor not in (AUTO, UNTRAINED)


def job_of(p: Any) -> Job:
    """A generation's job; the settings' where no script of ours has run (other extensions' generations).
    Raises what is wrong with it."""
    job = getattr(p, "amed", None)
    if job is None:
        job = p.amed = Job.of(p)
    if job.error is not None:
        raise job.error
    return job


# --- which predictor, which noise levels -------------------------------------------------------------------


def prepare(p: Any, entry: Entry, job: Job) -> None:
    """Before a generation: its NFE, or its predictor's, become its number of steps. Raises PredictorError
    or ValueError."""
    if job.predictor == UNTRAINED:
        if job.nfe:
            p.steps = steps_for(entry, job.nfe)
        return
    if job.named:
        job.found = named(job.predictor, entry)
        if job.nfe not in (0, job.found.nfe):
            raise PredictorError(
                f"{job.found.label} takes {job.found.nfe} evaluations, not {job.nfe}: set NFE to 0 or "
                f"{job.found.nfe}, or choose another predictor"
            )
    elif job.nfe:
        try:
            job.found = by_nfe(entry, host.identity(p.sd_model), job.nfe, host.guidance(p))
        except PredictorError as error:
            if job.fallback == ERROR:
                raise
            job.missing, p.steps = str(error), steps_for(entry, job.nfe)
    if job.found is not None:
        p.steps = job.found.spec.num_steps - 1


def by_nfe(entry: Entry, who: Identity, nfe: int, scale: float) -> Fitted:
    """The library's predictor for so many evaluations. Raises PredictorError."""
    solver = solver_of(entry.sampler)
    order = solver.max_order if solver.name == "dpmpp" else None
    return choice.find(host.library(), who, solver.name, nfe, scale, order, ADVICE)


def by_times(entry: Entry, who: Identity, count: int, scale: float) -> Fitted:
    """The library's predictor for so many noise levels. Raises PredictorError."""
    return choice.find_for_times(host.library(), who, entry.sampler, count, scale, ADVICE)


def steps_for(entry: Entry, nfe: int) -> int:
    """Steps of the untrained solver: the analytic first step makes up an odd number."""
    return max(1, nfe if entry.evaluations == 1 else (nfe + 1) // 2)


def named(name: str, entry: Entry) -> Fitted:
    """The library's predictor of that name, if it is this sampler's. Raises PredictorError."""
    fitted = host.library().load(name)
    if not is_for(name, entry):
        right = next(e.label for e in ENTRIES if is_for(name, e))
        raise PredictorError(
            f"{fitted.label} was fitted for {right}, not for {entry.label}: choose that sampler, or another "
            "predictor"
        )
    return fitted


def is_for(name: str, entry: Entry) -> bool:
    spec = host.library().load(name).spec
    return sampler_of(spec.solver, spec.max_order) == entry.sampler


@dataclass(frozen=True)
class Plan:
    """A pass: its predictor, the noise levels of the whole schedule, what is to be said."""

    fitted: Fitted
    sigmas: Tensor
    remarks: tuple[str, ...] = ()


def plan(entry: Entry, job: Job, p: Any, count: int, ends: tuple[float, float], own: Callable) -> Plan:
    """The predictor for `count` noise levels, and these: its own if it has as many, else spread out between
    them. `ends`: sigma_min and sigma_max; `own(count)`: the model's own schedule. Raises PredictorError."""
    who, scale, first = host.identity(p.sd_model), host.guidance(p), not host.is_hires(p)
    fitted, missing = (job.found, job.missing) if first else (None, "")
    if fitted is None and job.named and (first or is_for(job.predictor, entry)):
        fitted = named(job.predictor, entry)
    elif fitted is None and job.predictor != UNTRAINED and not missing:
        try:
            fitted = by_times(entry, who, count, scale)
        except PredictorError as error:
            fitted = near(entry, who, count, scale) if host.starts_below(p) else None
            missing = str(error)
            if fitted is None and job.fallback == ERROR:
                raise
    if fitted is not None and not job.named and not 1 / REACH <= count / fitted.spec.num_steps <= REACH:
        fitted, missing = None, f"{fitted.label} is not for {count - 1} steps"
    if fitted is None:
        odd = job.nfe % 2 == 1 and entry.evaluations == 2
        afs = odd and host.prediction_type(p.sd_model) != "flow"
        times = untrained_times(entry, count, *ends, own)
        said = (f"untrained: {missing.splitlines()[0]}",) if missing else ()
        return Plan(choice.untrained(entry.sampler, times, afs), times, said)
    if fitted.spec.num_steps == count:
        return Plan(fitted, fitted.sigmas())
    said = f"fitted for {fitted.spec.num_steps - 1} steps, running {count - 1}: constants are interpolated"
    return Plan(fitted, spread(fitted.sigmas(), count), (said,))


def near(entry: Entry, who: Identity, count: int, scale: float) -> Fitted | None:
    """For hires fix and img2img, whose whole schedule may have steps that nobody fitted, and which run only
    its lower part: the nearest in number that was fitted for this very checkpoint."""
    solver = solver_of(entry.sampler)
    mine = [
        f
        for f in host.library().fitted()
        if f.spec.solver == solver.name
        and (solver.name != "dpmpp" or f.spec.max_order == solver.max_order)
        and who.fingerprint
        and f.spec.model_fingerprint == who.fingerprint
        and 1 / REACH <= count / f.spec.num_steps <= REACH
    ]

    def distance(f: Fitted) -> tuple:
        return choice.ratio(f.spec.num_steps, count), choice.ratio(f.spec.guidance, scale)

    return min(mine, key=distance, default=None)


def untrained_times(entry: Entry, count: int, low: float, high: float, own: Callable) -> Tensor:
    """Noise levels for a solver without a predictor, float64 `[count]`."""
    if entry.sampler in ON_KARRAS and count > 1:
        return schedules.make("polynomial", count, low, high)
    return own(count)


def spread(times: Tensor, count: int) -> Tensor:
    """A schedule's ends and shape with another number of noise levels, float64 `[count]`."""
    at = np.linspace(0, len(times) - 1, count)
    return torch.from_numpy(np.exp(np.interp(at, np.arange(len(times)), times.log().numpy())))


def times(entry: Entry, sampler: Any, p: Any, steps: int) -> Tensor:
    """The noise levels of a pass with `steps` steps, `[steps + 1]`; the plan stays with the host's sampler
    object."""
    wrap = sampler.model_wrap
    low, high = host.sigma_range(wrap)
    host.tell_schedule(p, SCHEDULE_LABEL)

    def own(count: int) -> Tensor:
        return host.base_times(wrap, count, low, high)

    sampler.amed_plan = plan(entry, job_of(p), p, steps + 1, (low, high), own)
    return sampler.amed_plan.sigmas.float()


# --- sampling ----------------------------------------------------------------------------------------------


class Counted:
    """The host's denoiser, counted: evaluations, and rows through whatever network it uses."""

    def __init__(self, model: Callable[..., Tensor], network: Callable[[], Any], report: Report):
        self.inner, self.network, self.report = model, network, report

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        self.report.evaluations += 1
        network = self.network()
        if network is None:
            return self.inner(x, sigma, **extra_args)

        def count(_module: Any, args: tuple, kwargs: dict) -> None:
            rows = args[0] if args else kwargs.get("x")
            self.report.rows = (self.report.rows or 0) + (len(rows) if isinstance(rows, Tensor) else 0)

        handle = network.register_forward_pre_hook(count, with_kwargs=True)
        try:
            return self.inner(x, sigma, **extra_args)
        finally:
            handle.remove()


def run(
    entry: Entry,
    sampler: Any,
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None,
    callback: Callable | None,
    disable: bool | None,
) -> Tensor:
    """A sampler of the dropdown: the engine's, with the plan's predictor, capture and counting."""
    p, extra_args = model.p, extra_args or {}
    job = job_of(p)
    if job.calibrate is not None:
        return job.calibrate(model, x, sigmas, extra_args, callback)
    if len(sigmas) < 2:
        return x
    made = getattr(sampler, "amed_plan", None) or other_schedule(entry, job, sampler, p, sigmas)
    fitted, report = made.fitted, Report(batch=len(x), fitted=made.fitted, remarks=list(made.remarks))
    report.remarks += choice.mismatches(fitted, host.identity(p.sd_model), host.guidance(p))
    masked = getattr(model, "mask", None) is not None
    network = host.current_network
    capture = RowCapture(network, host.row_order()) if fitted.wants_bottleneck else None
    try:
        return SAMPLERS[entry.sampler](
            Counted(model, network, report),
            x,
            sigmas,
            extra_args,
            callback,
            disable,
            predictor=fitted.to(x.device),
            afs=False if masked else None,
            capture=capture,
            guide=host.guide,
        )
    finally:
        if capture is not None and capture.failed:
            report.remarks.append(
                f"the bottleneck could not be read in {capture.failed} of {report.evaluations} evaluations: "
                "zeros in its place"
            )
        job.reports.append(report)
        tell(p, report)


def other_schedule(entry: Entry, job: Job, sampler: Any, p: Any, sigmas: Tensor) -> Plan:
    """A plan for noise levels that were not ours to choose (another schedule)."""
    given = sigmas[sigmas > 0].double().cpu()
    if len(given) < 2:
        return Plan(choice.untrained(entry.sampler, torch.tensor([2.0, 1.0]) * given[0]), given)
    low, high = host.sigma_range(sampler.model_wrap)
    made = plan(entry, job, p, len(given), (low, high), lambda count: given)
    if made.fitted.name == UNTRAINED:
        return Plan(choice.untrained(entry.sampler, given), given, made.remarks)
    if choice.on_grid(made.fitted, given):
        return Plan(made.fitted, given, made.remarks)
    said = f"these noise levels are not those {made.fitted.name} was fitted on: choose the AMED schedule"
    return Plan(made.fitted, given, (said,))


def tell(p: Any, report: Report) -> None:
    """A pass, in the infotext (the second pass of hires fix under names of its own) and below the image."""
    told, kind = p.extra_generation_params, "AMED hires" if host.is_hires(p) else "AMED"
    told[f"{kind} predictor"] = UNTRAINED if report.fitted.name == UNTRAINED else name_of(report.fitted)
    told[f"{kind} evaluations"] = report.evaluations
    if report.passes is not None:
        told[f"{kind} network passes"] = report.passes
    told.pop(f"{kind} note", None)
    if report.remarks:
        told[f"{kind} note"] = "; ".join(report.remarks)
        for remark in report.remarks:
            p.comment(f"{kind}: {remark}")


def name_of(fitted: Fitted) -> str:
    """The name the library knows it by (a file may lie in a subfolder)."""
    return next((n for n, other in host.library().named().items() if other.base is fitted.base), fitted.name)
