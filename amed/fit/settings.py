"""What is fitted, and how long."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..kdiffusion import ENTRIES
from .preview import Preview

PRESETS = {"quick": 2_500, "normal": 12_000, "thorough": 40_000}
SAMPLES = 16  # in an iteration of the polish
LARGE, HUGE = 8_000, 30_000  # evaluations from which references, searches and closed forms get more


def smallest_budget(nfe: int) -> int:
    """The least budget that allows references, a search, weights in closed form and a comparison."""
    return 900 + 220 * nfe


def budget_of(budget: str | int, nfe: int) -> int:
    """A preset's evaluations, raised to the least for this nfe; a number as it is. Raises ValueError."""
    if budget in PRESETS:
        return max(PRESETS[str(budget)], smallest_budget(nfe))
    try:
        return int(budget)
    except ValueError:
        raise ValueError(f"budget is {budget!r}: give one of {', '.join(PRESETS)}, or a number") from None


def numbers(text: str, least: int = 2, most: int = 100) -> tuple[int, ...]:
    """ "5, 7 9" as (5, 7, 9). Raises ValueError."""
    parts = [p for p in re.split(r"[,\s]+", text.strip()) if p]
    if not parts or not all(p.isdecimal() and len(p) < 9 and least <= int(p) <= most for p in parts):
        wanted = f"give one or several numbers of evaluations from {least} to {most}, e.g. 5, 7, 9"
        raise ValueError(f"nfe is {text!r}: {wanted}")
    return tuple(dict.fromkeys(int(p) for p in parts))


@dataclass(frozen=True)
class Settings:
    """One fit. nfe: evaluations from sigma_max to sigma_min, from 2 on. sampler: one of amed.SAMPLERS.
    budget: evaluations of the model, each counted once for each sample, everything included: references,
    search, fit and comparison. guidance: for the file; the target's model decides what it means. batch: most
    samples in one call of the model. passes: of the network for an image, under guidance; fewer than two an
    evaluation leave the unconditional half out of some of them. None: two an evaluation. Raises ValueError
    for what cannot be."""

    nfe: int
    sampler: str = "amed_multistep"
    budget: int = PRESETS["normal"]
    guidance: float = 1.0
    seed: int = 0
    batch: int = 16
    passes: int | None = None

    def __post_init__(self) -> None:
        if self.nfe < 2:
            raise ValueError(f"nfe is {self.nfe}: a calibration needs at least 2 evaluations a sample")
        if self.sampler not in ENTRIES:
            raise ValueError(f"unknown sampler {self.sampler!r}: choose one of {', '.join(ENTRIES)}")
        if self.budget < (least := smallest_budget(self.nfe)):
            raise ValueError(f"budget is {self.budget}: {self.nfe} evaluations need at least {least}")

        if self.passes is not None:
            if self.sampler != "amed_multistep" or self.guidance == 1:
                raise ValueError("passes: only amed_multistep under guidance can leave some of them out")
            if not self.nfe + 1 <= self.passes <= 2 * self.nfe:
                span = f"{self.nfe + 1} to {2 * self.nfe}"
                raise ValueError(
                    f"passes is {self.passes}: {self.nfe} evaluations take {span} under guidance"
                )

    @property
    def spared(self) -> int:
        """Evaluations that leave the unconditional half out."""
        return 0 if self.passes is None else 2 * self.nfe - self.passes

    @property
    def plain_nfe(self) -> int:
        """Evaluations of the plain solvers it is held against: as many passes."""
        return self.nfe if self.passes is None else self.passes // 2

    def sized(self, quick: int, normal: int, thorough: int) -> int:
        """By the budget."""
        return thorough if self.budget >= HUGE else normal if self.budget >= LARGE else quick

    @property
    def large(self) -> bool:
        return self.budget >= LARGE

    @property
    def held_out(self) -> int:
        """Samples that choose what is kept, and are compared on."""
        return self.sized(16, 64 if self.nfe < 7 else 40, 96)

    @property
    def traced(self) -> int:
        """Samples of which the whole reference trajectory is kept, for weights in closed form."""
        quick = 16 if self.budget <= 2_000 else 32 if self.nfe < 7 else 20
        return self.sized(quick, 48 if self.nfe < 7 else 32, 128)

    @property
    def reference(self) -> int:
        """Evaluations of a reference trajectory."""
        return self.sized(20, 24 if self.nfe < 7 else 32, 32)


@dataclass(frozen=True)
class Progress:
    """`stage`: reference, search, fit or compare; `text` for people; `evaluations` so far of `budget`;
    `held_out`: error of the best held-out state so far (nan before there is one); `nfe`: which fit of a
    job; `seconds`: how long the rest will take, by the speed so far (nan before the first evaluation);
    `preview()`: what there is to see, worked out when it is called."""

    stage: str
    text: str
    evaluations: int
    budget: int
    held_out: float = float("nan")
    nfe: int = 0
    seconds: float = float("nan")
    preview: Callable[[], Preview] = field(default=Preview, compare=False, repr=False)
