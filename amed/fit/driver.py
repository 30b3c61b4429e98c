"""One driver for every host: fits a target at several numbers of evaluations, and keeps what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..files import Fitted
from ..files.keep import keep
from ..files.store import check_room
from .calibration import Calibration
from .compare import Result
from .host_calibration import HostCalibration
from .host_sampler import HostSampler
from .settings import Progress, Settings, budget_of, smallest_budget
from .stages import Stages, references_for
from .target import CachedError, Target


@dataclass(frozen=True)
class Job:
    """What is fitted for a Target: numbers of evaluations, sampler, the guidance scale that the target's
    model applies, budget of each (a preset, or evaluations), seed, samples in one call of the model, and
    network passes of an image, as Settings has them. host: a sampler of the host's own, to be wrapped
    (amed.outside) in place of one of ours."""

    nfe: tuple[int, ...]
    sampler: str = "amed_multistep"
    guidance: float = 1.0
    budget: str | int = "normal"
    seed: int = 0
    batch: int = 16
    passes: int | None = None
    host: HostSampler | None = None

    def settings(self) -> list[Settings]:
        """One a fit. Raises ValueError for what cannot be; of a budget that is too small, all it takes."""
        budgets = [(nfe, budget_of(self.budget, nfe)) for nfe in self.nfe]
        short = [nfe for nfe, own in budgets if own < smallest_budget(nfe)]
        if short:
            least = ", ".join(f"{smallest_budget(nfe):,} for nfe {nfe}" for nfe in short)
            wrong = f"the budget is {budgets[0][1]:,} evaluations for each fit, but it takes at least {least}"
            raise ValueError(f"{wrong}: raise the budget, or set it to quick")
        own = self.sampler, self.guidance, self.seed, self.batch, self.passes
        return [Settings(n, own[0], b, *own[1:]) for n, b in budgets]


@dataclass(frozen=True)
class SavedFit:
    """A fit that was saved: its result, the predictor named as its file, where, and the sentence that says
    so."""

    result: Result
    fitted: Fitted
    path: Path
    text: str


@dataclass
class Outcome:
    """What came of a job."""

    fits: list[SavedFit] = field(default_factory=list)
    interrupted: bool = False

    @property
    def text(self) -> str:
        """For people."""
        texts = [f"{kept.result.table(kept.fitted.name)}\n{kept.text}" for kept in self.fits]
        if self.interrupted:
            best = "the best so far is kept." if self.fits else "too early: nothing was saved."
            texts.append(f"Interrupted: {best}")
        return "\n\n".join(texts)


def fit(target: Target, job: Job, path: Callable[[int], Path], tell: Callable[[Progress], None],
        outcome: Outcome | None = None, start: Fitted | None = None) -> Outcome:  # fmt: skip
    """Fit and keep each number of evaluations of a job; they share their references. `path(nfe)`: where to
    save. `tell`: hears of the progress of the whole job, after every evaluation of the model. start: a file
    to go on from.

    Whatever is raised on the way (by an interruption too: BaseExceptions count), the best so far of the fit
    under way is kept as unfinished, `outcome.interrupted` set, and the exception goes on; but nothing of it
    after a CachedError. Raises ValueError for what cannot be fitted, and UnsavedError (which is one) for a
    place that cannot be written to, before any work."""
    outcome, settings = outcome or Outcome(), job.settings()
    places = [path(nfe) for nfe in job.nfe]
    for place in places:
        check_room(place)
    total, before = sum(one.budget for one in settings), 0

    def heard(progress: Progress) -> None:
        rest = total - before - progress.budget  # the fits after this one, at its speed
        left = max(progress.budget - progress.evaluations, 1)
        seconds = progress.seconds * (1 + rest / left)
        done = before + progress.evaluations
        tell(replace(progress, evaluations=done, budget=total, seconds=seconds))

    references = references_for(target, max(settings, key=lambda one: one.nfe))
    for one, place in zip(settings, places):
        calibration: Stages = (
            Calibration(target, one, references, start, heard)
            if job.host is None
            else HostCalibration(target, one, job.host, references, heard)
        )
        finished = cached = False
        try:
            for progress in calibration.run():
                heard(progress)
            finished = True
        except BaseException as error:
            cached = isinstance(error, CachedError)
            outcome.interrupted = not cached
            raise
        finally:
            calibration.close()
            if calibration.ready and not cached:
                result = calibration.result()
                saved, text = keep(place, result.fitted, finished)
                fitted = replace(result.fitted, name=saved.name)
                outcome.fits.append(SavedFit(replace(result, fitted=fitted), fitted, saved, text))
        before += one.budget
    return outcome
