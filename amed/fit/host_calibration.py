"""The calibration of a sampler of the host, fitted as a black box with AMED-Plugin."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from .. import schedules
from ..double import as_double
from ..files import Fitted
from ..kdiffusion import solver_of
from ..outside import OUTSIDE
from .compare import Judge, Result, usual_schedule
from .host_sampler import HostFit, HostSampler, HostSchedule, host_schedules
from .parametrisation import Parametrisation
from .preview import Preview
from .samples import References, per_sample, robust, scale_of
from .settings import Progress, Settings
from .stages import Stages
from .table_search import fitting
from .target import Target
from .variable_projection import LAGS, Shape

SCHEDULE_SAMPLES = 4  # samples that each schedule is tried on
MANY, GOOD = 16, 8  # of more than MANY schedules, only the GOOD best on the first sample are tried on all
FINALISTS = 2  # schedules that are tried on the held-out samples
MOST, FEWEST = 32, 4  # samples of an iteration
TABLE, TABLE_SAMPLES = Shape("bands", True, 1e-2), 16  # of AMED multistep, which the fit is compared with


@dataclass
class HostCandidate:
    """Constants fitted to a sampler of the host (ComfyUI or the WebUI), with their score."""

    name: str  # for people
    fit: HostFit
    values: Tensor  # constants `[P]`
    end: Tensor  # end states on the held-out samples
    score: float  # Judge.score of these; lower is better


class HostCalibration(Stages):
    """The fit of AMED-Plugin to a sampler of the host (ComfyUI or the WebUI).

    It takes the largest number of evaluations up to `settings.nfe` that the sampler can run with. Its
    result is compared with the same sampler, unfitted, on its best schedule and on the karras schedule,
    and with AMED multistep, whose weights are fitted by least squares.

    Args:
        target: the model, and a function that draws noise for it.
        settings: of this fit; `sampler` and `passes` are unused.
        sampler: the host's sampler.
        references: samples with converged end states, shared with other fits; None: the fit makes its own.
        on_progress: called after every evaluation of the model.
    """

    def __init__(self, target: Target, settings: Settings, sampler: HostSampler,
                 references: References | None = None,
                 on_progress: Callable[[Progress], None] = lambda progress: None):  # fmt: skip
        super().__init__(target, settings, references, on_progress, small=0)
        self.sampler = sampler
        self.judge: Judge | None = None
        self.plain: HostCandidate | None = None  # the sampler by itself on its best schedule
        self.fitted: list[HostCandidate] = []  # after each iteration
        self.rivals: dict[str, Tensor] = {}  # end states on the held-out samples, by name

    @property
    def ready(self) -> bool:
        return self.plain is not None

    @property
    def best(self) -> HostCandidate | None:
        """The fit with the best score; None before the first iteration."""
        return min(self.fitted, key=lambda candidate: candidate.score, default=None)

    @property
    def score(self) -> float:
        return math.nan if self.best is None else self.best.score

    def run(self) -> Iterator[Progress]:
        self.clock, held_out = perf_counter(), self.references.held_out
        yield from self._report("reference", self.references.make(held_out))
        samples = self.references.take(0, held_out)
        self.judge = Judge(self.model, samples, self.settings.batch, features=self.target.features)
        yield from self._report("search", self._schedules(self.judge))
        yield from self._report("compare", self._usual())
        yield from self._report("fit", self._iterations())
        yield from self._report("compare", self._table())
        yield self._progress("fit", "done")

    def _fit(self, schedule: HostSchedule, with_a: bool = True) -> HostFit:
        """Return a fit of the host's sampler that starts on `schedule`.

        `with_a`: also fit a, the scales of the noise levels that the model is given."""
        batch = self.settings.batch
        return HostFit(self.model, self.sampler, schedule, self.target.sigma_min, batch, with_a)

    def _schedules(self, judge: Judge) -> Iterator[str]:
        """Try the host's sampler on all its schedules, and the best ones on the held-out samples."""
        first, noise = self.references.held_out, judge.held_out.noise[:1]
        listed = host_schedules(self.sampler, self.target, self.settings.nfe, noise)
        yield from self.references.make(first + SCHEDULE_SAMPLES)
        samples = self.references.take(first, SCHEDULE_SAMPLES)
        if len(listed) > MANY:
            one, distances = samples.cut(slice(0, 1)), []
            for i, schedule in enumerate(listed):
                fit = self._fit(schedule)
                distances.append(float(per_sample(fit.end(fit.vector(), one), one.end)))
                yield f"{self.sampler.name}, {schedule.schedule}: {i + 1} of {len(listed)}"
            near = sorted(range(len(listed)), key=distances.__getitem__)
            listed = [listed[i] for i in near[:GOOD]]
        errors = []
        for i, schedule in enumerate(listed):
            fit = self._fit(schedule)
            errors.append(per_sample(fit.end(fit.vector(), samples), samples.end))
            yield f"{self.sampler.name} on {schedule.schedule}: {i + 1} of {len(listed)}"
        scale = scale_of(errors)
        order = sorted(range(len(listed)), key=lambda i: robust(errors[i], scale))
        fits = [self._fit(listed[i]) for i in order[:FINALISTS]]
        ends = [fit.end(fit.vector(), judge.held_out) for fit in fits]
        scale = scale_of(per_sample(end, judge.held_out.end) for end in ends)
        self.judge = judge = replace(judge, scale=scale)
        tried = [
            HostCandidate(f.start.schedule, f, f.vector(), e, judge.score(e)) for f, e in zip(fits, ends)
        ]
        self.plain = min(tried, key=lambda candidate: candidate.score)

    def _searched(self) -> tuple[Judge, HostCandidate]:
        """Return the Judge that scores end states, and the host's sampler on its best schedule.

        Raises:
            RuntimeError: the search of schedules is not finished.
        """
        if self.judge is None or self.plain is None:
            raise RuntimeError("no result yet: continue run() until `ready` is True")
        return self.judge, self.plain

    def _usual(self) -> Iterator[str]:
        """Run the host's sampler unfitted on its usual schedule, with as many evaluations as the fit.

        That is karras, or for a flow model the host's own `simple`, which knows the model's shift.
        Some samplers skip the last noise level, so schedules of different lengths can take the same number of
        evaluations; the longest of them is run."""
        judge, plain = self._searched()
        count = len(plain.fit.start.sigmas)
        for number in range(count + 1, max(count - 2, 1), -1):
            name, sigmas = usual_schedule(self.target, number)
            own = self.sampler.schedules(number) if self.target.flow and self.sampler.schedules else {}
            for label, levels in own.items():
                if label.lower() == "simple" and len(levels) == number + 1:
                    name, sigmas = "simple", as_double(levels)[:-1]
            fit = self._fit(HostSchedule(name, sigmas, plain.fit.start.levels))
            if len(fit.levels(fit.vector(), judge.held_out.noise[:1])) == plain.fit.start.nfe:
                self.rivals[f"{self.sampler.name}, {name}"] = fit.end(fit.vector(), judge.held_out)
                break
        yield f"{self.sampler.name} as usually set"

    def _iterations(self) -> Iterator[str]:
        """Run Gauss-Newton iterations until the budget is spent, and score each."""
        judge, plain = self._searched()
        first, nfe = self.references.held_out, plain.fit.start.nfe
        reserve = (TABLE_SAMPLES + first) * self.settings.nfe  # for `_table`
        fit, values = plain.fit, plain.values
        for _ in range(self.settings.by_budget(1, 3, 8)):
            left = self.left - reserve - first * nfe
            count = min(MOST, self.references.traced, left // fit.cost())
            if count < 2 * FEWEST and fit.with_a and not self.fitted:  # fewer constants on more samples
                fit, values = self._fit(fit.start, with_a=False), values[:-nfe]
                count = min(MOST, self.references.traced, left // fit.cost())
            while count >= FEWEST and count * fit.cost() + self.references.cost(first + count) > left:
                count -= 1
            if count < FEWEST:
                return
            yield from self.references.make(first + count)
            samples = self.references.take(first, count)
            loss, moved = yield from fit.iterate(values, samples, judge.scale)
            if torch.equal(moved, values):
                return
            values = moved
            end = fit.end(values, judge.held_out)
            name = f"from {fit.start.schedule}"
            self.fitted.append(HostCandidate(name, fit, values, end, judge.score(end)))
            self.history.append((self.evaluations, judge.error(end)))
            yield f"{self.sampler.name}: error {loss:.4f}, held out {judge.error(end):.4f}"

    def _table(self) -> Iterator[str]:
        """Fit AMED multistep by least squares, to compare the fitted host sampler with it.

        It is fitted to reference trajectories that are already made."""
        judge, first, nfe = self._searched()[0], self.references.held_out, self.settings.nfe
        made = len(self.references.ends) * self.references.block - first
        count = min(TABLE_SAMPLES, made, self.references.traced, self.left // nfe - first)
        if count < FEWEST or self.target.flow or self.settings.nfe < 2:
            return
        projection = self._projection(judge, count)
        sigmas = schedules.make("time_uniform", nfe + 2, self.target.sigma_min, self.target.sigma_max)
        (shape,) = fitting((TABLE,), projection.samples.noise)
        table = projection.run(sigmas, True, shape).table
        parametrisation = Parametrisation(solver_of("amed_multistep"), table, True, LAGS)
        end = self._held_out_end(judge, parametrisation, parametrisation.vector())
        self.rivals["AMED multistep, closed form"] = end
        yield "AMED multistep, for the comparison"

    def preview(self) -> Preview:
        images = {}
        if self.judge is not None:
            images["reference"] = self.judge.held_out.end
        if self.plain is None or self.judge is None:
            return Preview(images=images)
        fit_end = None if self.best is None else self.best.end
        solver = f"{self.sampler.name} on {self.plain.name}"
        return self._preview(self.judge, solver, self.plain.end, fit_end)

    def result(self) -> Result:
        judge, plain = self._searched()
        best, guidance = self.best, self.settings.guidance
        improved = best is not None and best.score < plain.score
        used = best if best is not None and improved else plain
        outside = used.fit.build(used.values, judge.held_out.noise[:1])
        nfe, name = used.fit.start.nfe, self.sampler.name
        rows = [
            judge.row(f"{name} + AMED-Plugin", "its own", nfe, guidance, used.end),
            judge.row(name, plain.name, nfe, guidance, plain.end),
        ]
        for label, end in self.rivals.items():
            schedule = "as usually set" if "karras" in label else "its own"
            rows.append(judge.row(label, schedule, nfe, guidance, end))
        how = (
            f"fitted to {name} from outside, {used.name}"
            if improved
            else f"{name} on {plain.name}: no fit beat it"
        )
        spec = self.target.spec(
            OUTSIDE,
            outside.sigmas,
            guidance,
            of=name,
            calls=nfe,
            how=f"{how}; {self.evaluations} evaluations, seed {self.settings.seed}",
            metrics=judge.metrics(rows, used.end, self.evaluations),
        )
        images = {"fit": used.end, "plain": plain.end, "reference": judge.held_out.end, **self.rivals}
        fitted = Fitted(spec, outside, outside.sigmas)
        return Result(fitted, improved, plain.fit.start, rows, list(self.history), images, self.evaluations)
