"""`fit`, the driver that every host uses: fits a target at several numbers of evaluations and saves them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..files import Fitted
from ..files.keep import keep
from ..files.store import check_writable
from .calibration import Calibration
from .compare import Result
from .host_calibration import HostCalibration
from .host_sampler import HostSampler
from .settings import Progress, Settings, budget_of, smallest_budget
from .stages import Stages, references_for
from .target import CachedError, Target


@dataclass(frozen=True)
class Job:
    """Settings of one or several fits, which differ in their number of evaluations only."""

    nfe: tuple[int, ...]  # evaluations per sample of each fit
    sampler: str = "amed_multistep"  # a name of amed.SAMPLERS; unused with `host`
    guidance: float = 1.0  # guidance scale (cfg) that the target's model applies
    budget: str | int = "normal"  # of each fit: a name of PRESETS, or evaluations of the model
    seed: int = 0  # of the noise
    batch: int = 16  # most samples in one call of the model
    passes: int | None = None  # network passes per sample, as in Settings; None: two per evaluation
    host: HostSampler | None = None  # a sampler of the host to fit AMED-Plugin to, in place of `sampler`

    def settings(self) -> list[Settings]:
        """Return the settings of each fit.

        Raises:
            ValueError: a field is out of range, or the budget is too small.
        """
        budgets = [(nfe, budget_of(self.budget, nfe)) for nfe in self.nfe]
        short = [nfe for nfe, budget in budgets if budget < smallest_budget(nfe)]
        if short:
            least = ", ".join(f"{smallest_budget(nfe):,} for nfe {nfe}" for nfe in short)
            budget_per_fit = budgets[0][1]
            raise ValueError(
                f"the budget of {budget_per_fit:,} evaluations per fit is too small (at least {least}): "
                "raise it, or set it to quick"
            )
        return [
            Settings(nfe, self.sampler, budget, self.guidance, self.seed, self.batch, self.passes)
            for nfe, budget in budgets
        ]


@dataclass(frozen=True)
class SavedFit:
    """The result of a calibration that was saved to a predictor file."""

    result: Result
    fitted: Fitted  # the predictor, named after its file
    path: Path  # of the file
    text: str  # for people: where it was saved, and what was replaced


@dataclass
class Outcome:
    """The calibrations of a job that were saved."""

    fits: list[SavedFit] = field(default_factory=list)
    interrupted: bool = False  # whether an exception ended the job early

    @property
    def text(self) -> str:
        """The comparison of each fit and where it was saved, for people."""
        texts = [f"{saved.result.table(saved.fitted.name)}\n{saved.text}" for saved in self.fits]
        if self.interrupted:
            best = "the best so far is kept." if self.fits else "too early: nothing was saved."
            texts.append(f"Interrupted: {best}")
        return "\n\n".join(texts)


def fit(target: Target, job: Job, path: Callable[[int], Path], on_progress: Callable[[Progress], None],
        outcome: Outcome | None = None, start: Fitted | None = None) -> Outcome:  # fmt: skip
    """Fit a sampler at each number of evaluations of a job, and save each predictor.

    If an exception ends the job early (a BaseException, e.g. a host's interruption, too), the best result
    of the current fit is saved as unfinished, `outcome.interrupted` is set, and the exception is raised
    again. If it is a CachedError (a cache answered in place of the model), the current fit is not saved.

    Args:
        target: the model, and a function that draws noise for it.
        job: the settings of the fits; all of them use the same reference runs of the model.
        path: returns the file to save to for a number of evaluations (nfe).
        on_progress: called with the progress of the whole job after every evaluation of the model; may
            raise to stop.
        outcome: filled while the job runs, for callers that catch the exception; default: a new one.
        start: a predictor to resume from.

    Returns:
        The saved fits.

    Raises:
        ValueError: a setting is invalid, or the sampler cannot be calibrated on this model.
        UnsavedError: (a ValueError) a file cannot be written; raised before any evaluation.
    """
    outcome, settings = outcome or Outcome(), job.settings()
    places = [path(nfe) for nfe in job.nfe]
    for place in places:
        check_writable(place)
    total, done = sum(each.budget for each in settings), 0

    def report(progress: Progress) -> None:
        """Report the progress of one fit as that of the job; later fits are assumed to be as fast."""
        later = total - done - progress.budget
        left = max(progress.budget - progress.evaluations, 1)
        seconds = progress.seconds * (1 + later / left)
        evaluations = done + progress.evaluations
        on_progress(replace(progress, evaluations=evaluations, budget=total, seconds=seconds))

    references = references_for(target, max(settings, key=lambda each: each.nfe))
    for each, place in zip(settings, places):
        calibration: Stages = (
            Calibration(target, each, references, start, report)
            if job.host is None
            else HostCalibration(target, each, job.host, references, report)
        )
        finished = cached = False
        try:
            for progress in calibration.run():
                report(progress)
            finished = True
        except BaseException as error:
            cached = isinstance(error, CachedError)
            outcome.interrupted = not cached
            raise
        finally:
            calibration.close()
            if calibration.ready and not cached:
                result = calibration.result()
                saved_path, text = keep(place, result.fitted, finished)
                fitted = replace(result.fitted, name=saved_path.name)
                outcome.fits.append(SavedFit(replace(result, fitted=fitted), fitted, saved_path, text))
        done += each.budget
    return outcome
