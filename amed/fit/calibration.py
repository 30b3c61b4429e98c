"""Fit a solver's constants to a model by forward evaluations only, on the image at the end.

    calibration = Calibration(target, Settings(nfe=5))
    for progress in calibration.run():
        print(progress.evaluations, progress.text)
    calibration.result().fitted

No gradient is taken, so it runs on whatever a host can sample with. Its stages, each a file: references
(samples), the plain solvers over their settings (search), tables by variable projection (closed, tables; the
paper's students start from greedy constants instead), all constants at once (polish), and the comparison with
the plain solvers on noise no fit saw (compare). The best of all is the result, be it a plain one."""

from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from torch import Tensor

from .. import schedules
from ..constants import Constants, Multistep, as_multistep
from ..files import Fitted
from ..kdiffusion import solver_of
from ..loop import denoised_only
from .closed import LAGS, ClosedForm
from .compare import Judge, Result, usual
from .forms import Form, Runner
from .greedy import greedy_table
from .look import Look
from .measures import rmse
from .polish import DAMPINGS, PATIENCE, Fit
from .samples import References, in_batches
from .search import Search, search, small_calls
from .settings import SAMPLES, Progress, Settings
from .stages import Stages
from .tables import Tables
from .target import Target


class Calibration(Stages):
    """One fit of one solver at one number of evaluations.

    references: shared with other calibrations, whose number of held-out samples it then has. start: a file
    fitted before, to go on from (with another seed: on other noise). heard: called with the Progress after
    every evaluation of the model, where `run` yields it after each step of its work.

    `run()` is a generator and may be closed, or interrupted by an exception of the model, at any point:
    `result()` then still gives the best so far, once the search is through. The same settings and model give
    the same result."""

    def __init__(self, target: Target, settings: Settings, references: References | None = None,
                 start: Fitted | None = None,
                 heard: Callable[[Progress], None] = lambda progress: None):  # fmt: skip
        if start is not None and (start.nfe != settings.nfe or start.spec.sampler != settings.sampler):
            wanted = f"{settings.sampler} at {settings.nfe}"
            raise ValueError(f"{start.label} cannot be gone on from: it is not for {wanted}")
        super().__init__(target, settings, references, heard, small_calls(target, settings))
        self.start = start
        self.used = self.references.held_out  # samples given to fits, the held-out ones among them
        self.search: Search | None = None
        self.rivals: dict[str, Tensor] = {}  # end states on the held-out samples
        self.fits: list[Fit] = []

    @property
    def ready(self) -> bool:
        return self.search is not None

    @property
    def best(self) -> Fit | None:
        """The fit with the best state by held-out score."""
        judged = [fit for fit in self.fits if fit.best is not None]
        return min(judged, key=lambda fit: fit.held_out, default=None)

    @property
    def score(self) -> float:
        best = self.best
        return float("nan") if best is None else best.held_out

    @property
    def searched(self) -> Search:
        if self.search is None:
            raise RuntimeError("nothing to give yet: the search of plain solvers is not finished")
        return self.search

    def run(self) -> Iterator[Progress]:
        references, settings, self.clock = self.references, self.settings, perf_counter()
        yield from self._told("reference", references.make(references.held_out))
        held_out = references.take(0, references.held_out)
        judge = Judge(self.model, held_out, settings.batch, features=self.target.features)
        self.search = yield from self._told("search", search(self.target, settings, references, judge))
        best = self.search.best
        yield self._progress("search", f"best plain setting: {best.name} on {best.schedule}")
        yield from self._told("compare", self._rivals())
        yield from self._told("fit", self._starts())
        yield from self._told("fit", self._polish())
        yield self._progress("fit", "done")

    def look(self) -> Look:
        images = {}
        if len(self.references.ends) * self.references.block >= self.references.held_out:
            images["reference"] = self.references.take(0, self.references.held_out).end
        if self.search is None:
            return Look(images=images)
        judge, kept, fit = self.search.judge, self.search.best, self.best
        images["plain"] = self.search.ends[kept]
        error, plain = float("nan"), judge.error(images["plain"])
        if fit is not None and fit.end is not None:
            images["fit"], error = fit.end, judge.error(fit.end)
        curve = tuple((n, e / max(plain, 1e-12)) for n, e in self.history)
        return Look(error, plain, f"{kept.name} on {kept.schedule}", curve, images)

    def _rivals(self) -> Iterator[str]:
        """The solvers as a host sets them, on the held-out samples."""
        nfe, judge = self.settings.plain_nfe, self.searched.judge
        rivals = usual(self.target, nfe) if self.target.rivals is None else self.target.rivals(nfe)
        for name, rival in rivals.items():
            end = self.rivals[name] = judge.rival(rival)
            yield f"{name} as usually set: {rmse(end, judge.held_out.end):.4f}"

    def _starts(self) -> Iterator[str]:
        """Fits at their starts, judged: a file to go on from, the best plain setting and closed forms, or for
        the paper's students greedy constants on the schedules that did best, with an iteration each."""
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
        """A new fit at its start."""
        self.fits.append(Fit.at(name, Form(solver_of(self.settings.sampler), constants, afs, LAGS)))
        return self.fits[-1]

    def _open(self, name: str, constants: Multistep | Constants, afs: bool) -> str:
        """A new fit, judged."""
        fit = self._fit(name, constants, afs)
        return f"start: {name}: held-out error {self._judge(fit, fit.values, remember=True):.4f}"

    def _from_plain(self) -> None:
        """A start at the best plain setting that is a list of falling times; what it is worth is known."""
        known = self.searched
        for setting in known.ranking:
            if not setting.solver.recipe.repeats_time and setting in known.ends:
                table = as_multistep(setting.solver, setting.sigmas(), setting.afs)
                fit = self._fit(f"{setting.name} on {setting.schedule}", table, setting.afs)
                fit.judged(fit.values, known.ends[setting], known.judge.score(known.ends[setting]))
                return

    def _closed(self) -> Iterator[str]:
        """Tables by variable projection, each judged."""
        settings, known, held_out = self.settings, self.searched, self.references.held_out
        count = min(settings.traced, self.references.traced)  # shared ones may have been made for fewer
        yield from self.references.make(held_out + count)
        samples, path = self.references.take(held_out, count), self.references.path(held_out, count)
        ask = self.target.evaluate or denoised_only
        stage = ClosedForm(self.model, samples, path, known.judge.scale, settings.batch, evaluate=ask)
        starts, flow = known.schedules(settings), self.target.flow
        search = Tables(stage, settings, starts, lambda: self.left, flow)
        made = search.run()
        judged: float | None = None
        while True:
            try:
                candidate = made.send(judged)
            except StopIteration:
                return
            if isinstance(candidate, str):
                judged = None
                yield candidate
                continue
            fit = self._fit(candidate.name, candidate.run.table, candidate.afs)
            judged = self._judge(fit, fit.values, remember=True)
            yield f"{candidate.name}: held-out error {judged:.4f}"

    def _students(self) -> Iterator[str]:
        settings, target = self.settings, self.target
        solver, afs = solver_of(settings.sampler), bool(settings.nfe % 2)
        if afs and target.flow:
            wrong = "takes an odd number of evaluations only with the analytic first step, which this model"
            mend = f"set nfe to {settings.nfe + 1}, or the sampler to amed_multistep"
            raise ValueError(f"{settings.sampler} {wrong} does not allow: {mend}")
        samples = self.references.take(self.references.held_out, 4)
        count = (settings.nfe + afs) // 2
        kinds = list(dict.fromkeys((s.kind, s.rho) for s in self.searched.ranking))
        for kind, rho in kinds[: 2 if settings.large else 1]:
            base = schedules.make(kind, count + 1, target.sigma_min, target.sigma_max, rho)
            start = greedy_table(self.model, solver, base, samples.noise, samples.args, afs)
            yield self._open(f"greedy table on {kind} {rho:g}", start, afs)
        if len(self.fits) > 1:
            for fit in self.fits:
                yield from self._iterate(fit, SAMPLES // 2, self.references.held_out)

    def _polish(self) -> Iterator[str]:
        """Iterations of the best fit, for what is left of the budget."""
        while (fit := self.best) and fit.waited < PATIENCE and (count := self._affordable(fit)):
            yield from self._iterate(fit, count, self.used)
            self.used += count
        for count in (2, 3, 5):  # a mean of the last states is often better than any of them
            fit = self.best
            if fit and len(fit.recent) >= count and self.left >= self.references.held_out * self.settings.nfe:
                mean = torch.stack(fit.recent[-count:]).mean(dim=0)
                self._judge(fit, fit.form.bounded(mean, mean))

    def _iterate(self, fit: Fit, count: int, first: int) -> Iterator[str]:
        """One iteration on `count` samples from the `first` on."""
        yield from self.references.make(first + count)
        samples = self.references.take(first, count)
        yield from fit.iterate(self.model, samples, self.settings.batch, self.searched.judge.scale)
        score = self._judge(fit, fit.values, remember=True)
        yield f"{fit.name}: held-out error {score:.4f}, best {fit.held_out:.4f}"

    def _judge(self, fit: Fit, values: Tensor, remember: bool = False) -> float:
        judge = self.searched.judge
        runner = Runner(
            self.model, fit.form, in_batches(self.settings.batch, self.target.evaluate or denoised_only)
        )
        end = runner.end(values, judge.held_out.noise, judge.held_out.args)
        score = judge.score(end)
        fit.judged(values, end, score)
        if remember:
            self.history.append((self.evaluations, judge.error(end)))
        return score

    def _affordable(self, fit: Fit) -> int:
        """How many samples the next iteration can have, the comparison after it included."""
        run, derivatives = Runner(self.model, fit.form).evaluations()
        block, made = self.references.block, len(self.references.ends)

        def cost(count: int) -> int:
            blocks = max(0, -(-(self.used + count) // block) - made)
            references = blocks * block * self.references.evaluations
            return count * (derivatives + len(DAMPINGS) * run) + references + self.references.held_out * run

        return next((count for count in range(SAMPLES, SAMPLES // 2 - 1, -1) if cost(count) <= self.left), 0)

    def result(self) -> Result:
        known, settings, fit = self.searched, self.settings, self.best
        judge, kept = known.judge, known.best
        plain_end = known.ends[kept]
        improved = fit is not None and fit.best is not None and fit.held_out < judge.score(plain_end)
        if fit is not None and fit.best is not None and fit.end is not None and improved:
            end, name, how = fit.end, settings.sampler, f"calibrated: {fit.name}"
            if not torch.equal(fit.best, fit.form.vector()):
                how = f"calibrated jointly on the end state, from {fit.name}"
            solver, constants = fit.form.solver, fit.form.build(fit.best)
            sigmas, own = constants.sigmas, {"afs": fit.form.afs, "parts": getattr(constants, "parts", "")}
            offset = getattr(constants, "offset", None)
            own["channels"] = 0 if offset is None else offset.shape[1]
        else:  # its solver's own table
            how = f"{kept.name} on {kept.schedule}: the fit did not beat it"
            end, name = plain_end, "amed_multistep"
            solver, constants, sigmas = kept.solver, None, kept.sigmas()
            own = {"afs": kept.afs, "features": "plain", "schedule": kept.kind, "rho": kept.rho}
            own["fitted_for"] = settings.sampler
        own_nfe, scale = settings.nfe if improved else settings.plain_nfe, settings.guidance
        rows = [judge.row(name, "its own", own_nfe, scale, end)]
        rows.append(judge.row(kept.name, kept.schedule, settings.plain_nfe, scale, plain_end))
        rows += [judge.row(n, "as usually set", settings.plain_nfe, scale, v) for n, v in self.rivals.items()]
        first, best = rows[0].as_dict(), rows[1].as_dict()
        metrics = {k: v for k, v in first.items() if k not in ("solver", "schedule")}
        metrics |= {"plain": kept.name, "plain_schedule": kept.schedule}
        metrics |= {f"plain_{k}": best[k] for k in ("error", "rmse_ref", "fd_ref") if k in best}
        metrics |= {"noises": len(judge.held_out), "evaluations": self.evaluations}
        metrics |= {"passes": settings.passes} if settings.passes and improved else {}
        metrics |= judge.verdict(end)
        how = f"{how}; {self.evaluations} evaluations, seed {settings.seed}"
        spec = self.target.spec(solver, sigmas, settings.guidance, how=how, metrics=metrics, **own)
        fitted = Fitted(spec, constants, sigmas)
        images = {"fit": end, "plain": plain_end, "reference": judge.held_out.end, **self.rivals}
        return Result(fitted, improved, kept, rows, list(self.history), images, self.evaluations)
