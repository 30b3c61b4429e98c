"""What every fit does beside fitting: it counts evaluations, shares references, and says how far it is."""

import math
from collections.abc import Callable, Generator, Iterator
from time import perf_counter
from typing import Any

from torch import Tensor

from ..loop import plain
from .compare import Judge, Result
from .measures import Counter
from .parametrisation import Parametrisation, Runner
from .preview import WHOLE, Pace, Preview
from .samples import References, in_batches
from .settings import Progress, Settings
from .target import Target
from .variable_projection import VariableProjection


def references_for(target: Target, settings: Settings) -> References:
    """What a calibration with these settings fits to; others of the same target and seed may share it."""
    return References(
        target, settings.held_out, settings.traced, settings.reference, settings.seed, settings.batch
    )


class Stages:
    """One fit at one number of evaluations, stage by stage.

    references: shared with other fits, whose number of held-out samples it then has. heard: called with the
    Progress after every evaluation of the model, where `run` yields it after each step of its work. small:
    evaluations in small calls that are still to come."""

    def __init__(self, target: Target, settings: Settings, references: References | None,
                 heard: Callable[[Progress], None], small: int):  # fmt: skip
        self.target, self.settings = target, settings
        self.model = Counter(target.model, self._evaluated)
        self.references = references or references_for(target, settings)
        self.made = 0  # evaluations spent on references
        self.history: list[tuple[int, float]] = []  # (evaluations, held-out error)
        self.heard, self.pace, self.clock = heard, Pace(), 0.0
        self.doing = "reference", "references"
        self.small = small

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
        raise NotImplementedError

    @property
    def score(self) -> float:
        """Held-out score of the best so far, nan before there is one."""
        raise NotImplementedError

    def run(self) -> Iterator[Progress]:
        """Everything, in order. Raises NotFiniteError if the model returns NaN, naming the sigma."""
        raise NotImplementedError

    def result(self) -> Result:
        """The best so far. Raises RuntimeError before there is one."""
        raise NotImplementedError

    def preview(self) -> Preview:
        """What there is to see so far."""
        raise NotImplementedError

    def _preview(self, judge: Judge, solver: str, plain_end: Tensor, fit_end: Tensor | None) -> Preview:
        """Return a preview of the plain solver and the best fit, on the held-out samples."""
        error, best = math.nan if fit_end is None else judge.error(fit_end), judge.error(plain_end)
        images = {"reference": judge.held_out.end, "plain": plain_end}
        if fit_end is not None:
            images["fit"] = fit_end
        curve = tuple((n, e / max(best, 1e-12)) for n, e in self.history)
        return Preview(error, best, solver, curve, images)

    def _projection(self, judge: Judge, count: int) -> VariableProjection:
        """Variable projection on the first `count` samples after the held-out ones; they must be made."""
        first, ask = self.references.held_out, self.target.evaluate or plain
        samples, path = self.references.take(first, count), self.references.path(first, count)
        return VariableProjection(self.model, samples, path, judge.scale, self.settings.batch, evaluate=ask)

    def _held_out(self, judge: Judge, parametrisation: Parametrisation, values: Tensor) -> Tensor:
        """End states on the held-out samples with the constants `values`."""
        evaluate = in_batches(self.settings.batch, self.target.evaluate or plain)
        runner = Runner(self.model, parametrisation, evaluate)
        return runner.end(values, judge.held_out.noise, judge.held_out.args)

    def close(self) -> None:
        """Let go of whoever hears of evaluations: a circle, in which the images would stay until Python looks
        for circles."""
        self.model.heard = self.references.model.heard = lambda rows: None

    def _told(
        self, stage: str, texts: Generator[str, None, Any] | Iterator[str]
    ) -> Generator[Progress, None, Any]:
        """A stage's texts as Progress; what the stage returns."""
        self.doing = stage, self.doing[1]
        while True:
            self.references.model.heard = self._made  # whoever asks for references now pays for them
            try:
                text = next(texts)
            except StopIteration as end:
                return end.value
            yield self._progress(stage, text)

    def _progress(self, stage: str, text: str) -> Progress:
        self.doing = stage, text
        budget, nfe = self.settings.budget, self.settings.nfe
        seconds = self.pace.left(max(self.left, 0), self.small)
        spent = min(self.evaluations, budget)
        return Progress(stage, text, spent, budget, self.score, nfe, seconds, self.preview)

    def _made(self, rows: int) -> None:
        self.made += rows
        self._evaluated(rows)

    def _evaluated(self, rows: int) -> None:
        """After each evaluation of the model."""
        now = perf_counter()
        self.pace.called(rows, now - self.clock)
        self.clock = now
        if self.doing[0] == "search" and not self.ready:
            self.small = max(0, self.small - rows) if rows < WHOLE else self.small
        self.heard(self._progress(*self.doing))
