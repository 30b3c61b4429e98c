"""The settings of a fit, and the progress it reports."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..kdiffusion import ENTRIES
from .preview import Preview

PRESETS = {"quick": 2_500, "normal": 12_000, "thorough": 40_000}  # evaluations of the model
LARGE, HUGE = 8_000, 30_000  # budgets from which references, searches and closed forms get more samples
ITERATION_SAMPLES = 16  # most samples of one iteration of the joint fit


def smallest_budget(nfe: int) -> int:
    """Return the least budget (evaluations of the model) that a calibration at `nfe` evaluations takes."""
    return 900 + 220 * nfe


def budget_of(budget: str | int, nfe: int) -> int:
    """Return a budget in evaluations of the model.

    Args:
        budget: a number of evaluations, or a name of PRESETS, whose budget is raised to the least for `nfe`.
        nfe: evaluations per sample.

    Raises:
        ValueError: neither a number nor a name of PRESETS.
    """
    if budget in PRESETS:
        return max(PRESETS[str(budget)], smallest_budget(nfe))
    try:
        return int(budget)
    except ValueError:
        raise ValueError(
            f"budget is {budget!r}: give one of {', '.join(PRESETS)}, or a number of evaluations"
        ) from None


def numbers(text: str, least: int = 2, most: int = 100) -> tuple[int, ...]:
    """Return the numbers of evaluations that a user wrote, e.g. "5, 7 9" -> (5, 7, 9); each once.

    Raises:
        ValueError: no number, another word, or a number outside `least` to `most`.
    """
    parts = [p for p in re.split(r"[,\s]+", text.strip()) if p]
    if not parts or not all(p.isdecimal() and len(p) < 9 and least <= int(p) <= most for p in parts):
        raise ValueError(
            f"nfe is {text!r}: give one or several numbers of evaluations from {least} to {most}, "
            "e.g. 5, 7, 9"
        )
    return tuple(dict.fromkeys(int(p) for p in parts))


@dataclass(frozen=True)
class Settings:
    """Settings of one fit: one sampler at one number of evaluations.

    Raises:
        ValueError: a field is out of range, or `passes` (network passes per sample) is set without
            guidance or for a sampler that cannot skip network passes.
    """

    nfe: int  # evaluations per sample, from sigma_max to sigma_min; at least 2
    sampler: str = "amed_multistep"  # a name of amed.SAMPLERS
    # Evaluations of the model for the whole fit, each sample of a call counted: reference samples, the search
    # of plain solvers, the fit, and the comparison with plain solvers.
    budget: int = PRESETS["normal"]
    guidance: float = 1.0  # guidance scale (cfg) written to the file; the target's model applies it
    seed: int = 0  # of the noise; the same seed gives the same file
    batch: int = 16  # most samples in one call of the model
    # Network passes per sample under guidance, from nfe + 1 to 2 nfe. Fewer than 2 nfe: the last evaluations
    # skip the unconditional half. None: two passes per evaluation.
    passes: int | None = None

    def __post_init__(self) -> None:
        if self.nfe < 2:
            raise ValueError(f"nfe is {self.nfe}: a calibration needs at least 2 evaluations per sample")
        if self.sampler not in ENTRIES:
            raise ValueError(f"unknown sampler {self.sampler!r}: choose one of {', '.join(ENTRIES)}")
        least = smallest_budget(self.nfe)
        if self.budget < least:
            raise ValueError(
                f"budget is {self.budget} evaluations: set it to {least} or more to calibrate nfe {self.nfe}"
            )
        if self.passes is None:
            return
        if self.sampler != "amed_multistep" or self.guidance == 1:
            raise ValueError(
                "passes: only amed_multistep under guidance (a scale other than 1) can skip network passes: "
                "leave passes at its default, or change the sampler or the scale"
            )
        if not self.nfe + 1 <= self.passes <= 2 * self.nfe:
            raise ValueError(
                f"passes is {self.passes}: set it to {self.nfe + 1} to {2 * self.nfe}, the network passes "
                f"that {self.nfe} evaluations can take under guidance"
            )

    @property
    def spared(self) -> int:
        """Number of evaluations under guidance that skip the unconditional network pass."""
        return 0 if self.passes is None else 2 * self.nfe - self.passes

    @property
    def plain_nfe(self) -> int:
        """Evaluations of the unfitted solvers to compare with.

        Fewer than `nfe` if the fitted sampler skips network passes of guidance: the unfitted solvers take
        two in each evaluation, and get no more passes than it."""
        return self.nfe if self.passes is None else self.passes // 2

    def by_budget(self, quick: int, normal: int, thorough: int) -> int:
        """Return one of three values by the budget in evaluations of the model.

        `quick` below 8,000 (LARGE), `normal` below 30,000 (HUGE), `thorough` from there on."""
        return thorough if self.budget >= HUGE else normal if self.budget >= LARGE else quick

    @property
    def large(self) -> bool:
        """Whether the budget is 8,000 evaluations of the model (LARGE) or more."""
        return self.budget >= LARGE

    @property
    def held_out(self) -> int:
        """Number of held-out samples, on which fits and plain solvers are compared and the best is chosen."""
        return self.by_budget(16, 64 if self.nfe < 7 else 40, 96)

    @property
    def traced(self) -> int:
        """Number of samples whose whole reference trajectory is stored, to fit weights by least squares."""
        quick = 16 if self.budget <= 2_000 else 32 if self.nfe < 7 else 20
        return self.by_budget(quick, 48 if self.nfe < 7 else 32, 128)

    @property
    def reference(self) -> int:
        """Evaluations of a reference trajectory."""
        return self.by_budget(20, 24 if self.nfe < 7 else 32, 32)


@dataclass(frozen=True)
class Progress:
    """What a running fit reports after each piece of work."""

    stage: str  # reference, search, fit or compare
    text: str  # the current work, for people
    evaluations: int  # of the model so far, at most `budget`
    budget: int  # evaluations in all
    held_out: float = float("nan")  # error of the best fit so far on held-out samples; nan before the first
    nfe: int = 0  # which fit of a job: its evaluations per sample
    seconds: float = float("nan")  # estimated time left; nan before the first evaluation
    # Returns the end states and errors so far; computed when called.
    preview: Callable[[], Preview] = field(default=Preview, compare=False, repr=False)
