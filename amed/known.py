"""The plain solvers that run where nothing was fitted.

For the demo model of emoji, DEMO holds the best one of `make bench` (docs/results.json) for each guidance
scale and number of evaluations; AVATARS holds it for that of avatars. For other models `fallback` is iPNDM of
second order, uniform in the model's time, without an analytic first step. In the bench it is close to the
best of eleven solvers at all settings. It stays accurate under guidance, where third order fails (guidance 4,
5 evaluations: error 0.17, third order 0.51)."""

import math
from dataclasses import dataclass

from torch import Tensor

from . import schedules
from .recipes import Solver

GUIDED = 2**0.5  # lower guidance scales are closer to 1 than to 2, by ratio
GAIN = 0.83  # error of a calibration relative to DEMO's solvers: the median of the bench's 24 settings


@dataclass(frozen=True)
class Known:
    """A solver to run without fitted constants, and its schedule."""

    solver: Solver
    kind: str = "time_uniform"  # of schedules.KINDS
    rho: float = 1.0  # the schedule's exponent
    afs: bool = True  # whether the first step is analytic

    def count(self, nfe: int) -> int:
        """Return the number of noise levels for `nfe` evaluations: nfe + 1, or nfe + 2 with an analytic first
        step, which needs no evaluation."""
        return nfe + 1 + self.afs

    def sigmas(self, nfe: int, low: float, high: float) -> Tensor:
        """Return the noise levels at which this solver runs for `nfe` evaluations, from `high` to `low`,
        float64: nfe + 1 levels, or nfe + 2 with an analytic first step."""
        return schedules.make(self.kind, self.count(nfe), low, high, self.rho)


FALLBACK = "iPNDM-2"  # the name of `fallback()` in texts
IPNDM_2, IPNDM_3 = Solver("ipndm", 2), Solver("ipndm", 3)
BH1, BH2 = Solver("unipc", 3), Solver("unipc", 3, variant="bh2")
UNIFORM, EARLY = Known(IPNDM_2), Known(IPNDM_2, "polynomial", 3.0)
DEMO: dict[float, dict[int, Known]] = {  # [guidance scale][number of evaluations]
    1.0: {
        3: EARLY,
        4: Known(BH2),
        5: UNIFORM,
        6: Known(BH1),
        7: Known(BH1),
        8: Known(BH1, afs=False),
        9: Known(IPNDM_3, afs=False),
        10: Known(IPNDM_3, "polynomial", 7.0, afs=False),
    },
    2.0: {
        3: EARLY,
        4: UNIFORM,
        5: UNIFORM,
        6: Known(BH1),
        7: Known(BH1),
        8: Known(BH1, afs=False),
        9: UNIFORM,
        10: Known(IPNDM_3, afs=False),
    },
    4.0: {
        3: Known(Solver("euler"), "polynomial", 3.0),
        4: Known(BH2, afs=False),
        **dict.fromkeys(range(5, 11), UNIFORM),
        8: Known(Solver("deis", 2)),
    },
}
EVEN, SHIFTED = Known(IPNDM_2, "polynomial", 1.0, afs=False), Known(IPNDM_2, "shift", 1.5, afs=False)
EULER = Known(Solver("euler"), "shift", 2.0, afs=False)
AVATARS: dict[float, dict[int, Known]] = {  # as DEMO, for avatars32: what its calibrations found
    1.0: {4: SHIFTED, 5: SHIFTED, 6: Known(IPNDM_3, "shift", 3.0, afs=False), 8: EVEN, 10: EVEN},
    4.0: {4: EULER, 5: EULER, 6: SHIFTED, 8: SHIFTED, 10: SHIFTED},
}
FAMILIES = {"emoji32": DEMO, "avatars32": AVATARS}


def best(family: str, nfe: int, guidance: float) -> Known | None:
    """Return the best solver without fitted constants for a model family, `nfe` evaluations and a guidance
    scale, according to this project's benchmark (at its nearest guidance scale); None if the benchmark has no
    result."""
    by_guidance = FAMILIES.get(family, {})
    nearest = min(by_guidance, key=lambda g: abs(math.log(g / max(guidance, 1e-3))), default=0.0)
    return by_guidance.get(nearest, {}).get(nfe)


def on_list(guidance: float) -> Solver:
    """Return the solver that runs, without fitted constants, on noise levels that the user chose.

    It is iPNDM of third order without guidance, and of second order with guidance. On the demo model its mean
    error is at most that of ComfyUI's iPNDM (fourth order), on each of the schedules amed, karras, normal and
    simple with 3 to 10 steps."""
    return IPNDM_3 if guidance < GUIDED else fallback()


def fallback(solver: Solver | None = None) -> Solver:
    """Return the solver to run without a predictor (fitted constants): `solver` itself, or iPNDM of second
    order if it is None or "multistep", which cannot run without a predictor."""
    return solver if solver is not None and solver.has_recipe else IPNDM_2
