"""Fit AMED-Plugin to a sampler from outside: references, its schedules, the constants, the comparison."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from .. import schedules
from ..files import Fitted
from ..kdiffusion import solver_of
from ..loop import denoised_only
from ..outside import OUTSIDE
from .closed import LAGS, ClosedForm, Shape
from .compare import Judge, Result
from .forms import Form, Runner
from .look import Look
from .outer import HostSampler, Listed, OuterFit, lists_for
from .samples import References, in_batches, per_sample, robust
from .settings import Progress, Settings
from .stages import Stages
from .tables import fitting
from .target import Target

TRIED = 4  # samples that each schedule is tried on
FINALISTS = 2  # schedules that are tried on the held-out ones
MOST, FEWEST = 32, 4  # samples of an iteration
BESIDE, SOME = Shape("bands", True, 1e-2), 16  # the table that stands beside it, and its samples


@dataclass
class Tried:
    """Constants with their held-out end states and score."""

    name: str
    fit: OuterFit
    values: Tensor
    end: Tensor
    score: float


class OuterCalibration(Stages):
    """One fit of a host's sampler at as many evaluations as it can take up to `settings.nfe`; arguments as
    Calibration's.

    It is held against that sampler on its best schedule and as usually set; a table of our own solver, its
    weights in closed form, stands beside it."""

    def __init__(self, target: Target, settings: Settings, sampler: HostSampler,
                 references: References | None = None,
                 heard: Callable[[Progress], None] = lambda progress: None):  # fmt: skip
        super().__init__(target, settings, references, heard, small=0)
        self.sampler = sampler
        self.judge: Judge | None = None
        self.plain: Tried | None = None
        self.fitted: list[Tried] = []
        self.rivals: dict[str, Tensor] = {}

    @property
    def ready(self) -> bool:
        return self.plain is not None

    @property
    def best(self) -> Tried | None:
        return min(self.fitted, key=lambda one: one.score, default=None)

    @property
    def score(self) -> float:
        return math.nan if self.best is None else self.best.score

    def run(self) -> Iterator[Progress]:
        self.clock, held_out = perf_counter(), self.references.held_out
        yield from self._told("reference", self.references.make(held_out))
        samples = self.references.take(0, held_out)
        self.judge = Judge(self.model, samples, self.settings.batch, features=self.target.features)
        yield from self._told("search", self._schedules(self.judge))
        yield from self._told("compare", self._usual())
        yield from self._told("fit", self._iterations())
        yield from self._told("compare", self._beside())
        yield self._progress("fit", "done")

    def _open(self, listed: Listed, with_a: bool = True) -> OuterFit:
        batch = self.settings.batch
        return OuterFit(self.model, self.sampler, listed, self.target.sigma_min, batch, with_a)

    def _schedules(self, judge: Judge) -> Iterator[str]:
        """The sampler on all its schedules; the best are judged."""
        first, noise = self.references.held_out, judge.held_out.noise[:1]
        lists = lists_for(self.sampler, self.target, self.settings.nfe, noise)
        yield from self.references.make(first + TRIED)
        samples = self.references.take(first, TRIED)
        errors = []
        for i, listed in enumerate(lists):
            fit = self._open(listed)
            errors.append(per_sample(fit.end(fit.vector(), samples), samples.end))
            yield f"{self.sampler.name} on {listed.schedule}: {i + 1} of {len(lists)}"
        scale = 0.5 * float(min(e.median() for e in errors)) + 1e-12
        order = sorted(range(len(lists)), key=lambda i: robust(errors[i], scale))
        fits = [self._open(lists[i]) for i in order[:FINALISTS]]
        ends = [fit.end(fit.vector(), judge.held_out) for fit in fits]
        scale = 0.5 * float(min(per_sample(end, judge.held_out.end).median() for end in ends)) + 1e-12
        self.judge = judge = replace(judge, scale=scale)
        tried = [Tried(f.start.schedule, f, f.vector(), e, judge.score(e)) for f, e in zip(fits, ends)]
        self.plain = min(tried, key=lambda one: one.score)

    def _searched(self) -> tuple[Judge, Tried]:
        if self.judge is None or self.plain is None:
            raise RuntimeError("nothing to give yet: the search of schedules is not finished")
        return self.judge, self.plain

    def _usual(self) -> Iterator[str]:
        """The sampler on the karras schedule, as most have it set: at as many evaluations, or at one level
        more where it does without the last."""
        judge, kept = self._searched()
        count, ends = len(kept.fit.start.sigmas), (self.target.sigma_min, self.target.sigma_max)
        for number in range(count + 1, max(count - 2, 1), -1):
            sigmas = schedules.make("polynomial", number, *ends)
            fit = self._open(Listed("karras", sigmas, kept.fit.start.levels))
            if len(fit.levels(fit.vector(), judge.held_out.noise[:1])) == kept.fit.start.nfe:
                self.rivals[f"{self.sampler.name}, karras"] = fit.end(fit.vector(), judge.held_out)
                break
        yield f"{self.sampler.name} as usually set"

    def _iterations(self) -> Iterator[str]:
        """Gauss-Newton iterations for what is left of the budget, each judged."""
        judge, kept = self._searched()
        first, nfe = self.references.held_out, kept.fit.start.nfe
        beside = (SOME + first) * self.settings.nfe
        values, used = kept.values, self.settings.sized(1, 3, 8)
        fit = kept.fit
        for _ in range(used):
            left = self.left - beside - first * nfe
            count = min(MOST, self.references.traced, left // fit.cost())
            if count < 2 * FEWEST and fit.with_a and not self.fitted:  # fewer constants on more samples
                fit, values = self._open(fit.start, with_a=False), values[:-nfe]
                count = min(MOST, self.references.traced, left // fit.cost())
            while count >= FEWEST and count * fit.cost() + self._references(first + count) > left:
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
            self.fitted.append(Tried(f"from {fit.start.schedule}", fit, values, end, judge.score(end)))
            self.history.append((self.evaluations, judge.error(end)))
            yield f"{self.sampler.name}: error {loss:.4f}, held out {judge.error(end):.4f}"

    def _references(self, count: int) -> int:
        """Evaluations that are still to be spent until there are so many."""
        block, made = self.references.block, len(self.references.ends)
        return max(0, -(-count // block) - made) * block * self.references.evaluations

    def _beside(self) -> Iterator[str]:
        """Our own multistep solver with weights in closed form, on the samples there are."""
        judge, first, nfe = self._searched()[0], self.references.held_out, self.settings.nfe
        there = len(self.references.ends) * self.references.block - first
        count = min(SOME, there, self.references.traced, self.left // nfe - first)
        if count < FEWEST or self.target.flow or self.settings.nfe < 2:
            return
        samples, path = self.references.take(first, count), self.references.path(first, count)
        ask = self.target.evaluate or denoised_only
        stage = ClosedForm(self.model, samples, path, judge.scale, self.settings.batch, evaluate=ask)
        sigmas = schedules.make("time_uniform", nfe + 2, self.target.sigma_min, self.target.sigma_max)
        (shape,) = fitting((BESIDE,), samples.noise)
        table = stage.run(sigmas, True, shape).table
        form = Form(solver_of("amed_multistep"), table, True, LAGS)
        runner = Runner(self.model, form, in_batches(self.settings.batch, ask))
        self.rivals["AMED multistep, closed form"] = runner.end(
            form.vector(), judge.held_out.noise, judge.held_out.args
        )
        yield "AMED multistep beside it"

    def look(self) -> Look:
        images = {}
        if self.judge is not None:
            images["reference"] = self.judge.held_out.end
        if self.plain is None or self.judge is None:
            return Look(images=images)
        judge, kept, best = self.judge, self.plain, self.best
        images["plain"], plain = kept.end, judge.error(kept.end)
        error = math.nan
        if best is not None:
            images["fit"], error = best.end, judge.error(best.end)
        curve = tuple((n, e / max(plain, 1e-12)) for n, e in self.history)
        return Look(error, plain, f"{self.sampler.name} on {kept.name}", curve, images)

    def result(self) -> Result:
        judge, kept = self._searched()
        best, settings = self.best, self.settings
        improved = best is not None and best.score < kept.score
        used = best if best is not None and improved else kept
        outside = used.fit.build(used.values, judge.held_out.noise[:1])
        nfe, scale, name = used.fit.start.nfe, settings.guidance, self.sampler.name
        rows = [judge.row(f"{name} + AMED-Plugin", "its own", nfe, scale, used.end)]
        rows.append(judge.row(name, kept.name, nfe, scale, kept.end))
        for label, end in self.rivals.items():
            rows.append(
                judge.row(label, "as usually set" if "karras" in label else "its own", nfe, scale, end)
            )
        first, second = rows[0].as_dict(), rows[1].as_dict()
        metrics = {k: v for k, v in first.items() if k not in ("solver", "schedule")}
        metrics |= {"plain": name, "plain_schedule": kept.name}
        metrics |= {f"plain_{k}": second[k] for k in ("error", "rmse_ref", "fd_ref") if k in second}
        metrics |= {"noises": len(judge.held_out), "evaluations": self.evaluations}
        metrics |= judge.verdict(used.end)
        made = (
            f"fitted to {name} from outside, {used.name}"
            if improved
            else f"{name} on {kept.name}: no fit beat it"
        )
        how = f"{made}; {self.evaluations} evaluations, seed {settings.seed}"
        spec = self.target.spec(OUTSIDE, outside.sigmas, scale, of=name, calls=nfe, how=how, metrics=metrics)
        images = {"fit": used.end, "plain": kept.end, "reference": judge.held_out.end, **self.rivals}
        fitted = Fitted(spec, outside, outside.sigmas)
        return Result(fitted, improved, kept.fit.start, rows, list(self.history), images, self.evaluations)
