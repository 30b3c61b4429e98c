"""Generation with an AMED sampler: which predictor runs, at which noise levels, and what the infotext says.

The predictor is chosen by amed.choose. The settings of a generation are a `GenerationSettings` on the WebUI's
processing object (`p.amed`); nothing is stored elsewhere."""

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
from .samplers import SCHEDULE_LABEL, SamplerEntry, label_of

SETTINGS, ERROR = "as in settings", "error"
FALLBACKS = (PLAIN, UNTRAINED, ERROR)
WITHOUT_FILE = {PLAIN: plain_for, UNTRAINED: untrained_for}  # what a user may choose in place of a file
ADVICE = (
    "Fit one in the AMED tab (some minutes, once), or set 'Where no predictor fits' to plain in the AMED "
    "accordion."
)
# samplers that, untrained, were best on Karras's noise levels (demo model, 3 to 10 steps); the others were
# best uniform in the model's time
ON_KARRAS = ("amed", "amed_dpm_2", "amed_dpmpp_2m", "amed_dpmpp_3m", "amed_uni_pc")


@dataclass
class GenerationSettings:
    """The AMED settings of one generation."""

    predictor: str = AUTO  # "auto", "plain", "untrained" or the name of a predictor file
    nfe: int = 0  # model evaluations per image; 0: as many as the steps take
    fallback: str = PLAIN  # what runs if there is no predictor: one of FALLBACKS
    prepared: Choice | None = None  # the choice by which the number of steps was set
    error: Exception | None = None  # what is wrong with the settings; raised when sampling begins
    calibrate: Callable | None = None  # runs in place of sampling (see calibrate.py)
    reports: list[Report] = field(default_factory=list)  # one per pass (first pass, hires fix)

    @classmethod
    def of(
        cls, p: Any, predictor: Any = AUTO, nfe: Any = 0, fallback: Any = SETTINGS
    ) -> "GenerationSettings":
        """Combine the settings of an X/Y/Z plot, of the accordion (or API) and of the settings page.

        Args:
            p: the processing object. Its `amed_predictor` and `amed_nfe`, which the X/Y/Z plot sets, override
                the other arguments.
            predictor, nfe, fallback: from the accordion or the API. For "auto", 0 and "as in settings", the
                value of the settings page is used.

        Raises:
            ValueError: if `nfe` or `fallback` has no valid value."""
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
    def names_a_file(self) -> bool:
        """Whether a predictor file was chosen by name."""
        return self.predictor != AUTO and self.predictor not in WITHOUT_FILE

    def request(self, entry: SamplerEntry, identity: Identity, guidance: float, **fields: Any) -> Request:
        """Return what amed.choose needs to find a predictor (a Request).

        Args:
            identity: what identifies the checkpoint.
            guidance: CFG scale.
            fields: further fields of the Request, e.g. the noise levels `times`."""
        return Request(
            identity,
            entry.sampler,
            guidance,
            self.nfe or None,
            if_missing=self.fallback,
            advice=ADVICE,
            **fields,
        )


def settings_of(p: Any) -> GenerationSettings:
    """Return AMED's settings for a generation.

    Where AMED's script did not run (generations of other extensions), they come from the settings page.
    If the script found an error in them, it is raised here."""
    settings = getattr(p, "amed", None)
    if settings is None:
        settings = p.amed = GenerationSettings.of(p)
    if settings.error is not None:
        raise settings.error
    return settings


# --- which predictor, which noise levels -------------------------------------------------------------------


def prepare(p: Any, entry: SamplerEntry, settings: GenerationSettings) -> None:
    """Before a generation, set its number of steps to what the given NFE or the named predictor needs.

    Raises PredictorError or ValueError if no run is possible, e.g. if the predictor takes another NFE."""
    if not (settings.nfe or settings.names_a_file):
        return
    choice = preview_choice(entry, settings, host.identity(p.sd_model), host.guidance(p))
    if settings.nfe not in (0, choice.fitted.nfe):
        raise PredictorError(
            f"{choice.fitted.label} takes {choice.fitted.nfe} evaluations, not {settings.nfe}: set NFE to 0 "
            f"or {choice.fitted.nfe}, or choose another predictor"
        )
    settings.prepared, p.steps = choice, len(choice.sigmas) - 1


def preview_choice(
    entry: SamplerEntry, settings: GenerationSettings, identity: Identity, guidance: float, steps: int = 0
) -> Choice:
    """Choose a generation's predictor and number of steps before its noise levels are known.

    If no predictor is found, the returned noise levels are placeholders: only their number is right.
    `steps` is used only if neither an NFE nor a predictor file is given. Raises PredictorError if the named
    predictor cannot be used, or if none is found and the user chose an error in that case."""
    request = settings.request(
        entry, identity, guidance, schedule=lambda count: schedules.logsnr(count, 0.03, 15.0)
    )
    if settings.names_a_file:
        fitted = load_predictor(settings.predictor, entry)
        return choose(host.library(), replace(request, nfe=None, fitted=fitted))
    if not settings.nfe:
        request = replace(request, times=steps + 1)
    if settings.predictor in WITHOUT_FILE:
        return choice_without_file(settings.predictor, request)
    return choose(host.library(), request)


def load_predictor(name: str, entry: SamplerEntry) -> Fitted:
    """Return the predictor of that name from the library.

    Raises PredictorError if there is none, or if it was fitted for another sampler."""
    fitted = host.library().load(name)
    if not fitted.spec.answers(entry.sampler):
        fitted_sampler = fitted.spec.of or label_of(fitted.spec.sampler)
        raise PredictorError(
            f"the predictor {fitted.label} was fitted for {fitted_sampler}, not for {entry.label}: choose "
            f"the sampler {fitted_sampler}, or another predictor"
        )
    return fitted


def choice_without_file(kind: str, request: Request, remarks: tuple[str, ...] = ()) -> Choice:
    """Return the solver that runs without a predictor file.

    Args:
        kind: "plain" (an ordinary solver) or "untrained" (the AMED sampler with nothing fitted).
        request: what the run needs, e.g. its noise levels.
        remarks: what the user is told about the run."""
    fitted = WITHOUT_FILE[kind](request)
    choice = choose(host.library(), replace(request, sampler=AUTO, nfe=None, fitted=fitted))
    return replace(choice, remarks=remarks)


def choose_for_pass(
    entry: SamplerEntry,
    settings: GenerationSettings,
    p: Any,
    times: int | Tensor,
    schedule: Callable[[int], Tensor],
) -> Choice:
    """Choose the predictor and the noise levels of one pass of a generation (the first pass, or the second of
    hires fix).

    Args:
        times: the noise levels above 0 (falling), or only their number.
        schedule: `schedule(count)` returns the noise levels to use if there is no predictor.

    Raises:
        PredictorError: if the named predictor cannot be used, or if none is found and the user chose an
            error in that case."""
    request = settings.request(
        entry, host.identity(p.sd_model), host.guidance(p), times=times, below=host.runs_lower_part(p),
        schedule=schedule, afs=host.prediction_type(p.sd_model) != "flow",
        halves=not host.guidance_is_patched(p.sd_model),
    )  # fmt: skip
    first_pass = not host.is_hires(p)
    prepared = settings.prepared if first_pass else None
    if settings.predictor in WITHOUT_FILE:
        return choice_without_file(settings.predictor, request)
    if request.count < 2:  # one noise level and 0: every solver returns the denoised image
        return choice_without_file(UNTRAINED, request)
    if isinstance(times, Tensor) and not settings.names_a_file:
        # the user chose another schedule: no predictor is interpolated onto it
        if prepared is not None and not same_times(times, prepared.fitted.base):
            prepared = None
        request = replace(request, nfe=None, exact=True, advice=schedule_advice(request))
    is_named = settings.names_a_file and (
        first_pass or host.library().load(settings.predictor).spec.answers(entry.sampler)
    )
    if not is_named and prepared is not None and prepared.fitted.name in WITHOUT_FILE:
        return choice_without_file(prepared.fitted.name, request, infotext_remarks(prepared.remarks))
    if prepared is not None and not within_reach(prepared.fitted, request.count):
        prepared = None
    choice, _ = preferred(
        lambda fitted: choose(host.library(), replace(request, fitted=fitted, nfe=None)),
        lambda: choose(host.library(), request),
        named=(lambda: load_predictor(settings.predictor, entry)) if is_named else None,
        attached=None if prepared is None else prepared.fitted,
    )
    remarks = infotext_remarks(choice.remarks)
    if choice.grid != "own" and choice.fitted.name not in WITHOUT_FILE:
        remarks = (other_levels_remark(choice.fitted), *remarks)
    return replace(choice, remarks=remarks)


def other_levels_remark(fitted: Fitted) -> str:
    """Return the remark for a run at other noise levels than those that its predictor was fitted on."""
    return f"{fitted.name} was fitted on other noise levels than these: choose the AMED schedule"


def schedule_advice(request: Request) -> str:
    """Return advice for a user whose schedule type prevents the use of a predictor: how to run one.

    Args:
        request: what the run needs (amed.choose.Request); `times` are the noise levels of that schedule."""
    schedule = f"the schedule type {SCHEDULE_LABEL} or Automatic"
    try:
        choice = choose(host.library(), replace(request, times=request.count + 1, if_missing=ERROR))
    except PredictorError:
        return f"Fit one in the AMED tab, then choose {schedule}."
    return f"Choose {schedule} to run {choice.fitted.name}."


def infotext_remarks(remarks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the remarks on the choice of a predictor (from amed.choose), shortened for the infotext."""
    return tuple(remark.replace("untrained, as asked: ", "untrained: ") for remark in remarks)


def sigmas(entry: SamplerEntry, sampler: Any, p: Any, steps: int) -> Tensor:
    """Choose the predictor of one pass of a generation (the first pass, or the second of hires fix), and
    return the noise levels at which the pass samples, `[steps + 1]`.

    The choice is stored in `sampler.amed_choice`, where `sample` reads it."""
    low, high = host.sigma_range(sampler.model_wrap)
    host.set_schedule_in_infotext(p, SCHEDULE_LABEL)
    settings = settings_of(p)
    untrained = UNTRAINED in (settings.predictor, settings.fallback)

    def schedule(count: int) -> Tensor:
        if untrained and entry.sampler in ON_KARRAS and count > 1:
            return schedules.make("polynomial", count, low, high)
        return host.amed_sigmas(sampler.model_wrap, count, low, high)

    sampler.amed_choice = choose_for_pass(entry, settings, p, steps + 1, schedule)
    return sampler.amed_choice.sigmas.float()


# --- sampling ----------------------------------------------------------------------------------------------


def sample(
    entry: SamplerEntry,
    sampler: Any,
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None,
    callback: Callable | None,
    disable: bool | None,
) -> Tensor:
    """Sample one pass of a generation (the first pass, or the second of hires fix) with an AMED sampler, and
    report it in the infotext.

    Args:
        sampler: the WebUI's sampler object.
        model: its CFGDenoiser.
        x: noise, or a noisy image, `[B, C, H, W]`.
        sigmas: falling noise levels.
        extra_args, callback, disable: as for a k-diffusion sampler."""
    p, extra_args = model.p, extra_args or {}
    settings = settings_of(p)
    if settings.calibrate is not None:
        return settings.calibrate(model, x, sigmas, extra_args, callback)
    if len(sigmas) < 2:
        return x
    choice = getattr(sampler, "amed_choice", None)
    if choice is None:  # the noise levels are those of another schedule type
        levels = as_double(sigmas)
        levels = levels[levels > 0]
        choice = choose_for_pass(entry, settings, p, levels, lambda count: levels)
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
        settings.reports.append(report)
        write_infotext(p, report)


def write_infotext(p: Any, report: Report) -> None:
    """Write the predictor and cost of one pass of a generation to the infotext, and the remarks on it also
    below the image.

    The second pass of hires fix has its own keys, which begin with "AMED hires"."""
    infotext, prefix = p.extra_generation_params, "AMED hires" if host.is_hires(p) else "AMED"
    name = report.fitted.name
    infotext[f"{prefix} predictor"] = name if name in WITHOUT_FILE else library_name(report.fitted)
    infotext[f"{prefix} evaluations"] = report.evaluations
    if report.passes is not None:
        infotext[f"{prefix} network passes"] = report.passes
    infotext.pop(f"{prefix} note", None)
    if report.remarks:
        infotext[f"{prefix} note"] = "; ".join(report.remarks)
        for remark in report.remarks:
            p.comment(f"{prefix}: {remark}")


def library_name(fitted: Fitted) -> str:
    """Return a predictor's name in the library, with its subfolder; if it is not there, its file's name."""
    return next((n for n, other in host.library().named().items() if other.base is fitted.base), fitted.name)
