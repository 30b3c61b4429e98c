"""What is fitted, and how long."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..kdiffusion import ENTRIES
from .look import Look

PRESETS = {"quick": 2_500, "normal": 12_000, "thorough": 40_000}
CLOSED = 32  # samples of which the whole reference trajectory is kept, for weights in closed form
SAMPLES = 16  # in an iteration
LARGE = 8_000  # evaluations from which references, searches and closed forms get more


def smallest(nfe: int) -> int:
    """The least budget that allows references, a search, weights in closed form and a comparison."""
    return 900 + 220 * nfe


def budget_of(budget: str | int, nfe: int) -> int:
    """A preset's evaluations, raised to the least for this nfe; a number as it is. Raises ValueError."""
    if budget in PRESETS:
        return max(PRESETS[str(budget)], smallest(nfe))
    try:
        return int(budget)
    except ValueError:
        raise ValueError(f"budget is {budget!r}: give one of {', '.join(PRESETS)}, or a number") from None


def numbers(text: str) -> tuple[int, ...]:
    """ "5, 7 9" as (5, 7, 9). Raises ValueError."""
    parts = [p for p in re.split(r"[,\s]+", text.strip()) if p]
    if not parts or not all(p.isdigit() and 2 <= int(p) <= 100 for p in parts):
        wanted = "give one or several numbers of evaluations from 2 to 100, as 5, 7, 9"
        raise ValueError(f"nfe is {text!r}: {wanted}")
    return tuple(dict.fromkeys(int(p) for p in parts))


@dataclass(frozen=True)
class Settings:
    """One fit. nfe: evaluations from sigma_max to sigma_min, from 2 on. sampler: one of amed.SAMPLERS.
    budget: evaluations of the model, each counted once for each sample, everything included: references,
    search, fit and comparison. guidance: for the file; the target's model decides what it means. batch: most
    samples in one call of the model. Raises ValueError for what cannot be."""

    nfe: int
    sampler: str = "amed_multistep"
    budget: int = PRESETS["normal"]
    guidance: float = 1.0
    seed: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        if self.nfe < 2:
            raise ValueError(f"nfe is {self.nfe}: a calibration needs at least 2 evaluations a sample")
        if self.sampler not in ENTRIES:
            raise ValueError(f"unknown sampler {self.sampler!r}: choose one of {', '.join(ENTRIES)}")
        if self.budget < (least := smallest(self.nfe)):
            raise ValueError(f"budget is {self.budget}: {self.nfe} evaluations need at least {least}")

    @property
    def large(self) -> bool:
        return self.budget >= LARGE

    @property
    def held_out(self) -> int:
        """Samples that choose what is kept, and are compared on."""
        return max(16, min(64, self.budget // 400))

    @property
    def reference(self) -> int:
        """Evaluations of a reference trajectory."""
        return 32 if self.large else 24


@dataclass(frozen=True)
class Progress:
    """`stage`: reference, search, fit or compare; `text` for people; `evaluations` so far of `budget`;
    `held_out`: error of the best held-out state so far (nan before there is one); `nfe`: which fit of a
    job; `seconds`: how long the rest will take, by the speed so far (nan before the first evaluation);
    `look()`: what there is to see, worked out when it is called."""

    stage: str
    text: str
    evaluations: int
    budget: int
    held_out: float = float("nan")
    nfe: int = 0
    seconds: float = float("nan")
    look: Callable[[], Look] = field(default=Look, compare=False, repr=False)
