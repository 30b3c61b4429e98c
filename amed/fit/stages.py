"""The base class of the calibrations: counts evaluations, holds reference samples and reports progress."""

import math
from collections.abc import Callable, Generator, Iterator
from time import perf_counter
from typing import Any

from torch import Tensor

from ..loop import denoised_only
from .compare import Judge, Result
from .measures import Counter
from .parametrisation import Parametrisation, Runner
from .preview import BATCHED, Pace, Preview
from .samples import References, in_batches
from .settings import Progress, Settings
from .target import Target
from .variable_projection import VariableProjection


def references_for(target: Target, settings: Settings) -> References:
    """Return the References of a fit, which make its samples with converged end states.

    Fits with the same target and seed may share them."""
    return References(
        target, settings.held_out, settings.traced, settings.reference, settings.seed, settings.batch
    )


class Stages:
    """Base class of the calibrations, each the fit of one sampler at one number of evaluations.

    Args:
        target: the model, and a function that draws noise for it.
        settings: of this fit.
        references: samples with converged end states, shared with other fits; their number of held-out
            samples replaces that of `settings`. None: the fit makes its own.
        on_progress: called after every evaluation of the model; `run` yields less often, after each piece
            of work.
        small: evaluations that will be made in calls with few samples, for the estimate of the time left.
    """

    def __init__(self, target: Target, settings: Settings, references: References | None,
                 on_progress: Callable[[Progress], None], small: int):  # fmt: skip
        self.target, self.settings = target, settings
        self.model = Counter(target.model, self._evaluated)
        self.references = references or references_for(target, settings)
        self.reference_evaluations = 0  # spent on references by this fit
        self.history: list[tuple[int, float]] = []  # (evaluations, held-out error) of each fit
        self.on_progress, self.pace, self.clock = on_progress, Pace(), 0.0
        self.doing = "reference", "references"  # stage and text of the latest Progress
        self.small = small

    @property
    def evaluations(self) -> int:
        """Evaluations of the model so far, each sample of a call counted.

        The evaluations of a reference run that several fits share count for the fit that made it."""
        return self.model.rows + self.reference_evaluations

    @property
    def left(self) -> int:
        """Number of evaluations left of the budget."""
        return self.settings.budget - self.evaluations

    @property
    def ready(self) -> bool:
        """Whether there is a result already, so that `result` can be called."""
        raise NotImplementedError

    @property
    def score(self) -> float:
        """Held-out score of the best fit so far; nan before the first."""
        raise NotImplementedError

    def run(self) -> Iterator[Progress]:
        """Run all stages in order.

        Raises:
            NotFiniteError: the model returned NaN or infinity; the message names the sigma.
        """
        raise NotImplementedError

    def result(self) -> Result:
        """Return the best result so far.

        Raises:
            RuntimeError: there is none yet.
        """
        raise NotImplementedError

    def preview(self) -> Preview:
        """Return the errors and end states of the best fit and the best plain solver so far."""
        raise NotImplementedError

    def _preview(self, judge: Judge, solver: str, plain_end: Tensor, fit_end: Tensor | None) -> Preview:
        """Return what a user sees of a running fit: errors and images of the best fit and of the best solver
        without fitted constants.

        Args:
            solver: name of that solver and its schedule, e.g. "iPNDM-2, karras".
            plain_end, fit_end: end states of the two on the held-out samples."""
        error, best = math.nan if fit_end is None else judge.error(fit_end), judge.error(plain_end)
        images = {"reference": judge.held_out.end, "plain": plain_end}
        if fit_end is not None:
            images["fit"] = fit_end
        curve = tuple((n, e / max(best, 1e-12)) for n, e in self.history)
        return Preview(error, best, solver, curve, images)

    def _projection(self, judge: Judge, count: int) -> VariableProjection:
        """Return a VariableProjection, which fits a solver's weights by least squares, for some samples.

        They are the `count` samples after the held-out ones, and must be made already."""
        first, evaluate = self.references.held_out, self.target.evaluate or denoised_only
        samples, path = self.references.take(first, count), self.references.path(first, count)
        return VariableProjection(
            self.model, samples, path, judge.scale, self.settings.batch, evaluate=evaluate
        )

    def _held_out_end(self, judge: Judge, parametrisation: Parametrisation, values: Tensor) -> Tensor:
        """Run the solver with the constants `values` on the held-out samples; return its end states."""
        evaluate = in_batches(self.settings.batch, self.target.evaluate or denoised_only)
        runner = Runner(self.model, parametrisation, evaluate)
        return runner.end(values, judge.held_out.noise, judge.held_out.args)

    def close(self) -> None:
        """Drop the callbacks: they form a reference cycle that keeps the images in memory."""
        self.model.on_call = self.references.model.on_call = lambda rows: None

    def _report(
        self, stage: str, texts: Generator[str, None, Any] | Iterator[str]
    ) -> Generator[Progress, None, Any]:
        """Run a stage: yield its lines of text as Progress, and return the stage's result."""
        self.doing = stage, self.doing[1]
        while True:
            self.references.model.on_call = self._made  # this fit pays for references made from here on
            try:
                text = next(texts)
            except StopIteration as end:
                return end.value
            yield self._progress(stage, text)

    def _progress(self, stage: str, text: str) -> Progress:
        """Return a Progress with this stage and text, and the current counts."""
        self.doing = stage, text
        budget, nfe = self.settings.budget, self.settings.nfe
        seconds = self.pace.left(max(self.left, 0), self.small)
        spent = min(self.evaluations, budget)
        return Progress(stage, text, spent, budget, self.score, nfe, seconds, self.preview)

    def _made(self, rows: int) -> None:
        """Count an evaluation of `rows` samples in a reference run, and report progress."""
        self.reference_evaluations += rows
        self._evaluated(rows)

    def _evaluated(self, rows: int) -> None:
        """Report progress after an evaluation of `rows` samples."""
        now = perf_counter()
        self.pace.called(rows, now - self.clock)
        self.clock = now
        if self.doing[0] == "search" and not self.ready and rows < BATCHED:
            self.small = max(0, self.small - rows)
        self.on_progress(self._progress(*self.doing))
