"""The search for a table: initial schedules, times refined on a few samples, and weights of several shapes.

No single start, set of samples or shape is the best everywhere: two fits of the same kind differ by a tenth,
and a table with bands and offsets is far better without guidance but may be worse under it. So several tables
are fitted, and held-out samples decide."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from .plain_solvers import Setting
from .search import USUAL
from .settings import Settings
from .variable_projection import Candidate, Run, Shape, VariableProjection

SHAPES = (  # without guidance; starts are compared, and times refined, with the first
    Shape("bands", True, 1e-4),
    Shape("bands", True, 1e-6),
    Shape("bands", True, 1e-2),
    Shape("", False, 1e-3),
)
# Under guidance; in reverse order for small budgets.
GUIDED = (Shape("bands", True, 3e-2), Shape("bands", True, 3e-1), Shape("", False, 1e-1))
HALVES = Shape("halves", False, 1e-3)  # for comparing patterns of spared passes
CLEARLY = 0.7  # a start replaces the usual one (USUAL) if its loss is below this share of it
WIDE = (0.5, 0.25)  # widths of the refinements in a round, see VariableProjection.refine
FEWEST = 12  # samples of a refinement, for two of them to be worth it
REACH = 3  # spared passes are among the last `spared + REACH` steps
PATTERNS = 3  # patterns of spared passes that are refined

Judged = Generator[str | Candidate, float | None, None]


@dataclass
class TableSearch:
    """The search for a multistep solver's noise levels and weights, in several rounds."""

    stage: VariableProjection  # with all samples
    settings: Settings
    starts: list[Setting]  # settings whose schedules are tried
    left: Callable[[], int]  # returns the evaluations left of the budget
    flow: bool = False  # flow model: no plain solver starts analytically, but a table with its offset may

    def subset(self, count: int, round: int = 0) -> VariableProjection:
        """Return the fit of the weights, limited to `count` samples; each round of the search gets others."""
        first = round * count % max(len(self.stage.samples) - count + 1, 1)
        rows = slice(first, first + count)
        return replace(self.stage, samples=self.stage.samples.cut(rows), path=self.stage.path.cut(rows))

    @property
    def judging(self) -> int:
        """Evaluations that it takes to fit weights to all samples, and to score them on the held-out ones."""
        return (len(self.stage.samples) + self.settings.held_out) * self.settings.nfe

    def run(self) -> Judged:
        """Run the search; yields lines of progress (str) and fitted multistep solvers (Candidate).

        The caller must send the held-out score of each Candidate back into the generator."""
        settings, spared = self.settings, self.settings.spared
        guided = GUIDED if settings.large else GUIDED[::-1]
        shapes = fitting(SHAPES if settings.guidance == 1 else guided, self.stage.samples.noise)
        few = self.subset(settings.by_budget(8, 16, 32))
        firsts = self.starts[:2] if self.flow else []
        kinds = [*(replace(s, afs=True) for s in firsts), *self.starts]
        schedules = [replace(s, num_steps=settings.nfe + 1 + s.afs) for s in kinds]
        if not schedules:
            return
        starts = yield from few.schedules(schedules, shapes[0])
        starts.sort(key=lambda c: c.loss * (CLEARLY if c.name.endswith(USUAL) else 1.0))
        if spared:
            starts = yield from self.patterns(few, starts[0])
            shapes = tuple(replace(s, parts=halved(s.parts)) for s in shapes)
        scores: dict[Shape, float] = {}
        fitted: dict[tuple[Shape, bool], list[Candidate]] = {}  # by shape and analytic first step
        for round in range(settings.by_budget(1, 3, 8)):
            start, reserve = starts[round % len(starts)], self.judging * settings.by_budget(1, 2, 3)
            most = (self.left() - reserve) // start.cost
            widths = WIDE if most >= FEWEST * len(WIDE) else WIDE[:1]
            afford = (self.left() - reserve) // (len(widths) * start.cost + settings.nfe)
            count = min(afford, settings.by_budget(16, 32, 64))
            if count < 1:
                return
            few, shape = self.subset(count, round), replace(shapes[0], spared=start.run.shape.spared)
            start = few.candidate(start.run.sigmas, start.afs, shape, start.name)
            for wide in widths:
                start = yield from few.refine(start, wide)
            if round and not start.refined:
                return
            ordered = sorted(shapes, key=lambda s: scores.get(s, 0.0))
            for each in ordered[: len(ordered) if not round else 2]:
                if self.judging > self.left():
                    return
                shape = replace(each, spared=start.run.shape.spared)
                name = f"{start.name}, {shape.text}"
                candidate = self.stage.candidate(start.run.sigmas, start.afs, shape, name)
                fitted.setdefault((shape, start.afs), []).append(candidate)
                score = yield candidate
                scores[each] = min(scores.get(each, float("inf")), score or 0.0)
            several = [c for c in fitted.values() if len(c) > 1 and c[-1].name.startswith(start.name)]
            for candidates in several if settings.guidance != 1 else ():
                if settings.held_out * settings.nfe > self.left():
                    return
                yield mean(candidates)

    def patterns(self, few: VariableProjection, start: Candidate) -> Generator[str, None, list[Candidate]]:
        """Try which steps can best skip the unconditional network pass of guidance.

        Only late steps are tried, because a skipped pass in an early one raises the error far too much.
        Yields lines of progress; returns the multistep solvers with the best choices, best first."""
        spared, steps = self.settings.spared, len(start.run.sigmas) - 1
        last = range(max(1 + start.afs, steps - spared - REACH), steps)
        tried = []
        for rows in combinations(last, spared):
            name = f"{start.name}, without the negative half at {', '.join(str(n + 1) for n in rows)}"
            tried.append(few.candidate(start.run.sigmas, start.afs, replace(HALVES, spared=rows), name))
            yield f"{name}: {tried[-1].loss:.4f}"
        return sorted(tried, key=lambda c: c.loss)[:PATTERNS]


def mean(candidates: list[Candidate]) -> Candidate:
    """Return the mean of tables of one shape: of the log noise levels, the weights and the offsets.

    Fits on few samples scatter; under guidance their mean is often better than each of them."""
    runs = [candidate.run for candidate in candidates]
    sigmas = torch.stack([run.sigmas.log() for run in runs]).mean(dim=0).exp()
    sigmas[[0, -1]] = runs[0].sigmas[[0, -1]]
    weights = torch.stack([run.weights for run in runs]).mean(dim=0)
    offsets = [run.offset for run in runs if run.offset is not None]
    offset = torch.stack(offsets).mean(dim=0) if offsets else None
    name = f"mean of {len(runs)} tables, {runs[0].shape.text}"
    return Candidate(float("nan"), name, Run(sigmas, weights, [], runs[0].shape, offset), candidates[0].afs)


def fitting(shapes: tuple[Shape, ...], x: Tensor) -> tuple[Shape, ...]:
    """Return `shapes`, the settings of fits of weights, adapted to latents of the shape of `x`.

    Only latents of images can have weights for each band of spatial frequency. For those of sound and
    nested ones, `[n, C, L]`, this split is removed."""
    flat = tuple(replace(shape, parts=shape.parts.replace("bands", "")) for shape in shapes)
    return shapes if x.ndim > 3 else tuple(dict.fromkeys(flat))


def halved(parts: str) -> str:
    """Return the name of a split of slopes with a split by guidance added: "bands" -> "halves+bands".

    Bands are those of spatial frequency, halves the shares of the conditional and unconditional result."""
    return "+".join(["halves", parts] if parts else ["halves"])
