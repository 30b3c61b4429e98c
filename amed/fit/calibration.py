"""Fit a solver's constants to a model by forward evaluations only, on the image at the end.

    calibration = Calibration(target, Settings(nfe=5))
    for progress in calibration.run():
        print(progress.evaluations, progress.text)
    calibration.result().fitted

No gradient is taken, so it runs on whatever a host can sample with. Its stages, each a file: references
(samples), the plain solvers over their settings (search), weights in closed form and times (closed, times; the
paper's students start from greedy constants instead), all constants at once (polish), and the comparison with the
plain solvers on noise no fit saw (compare). The best of all is the result, be it a plain one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import schedules
from ..constants import Multistep, as_multistep
from ..files import Fitted
from ..kdiffusion import solver_of
from .compare import Judge, Result, usual
from .forms import Form, Runner
from .greedy import greedy_table
from .measures import Counter
from .polish import DAMPINGS, PATIENCE, Fit
from .samples import References, in_batches
from .search import Search, search
from .settings import CLOSED, SAMPLES, Progress, Settings
from .target import Target
from .times import LAGS, Candidate, ClosedForm


@dataclass
class Found:
    """What a calibration has so far."""

    search: Search | None = None
    rivals: dict[str, Tensor] = field(default_factory=dict)  # end states on the held-out samples
    fits: list[Fit] = field(default_factory=list)
    history: list[tuple[int, float]] = field(default_factory=list)
    used: int = 0  # samples given to fits, the held-out ones among them

    @property
    def best(self) -> Fit | None:
        """The fit with the best state by held-out score."""
        judged = [fit for fit in self.fits if fit.best is not None]
        return min(judged, key=lambda fit: fit.held_out, default=None)


def references_for(target: Target, settings: Settings) -> References:
    """What a calibration with these settings fits to; others of the same target and seed may share it."""
    return References(
        target.model, target.draw, target.sigma_min, target.sigma_max, held_out=settings.held_out,
        traced=CLOSED, evaluations=settings.reference, seed=settings.seed, batch=settings.batch,
    )  # fmt: skip


class Calibration:
    """One fit of one solver at one number of evaluations.

    references: shared with other calibrations, whose number of held-out samples it then has. start: a file fitted
    before, to go on from (with another seed: on other noise).

    `run()` is a generator and may be closed, or interrupted by an exception of the model, at any point:
    `result()` then still gives the best so far, once the search is through. The same settings and model give
    the same result."""

    def __init__(
        self,
        target: Target,
        settings: Settings,
        *,
        references: References | None = None,
        start: Fitted | None = None,
    ):
        if start is not None and (start.nfe != settings.nfe or start.spec.sampler != settings.sampler):
            raise ValueError(
                f"{start.label} cannot be gone on from: it is not for {settings.sampler} at {settings.nfe}"
            )
        self.target, self.settings, self.start = target, settings, start
        self.model = Counter(target.model)
        self.references = references or references_for(target, settings)
        self.found = Found(used=self.references.held_out)
        self.made = 0  # evaluations spent on references

    @property
    def evaluations(self) -> int:
        """Of the model so far, a batch of n counting n; shared references count for who made them."""
        return self.model.rows + self.made

    @property
    def left(self) -> int:
        return self.settings.budget - self.evaluations

    @property
    def ready(self) -> bool:
        """Whether there is a result already."""
        return self.found.search is not None

    def run(self) -> Iterator[Progress]:
        """Everything, in order. Raises NotFiniteError if the model returns NaN, naming the sigma."""
        yield from self._reference(self.references.held_out)
        yield from self._search()
        yield from self._rivals()
        yield from self._starts()
        yield from self._polish()
        yield self._progress("fit", "done")

    def _progress(self, stage: str, text: str) -> Progress:
        best, budget = self.found.best, self.settings.budget
        score = float("nan") if best is None else best.held_out
        return Progress(stage, text, min(self.evaluations, budget), budget, score, self.settings.nfe)

    def _reference(self, count: int) -> Iterator[Progress]:
        before = self.references.model.rows
        for made in self.references.make(count):
            self.made += self.references.model.rows - before
            before = self.references.model.rows
            yield self._progress("reference", f"{made} references")

    def _search(self) -> Iterator[Progress]:
        held_out = self.references.take(0, self.references.held_out)
        judge = Judge(self.model, held_out, self.settings.batch, features=self.target.features)
        before = self.references.model.rows
        for said in search(self.target, self.settings, self.references, judge):
            self.made += self.references.model.rows - before
            before = self.references.model.rows
            if isinstance(said, Search):
                self.found.search = said
                said = f"best plain setting: {said.best.name} on {said.best.schedule}"
            yield self._progress("search", said)

    def _rivals(self) -> Iterator[Progress]:
        """The solvers as a host sets them, on the held-out samples."""
        nfe, judge = self.settings.nfe, self._found().judge
        rivals = usual(self.target, nfe) if self.target.rivals is None else self.target.rivals(nfe)
        for name, rival in rivals.items():
            end = self.found.rivals[name] = judge.rival(rival)
            yield self._progress(
                "compare", f"{name} as usually set: {judge.row(name, '', self.settings, end).rmse_ref:.4f}"
            )

    def _found(self) -> Search:
        if self.found.search is None:
            raise RuntimeError("nothing to give yet: the search of plain solvers is not finished")
        return self.found.search

    # --- where fits start ---------------------------------------------------------------------------------

    def _starts(self) -> Iterator[Progress]:
        """Fits at their starts, judged: a file to go on from, the best plain setting and closed forms, or for the
        paper's students greedy constants on the schedules that did best, with an iteration each."""
        if self.start is not None:
            spec, constants = self.start.spec, self.start.predictor
            if constants is None:
                constants = as_multistep(spec.student, self.start.base, spec.afs)
            solver = solver_of("amed_multistep") if self.settings.multistep else spec.student
            form = Form(solver, constants, spec.afs, LAGS)
            yield self._open(self.start.name, form)
        elif self.settings.multistep:
            self._from_plain()
            yield from self._closed()
        else:
            yield from self._greedy()

    def _open(self, name: str, form: Any) -> Progress:
        """A new fit at its start."""
        fit = Fit.at(name, form)
        self.found.fits.append(fit)
        score = self._judge(fit, fit.values)
        self.found.history.append((self.evaluations, score))
        return self._progress("fit", f"start: {name}: held-out error {score:.4f}")

    def _free(self, start: Multistep, afs: bool) -> Form:
        return Form(solver_of("amed_multistep"), start, afs, LAGS)

    def _from_plain(self) -> None:
        """A start at the best plain setting that is a list of falling times; what it is worth is known."""
        known = self._found()
        for setting in known.ranking:
            if setting.solver.name != "heun" and setting in known.ends:
                table = as_multistep(setting.solver, setting.sigmas(), setting.afs)
                fit = Fit.at(f"{setting.name} on {setting.schedule}", self._free(table, setting.afs))
                end = known.ends[setting]
                fit.judged(fit.values, end, known.judge.score(end))
                self.found.fits.append(fit)
                return

    def _closed(self) -> Iterator[Progress]:
        settings, known, held_out = self.settings, self._found(), self.references.held_out
        count = CLOSED if settings.large else SAMPLES
        yield from self._reference(held_out + count)
        samples = self.references.take(held_out, count)
        stage = ClosedForm(
            self.model, samples, self.references.path(held_out, count), known.judge.scale, settings.batch
        )
        tried: list[Candidate] = []
        for said in stage.schedules(known.schedules()):
            if isinstance(said, Candidate):
                tried.append(said)
            else:
                yield self._progress("fit", said)
        if not tried:
            return
        best = min(tried, key=lambda candidate: candidate.loss)
        yield self._open(best.name, self._free(best.run.table, best.afs))
        leading = self.found.best is self.found.fits[-1]
        if not leading or stage.cost(best) + held_out * settings.nfe > self.left:
            return
        for said in stage.refine(best):
            if isinstance(said, Candidate):
                yield self._open(said.name, self._free(said.run.table, said.afs))
            else:
                yield self._progress("fit", said)

    def _greedy(self) -> Iterator[Progress]:
        settings, target, known = self.settings, self.target, self._found()
        solver, afs = solver_of(settings.sampler), bool(settings.nfe % 2)
        if afs and target.flow:
            raise ValueError(
                f"{settings.sampler} takes an odd number of evaluations only with the analytic first step, "
                f"which this model does not allow: set nfe to {settings.nfe + 1}, or the sampler to "
                "amed_multistep"
            )
        kinds = list(dict.fromkeys((s.kind, s.rho) for s in known.ranking))[: 2 if settings.large else 1]
        for kind, rho in kinds:
            count = (settings.nfe + afs) // 2 + 1
            base = schedules.make(kind, count, target.sigma_min, target.sigma_max, rho)
            samples = self.references.take(self.references.held_out, 4)
            table = greedy_table(self.model, solver, base, samples.noise, samples.args, afs)
            yield self._open(f"greedy table on {kind} {rho:g}", Form(solver, table, afs))
        if len(self.found.fits) > 1:
            for fit in self.found.fits:
                yield from self._iterate(fit, SAMPLES // 2, self.references.held_out)

    # --- the joint fit ------------------------------------------------------------------------------------

    def _polish(self) -> Iterator[Progress]:
        """Iterations of the best fit, for what is left of the budget."""
        while (fit := self.found.best) and fit.waited < PATIENCE and (count := self._affordable(fit)):
            yield from self._iterate(fit, count, self.found.used)
            self.found.used += count
        for count in (2, 3, 5):  # a mean of the last states is often better than any of them
            fit = self.found.best
            if fit and len(fit.recent) >= count and self.left >= self.references.held_out * self.settings.nfe:
                mean = torch.stack(fit.recent[-count:]).mean(dim=0)
                self._judge(fit, fit.form.bounded(mean, mean))

    def _iterate(self, fit: Fit, count: int, first: int) -> Iterator[Progress]:
        """One iteration on `count` samples from the `first` on."""
        yield from self._reference(first + count)
        samples = self.references.take(first, count)
        for said in fit.iterate(self.model, samples, self.settings.batch, self._found().judge.scale):
            yield self._progress("fit", said)
        score = self._judge(fit, fit.values)
        self.found.history.append((self.evaluations, score))
        yield self._progress("fit", f"{fit.name}: held-out error {score:.4f}, best {fit.held_out:.4f}")

    def _judge(self, fit: Fit, values: Tensor) -> float:
        judge = self._found().judge
        runner = Runner(self.model, fit.form, in_batches(self.settings.batch))
        end = runner.end(values, judge.held_out.noise, judge.held_out.args)
        score = judge.score(end)
        fit.judged(values, end, score)
        return score

    def _affordable(self, fit: Fit) -> int:
        """How many samples the next iteration can have, the comparison after it included."""
        run, derivatives = Runner(self.model, fit.form).evaluations()
        block, made = self.references.block, len(self.references.ends)

        def cost(count: int) -> int:
            blocks = max(0, -(-(self.found.used + count) // block) - made)
            references = blocks * block * self.references.evaluations
            return count * (derivatives + len(DAMPINGS) * run) + references + self.references.held_out * run

        return next((count for count in range(SAMPLES, 2, -1) if cost(count) <= self.left), 0)

    # --- what came out ------------------------------------------------------------------------------------

    def result(self) -> Result:
        """The best so far. Raises RuntimeError before the search is through."""
        known, settings, fit = self._found(), self.settings, self.found.best
        judge, kept = known.judge, known.best
        plain_end = known.ends[kept]

        improved = fit is not None and fit.held_out < judge.score(plain_end)
        if improved:
            end, name, how = fit.end, settings.sampler, f"calibrated: {fit.name}"
            if not torch.equal(fit.best, fit.form.vector()):
                how = f"calibrated jointly on the end state, from {fit.name}"
            solver, constants = fit.form.solver, fit.form.build(fit.best)
            sigmas, own = constants.sigmas, {"afs": fit.form.afs, "parts": getattr(constants, "parts", "")}
        else:  # its solver's own table
            end, name, how = (
                plain_end,
                "amed_multistep",
                f"{kept.name} on {kept.schedule}: the fit did not beat it",
            )
            solver, constants, sigmas = kept.solver, None, kept.sigmas()
            own = {"afs": kept.afs, "features": "plain", "schedule": kept.kind, "rho": kept.rho}
        rows = [judge.row(name, "its own", settings, end)]
        rows.append(judge.row(kept.name, kept.schedule, settings, plain_end))
        rows += [judge.row(n, "as usually set", settings, v) for n, v in self.found.rivals.items()]
        first, best = rows[0].as_dict(), rows[1].as_dict()
        metrics = {k: v for k, v in first.items() if k not in ("solver", "schedule")}
        metrics |= {"plain": kept.name, "plain_schedule": kept.schedule}
        metrics |= {f"plain_{k}": best[k] for k in ("error", "rmse_ref", "fd_ref") if k in best}
        metrics |= {"noises": len(judge.held_out), "evaluations": self.evaluations}
        how = f"{how}; {self.evaluations} evaluations, seed {settings.seed}"
        spec = self.target.spec(solver, sigmas, settings.guidance, how=how, metrics=metrics, **own)
        fitted = Fitted(spec, constants, sigmas)
        images = {"fit": end, "plain": plain_end, "reference": judge.held_out.end, **self.found.rivals}
        return Result(fitted, improved, kept, rows, list(self.found.history), images, self.evaluations)
