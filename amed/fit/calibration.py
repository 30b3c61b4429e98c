"""The calibration of one of our samplers: fit its constants to a model, on the end state.

    calibration = Calibration(target, Settings(nfe=5))
    for progress in calibration.run():
        print(progress.evaluations, progress.text)
    calibration.result().fitted

No gradient is taken, so it works with any model that a host can sample with. Its stages, with their modules:
samples with converged end states (samples), the search of plain solvers (search), a multistep solver's
weights by variable projection (table_search, variable_projection; for the paper's samplers constants fitted
interval by interval instead: greedy), a joint fit of all constants (polish) and the comparison with plain
solvers on held-out samples (compare). The best of all is the result; it may be a plain solver."""

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .. import schedules
from ..constants import Constants, Multistep, as_multistep
from ..files import Fitted
from ..kdiffusion import solver_of
from .compare import Judge, Result, usual_rivals
from .greedy import greedy_table
from .measures import rmse
from .parametrisation import Parametrisation, Runner
from .polish import DAMPINGS, PATIENCE, Fit
from .preview import Preview
from .samples import References
from .search import Search, search, small_calls
from .settings import ITERATION_SAMPLES, Progress, Settings
from .stages import Stages
from .table_search import TableSearch
from .target import Target
from .variable_projection import LAGS


class Calibration(Stages):
    """The fit of a sampler's constants to a model, at one number of evaluations per sample.

    `run()` is a generator, which may be closed or stopped by an exception at any time. After its first
    stage, the search of solvers without fitted constants, `result()` returns the best result so far. The
    same settings and model give the same result.

    Args:
        target: the model, and a function that draws noise for it.
        settings: of this fit.
        references: samples with converged end states, shared with other fits; their number of held-out
            samples replaces that of `settings`. None: the fit makes its own.
        start: a predictor to resume from; use another seed to fit it to other noise.
        on_progress: called after every evaluation of the model.

    Raises:
        ValueError: `start` is for another sampler or number of evaluations.
    """

    def __init__(self, target: Target, settings: Settings, references: References | None = None,
                 start: Fitted | None = None,
                 on_progress: Callable[[Progress], None] = lambda progress: None):  # fmt: skip
        if start is not None and (start.nfe != settings.nfe or start.spec.sampler != settings.sampler):
            raise ValueError(
                f"predictor {start.label} cannot be resumed for {settings.sampler} at nfe {settings.nfe}: "
                "set the sampler and the nfe that it was fitted for, or fit a new predictor"
            )
        super().__init__(target, settings, references, on_progress, small_calls(target, settings))
        self.start = start
        self.used = self.references.held_out  # samples used so far, the held-out ones among them
        self.search: Search | None = None
        self.rivals: dict[str, Tensor] = {}  # end states on the held-out samples, by name
        self.fits: list[Fit] = []

    @property
    def ready(self) -> bool:
        return self.search is not None

    @property
    def best(self) -> Fit | None:
        """The fit with the best held-out score; None before any fit was scored."""
        judged = [fit for fit in self.fits if fit.best is not None]
        return min(judged, key=lambda fit: fit.held_out, default=None)

    @property
    def score(self) -> float:
        best = self.best
        return float("nan") if best is None else best.held_out

    @property
    def searched(self) -> Search:
        """The result of the search of plain solvers, i.e. solvers without fitted constants.

        Raises:
            RuntimeError: the search is not finished.
        """
        if self.search is None:
            raise RuntimeError("no result yet: continue run() until `ready` is True")
        return self.search

    def run(self) -> Iterator[Progress]:
        references, settings, self.clock = self.references, self.settings, perf_counter()
        yield from self._report("reference", references.make(references.held_out))
        held_out = references.take(0, references.held_out)
        judge = Judge(self.model, held_out, settings.batch, features=self.target.features)
        self.search = yield from self._report("search", search(self.target, settings, references, judge))
        best = self.search.best
        yield self._progress("search", f"best plain setting: {best.name} on {best.schedule}")
        yield from self._report("compare", self._rivals())
        yield from self._report("fit", self._starts())
        yield from self._report("fit", self._polish())
        yield self._progress("fit", "done")

    def preview(self) -> Preview:
        images = {}
        if len(self.references.ends) * self.references.block >= self.references.held_out:
            images["reference"] = self.references.take(0, self.references.held_out).end
        if self.search is None:
            return Preview(images=images)
        best, fit_end = self.search.best, None if self.best is None else self.best.end
        solver = f"{best.name} on {best.schedule}"
        return self._preview(self.search.judge, solver, self.search.ends[best], fit_end)

    def _rivals(self) -> Iterator[str]:
        """Run the rivals, solvers at their usual settings, on the held-out samples."""
        nfe, judge = self.settings.plain_nfe, self.searched.judge
        rivals = usual_rivals(self.target, nfe) if self.target.rivals is None else self.target.rivals(nfe)
        for name, rival in rivals.items():
            end = self.rivals[name] = judge.rival(rival)
            yield f"{name} as usually set: {rmse(end, judge.held_out.end):.4f}"

    def _starts(self) -> Iterator[str]:
        """Create the fits, and score the constants that each starts from.

        With a predictor to resume from there is one fit, which starts from its constants. Otherwise
        amed_multistep gets several fits, from the best plain solver and from weights found by least
        squares; a sampler of the paper starts from constants that are found interval by interval."""
        if self.start is not None:
            spec, constants = self.start.spec, self.start.predictor
            if not isinstance(constants, Constants | Multistep):
                constants = as_multistep(spec.student, self.start.base, spec.afs)
            yield self._open(self.start.name, constants, spec.afs)
        elif self.settings.sampler == "amed_multistep":
            if not self.settings.spared:
                self._from_plain()
            yield from self._closed()
        else:
            yield from self._students()

    def _fit(self, name: str, constants: Multistep | Constants, afs: bool) -> Fit:
        """Create a fit that starts from `constants`, add it to `self.fits` and return it."""
        solver = solver_of(self.settings.sampler)
        self.fits.append(Fit.at(name, Parametrisation(solver, constants, afs, LAGS)))
        return self.fits[-1]

    def _open(self, name: str, constants: Multistep | Constants, afs: bool) -> str:
        """Begin to fit a solver from the initial `constants`, and measure their error on held-out samples.

        Returns a line of progress for the user."""
        fit = self._fit(name, constants, afs)
        return f"start: {name}: held-out error {self._score(fit, fit.values, record=True):.4f}"

    def _from_plain(self) -> None:
        """Create a fit that starts from the noise levels and weights of the best plain (unfitted) solver.

        Solvers that evaluate twice at one noise level (Heun) are skipped, because a multistep solver
        cannot reproduce them: its noise levels fall at every evaluation."""
        known = self.searched
        for setting in known.ranking:
            if not setting.solver.recipe.repeats_time and setting in known.ends:
                table = as_multistep(setting.solver, setting.sigmas(), setting.afs)
                fit = self._fit(f"{setting.name} on {setting.schedule}", table, setting.afs)
                fit.judged(fit.values, known.ends[setting], known.judge.score(known.ends[setting]))
                return

    def _closed(self) -> Iterator[str]:
        """Create and score fits of a multistep solver that start from weights found in closed form.

        TableSearch searches the noise levels; the weights on them follow by least squares."""
        settings, plain_search, held_out = self.settings, self.searched, self.references.held_out
        count = min(settings.traced, self.references.traced)  # shared references may trace fewer
        yield from self.references.make(held_out + count)
        stage = self._projection(plain_search.judge, count)
        starts, flow = plain_search.schedules(settings), self.target.flow
        tables = TableSearch(stage, settings, starts, lambda: self.left, flow).run()
        score: float | None = None
        while True:
            try:
                candidate = tables.send(score)
            except StopIteration:
                return
            if isinstance(candidate, str):
                score = None
                yield candidate
                continue
            fit = self._fit(candidate.name, candidate.run.table, candidate.afs)
            score = self._score(fit, fit.values, record=True)
            yield f"{candidate.name}: held-out error {score:.4f}"

    def _students(self) -> Iterator[str]:
        """Create a fit of a sampler of the paper on each of the best one or two schedules.

        Each starts from constants that are found interval by interval (`greedy_table`). Of two fits, each
        gets one Gauss-Newton iteration, which tells the better one."""
        settings, target = self.settings, self.target
        solver, afs = solver_of(settings.sampler), bool(settings.nfe % 2)
        if afs and target.flow:
            raise ValueError(
                f"{settings.sampler} takes an odd number of evaluations only with an analytic first step, "
                f"which flow models do not allow: set nfe to {settings.nfe + 1}, or the sampler to "
                "amed_multistep"
            )
        samples = self.references.take(self.references.held_out, 4)
        count = (settings.nfe + afs) // 2
        kinds = list(dict.fromkeys((s.kind, s.rho) for s in self.searched.ranking))
        for kind, rho in kinds[: 2 if settings.large else 1]:
            base = schedules.make(kind, count + 1, target.sigma_min, target.sigma_max, rho)
            start = greedy_table(self.model, solver, base, samples.noise, samples.args, afs)
            yield self._open(f"greedy table on {kind} {rho:g}", start, afs)
        if len(self.fits) > 1:
            for fit in self.fits:
                yield from self._iterate(fit, ITERATION_SAMPLES // 2, self.references.held_out)

    def _polish(self) -> Iterator[str]:
        """Run Gauss-Newton iterations on the best fit until the budget is spent or it stops improving."""
        while (fit := self.best) and fit.waited < PATIENCE and (count := self._affordable(fit)):
            yield from self._iterate(fit, count, self.used)
            self.used += count
        for count in (2, 3, 5):  # a mean of the last states is often better than any of them
            fit = self.best
            if fit and len(fit.recent) >= count and self.left >= self.references.held_out * self.settings.nfe:
                mean = torch.stack(fit.recent[-count:]).mean(dim=0)
                self._score(fit, fit.parametrisation.bounded(mean, mean))

    def _iterate(self, fit: Fit, count: int, first: int) -> Iterator[str]:
        """Run one iteration of a fit on the `count` samples from index `first` on, and score the result."""
        yield from self.references.make(first + count)
        samples = self.references.take(first, count)
        yield from fit.iterate(self.model, samples, self.settings.batch, self.searched.judge.scale)
        score = self._score(fit, fit.values, record=True)
        yield f"{fit.name}: held-out error {score:.4f}, best {fit.held_out:.4f}"

    def _score(self, fit: Fit, values: Tensor, record: bool = False) -> float:
        """Return the held-out score of a fit's constants; `record`: append their error to `self.history`."""
        judge = self.searched.judge
        end = self._held_out_end(judge, fit.parametrisation, values)
        score = judge.score(end)
        fit.judged(values, end, score)
        if record:
            self.history.append((self.evaluations, judge.error(end)))
        return score

    def _affordable(self, fit: Fit) -> int:
        """Return how many samples the next iteration can use within the budget; 0 if too few.

        The evaluations that score the iteration's result are included."""
        run, derivatives = Runner(self.model, fit.parametrisation).evaluations()

        def cost(count: int) -> int:
            each, references = derivatives + len(DAMPINGS) * run, self.references.cost(self.used + count)
            return count * each + references + self.references.held_out * run

        counts = range(ITERATION_SAMPLES, ITERATION_SAMPLES // 2 - 1, -1)
        return next((count for count in counts if cost(count) <= self.left), 0)

    def result(self) -> Result:
        plain_search, settings, fit = self.searched, self.settings, self.best
        judge, plain = plain_search.judge, plain_search.best
        plain_end, plain_nfe, guidance = plain_search.ends[plain], settings.plain_nfe, settings.guidance
        improved = fit is not None and fit.best is not None and fit.held_out < judge.score(plain_end)
        fields: dict[str, Any]
        if fit is not None and fit.best is not None and fit.end is not None and improved:
            end, name, nfe, how = fit.end, settings.sampler, settings.nfe, f"calibrated: {fit.name}"
            if not torch.equal(fit.best, fit.parametrisation.vector()):
                how = f"calibrated jointly on the end state, from {fit.name}"
            solver, constants = fit.parametrisation.solver, fit.parametrisation.build(fit.best)
            sigmas, offset = constants.sigmas, getattr(constants, "offset", None)
            fields = {"afs": fit.parametrisation.afs, "parts": getattr(constants, "parts", "")}
            fields["channels"] = 0 if offset is None else offset.shape[1]
        else:
            end, name, nfe = plain_end, "amed_multistep", plain_nfe  # the sampler that runs plain files
            how = f"{plain.name} on {plain.schedule}: the fit did not beat it"
            solver, constants, sigmas = plain.solver, None, plain.sigmas()
            fields = {"afs": plain.afs, "features": "plain", "schedule": plain.kind, "rho": plain.rho}
            fields["fitted_for"] = settings.sampler
        rows = [
            judge.row(name, "its own", nfe, guidance, end),
            judge.row(plain.name, plain.schedule, plain_nfe, guidance, plain_end),
        ]
        for rival, rival_end in self.rivals.items():
            rows.append(judge.row(rival, "as usually set", plain_nfe, guidance, rival_end))
        fields["metrics"] = judge.metrics(rows, end, self.evaluations, settings.passes if improved else None)
        fields["how"] = f"{how}; {self.evaluations} evaluations, seed {settings.seed}"
        fitted = Fitted(self.target.spec(solver, sigmas, guidance, **fields), constants, sigmas)
        images = {"fit": end, "plain": plain_end, "reference": judge.held_out.end, **self.rivals}
        return Result(fitted, improved, plain, rows, list(self.history), images, self.evaluations)
