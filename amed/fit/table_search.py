"""Which tables are fitted: rounds of starts, times refined on few samples, shapes of weights on all of them.

No one start, sample set or shape is the best everywhere: two fits of the same kind differ by a tenth, and a
table of bands and offsets is far ahead without guidance and may lose under it. So several are made, and noise
that none of them saw chooses."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import combinations

from torch import Tensor

from .plain_solvers import Setting
from .search import USUAL
from .settings import Settings
from .variable_projection import Candidate, Shape, VariableProjection

SHAPES = (  # starts are compared, and times refined, with the first
    Shape("bands", True, 1e-4),
    Shape("bands", True, 1e-6),
    Shape("bands", True, 1e-2),
    Shape("", False, 1e-3),
)
GUIDED = (Shape("bands", True, 3e-2), Shape("bands", True, 3e-1), Shape("", False, 1e-1))
HALVES = Shape("halves", False, 1e-3)  # of patterns
CLEARLY = 0.7  # as near to the reference must another start be as the usual one
WIDE = (0.5, 0.25)  # of the iterations in a round
FEWEST = 12  # samples in each of them, where there is to be more than one
REACH = 3  # beyond as many steps as are spared, those at the end that may be among them
PATTERNS = 3  # that are refined

Judged = Generator[str | Candidate, float | None, None]


@dataclass
class TableSearch:
    """`run()` yields what it is doing, and tables; it is sent the held-out score of each table. left: how
    many evaluations there are still."""

    stage: VariableProjection
    settings: Settings
    starts: list[Setting]
    left: Callable[[], int]
    flow: bool = False  # where no plain solver begins analytically, a table with its offset may

    def some(self, count: int, round: int = 0) -> VariableProjection:
        """The stage on `count` samples, others in each round."""
        first = round * count % max(len(self.stage.samples) - count + 1, 1)
        rows = slice(first, first + count)
        return replace(self.stage, samples=self.stage.samples.cut(rows), path=self.stage.path.cut(rows))

    @property
    def judging(self) -> int:
        """Evaluations of a table on all samples, and of its judgement."""
        return (len(self.stage.samples) + self.settings.held_out) * self.settings.nfe

    def run(self) -> Judged:
        settings, spared = self.settings, self.settings.spared
        guided = GUIDED if settings.large else GUIDED[::-1]
        shapes = fitting(SHAPES if settings.guidance == 1 else guided, self.stage.samples.noise)
        few = self.some(settings.sized(8, 16, 32))
        firsts = self.starts[:2] if self.flow else []
        kinds = [*(replace(s, afs=True) for s in firsts), *self.starts]
        settled = [replace(s, num_steps=settings.nfe + 1 + s.afs) for s in kinds]
        if not settled:
            return
        starts = yield from few.schedules(settled, shapes[0])
        starts.sort(key=lambda c: c.loss * (CLEARLY if c.name.endswith(USUAL) else 1.0))
        if spared:
            starts = yield from self.patterns(few, starts[0])
            shapes = tuple(replace(s, parts=halved(s.parts)) for s in shapes)
        scores: dict[Shape, float] = {}
        for round in range(settings.sized(1, 3, 8)):
            start, reserve = starts[round % len(starts)], self.judging * settings.sized(1, 2, 3)
            most = (self.left() - reserve) // start.cost
            widths = WIDE if most >= FEWEST * len(WIDE) else WIDE[:1]
            afford = (self.left() - reserve) // (len(widths) * start.cost + settings.nfe)
            count = min(afford, settings.sized(16, 32, 64))
            if count < 1:
                return
            few, own = self.some(count, round), replace(shapes[0], alone=start.run.shape.alone)
            start = few.candidate(start.run.sigmas, start.afs, own, start.name)
            for wide in widths:
                start = yield from few.refine(start, wide)
            if round and not start.refined:
                return
            ordered = sorted(shapes, key=lambda s: scores.get(s, 0.0))
            for one in ordered[: len(ordered) if not round else 2]:
                if self.judging > self.left():
                    return
                own = replace(one, alone=start.run.shape.alone)
                name = f"{start.name}, {own.text}"
                score = yield self.stage.candidate(start.run.sigmas, start.afs, own, name)
                scores[one] = min(scores.get(one, float("inf")), score or 0.0)

    def patterns(self, few: VariableProjection, start: Candidate) -> Generator[str, None, list[Candidate]]:
        """Which steps leave the unconditional half out, best first: of all ways to spare so many among the
        last ones. (Among the first they cost far more than they save.)"""
        spared, steps = self.settings.spared, len(start.run.sigmas) - 1
        last = range(max(1 + start.afs, steps - spared - REACH), steps)
        tried = []
        for alone in combinations(last, spared):
            name = f"{start.name}, without the negative half at {', '.join(str(n + 1) for n in alone)}"
            tried.append(few.candidate(start.run.sigmas, start.afs, replace(HALVES, alone=alone), name))
            yield f"{name}: {tried[-1].loss:.4f}"
        return sorted(tried, key=lambda c: c.loss)[:PATTERNS]


def fitting(shapes: tuple[Shape, ...], x: Tensor) -> tuple[Shape, ...]:
    """Shapes for samples like `x` `[n, ...]`: sound and nested latents, `[n, C, L]`, have no bands of spatial
    frequency."""
    flat = tuple(replace(shape, parts=shape.parts.replace("bands", "")) for shape in shapes)
    return shapes if x.ndim > 3 else tuple(dict.fromkeys(flat))


def halved(parts: str) -> str:
    """The same parts of guidance's halves."""
    return "+".join(["halves", parts] if parts else ["halves"])
