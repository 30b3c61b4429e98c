"""The best plain solver known for a model, at so many evaluations and such a guidance scale: what runs where
nothing was fitted.

For the demo model it is read off `make bench` (docs/results.json), of what this engine runs itself. For any
other it is iPNDM of second order, uniform in the model's own time, every step evaluated: in the bench near
the best of eleven everywhere, and it stays on its feet under guidance, where the third order falls apart (at
guidance 4 and 5 evaluations error .51 beside .17)."""

import math
from dataclasses import dataclass

from torch import Tensor

from . import schedules
from .recipes import Solver

GUIDED = 2**0.5  # guidance scales below are nearer to 1 than to 2, by ratio
GAIN = 0.83  # a calibration's error over that of these: the median of the bench's 24 combinations


@dataclass(frozen=True)
class Known:
    """A plain solver, a schedule of ours and its rho, and whether the first step is analytic."""

    solver: Solver
    kind: str = "time_uniform"
    rho: float = 1.0
    afs: bool = True

    def count(self, nfe: int) -> int:
        """How many noise levels `nfe` evaluations are."""
        return nfe + 1 + self.afs

    def sigmas(self, nfe: int, low: float, high: float) -> Tensor:
        """Those, float64, from `high` to `low`."""
        return schedules.make(self.kind, self.count(nfe), low, high, self.rho)


FALLBACK = "iPNDM-2"  # the name of `fallback()` in texts
IPNDM_2, IPNDM_3 = Solver("ipndm", 2), Solver("ipndm", 3)
BH1, BH2 = Solver("unipc", 3), Solver("unipc", 3, variant="bh2")
UNIFORM, EARLY = Known(IPNDM_2), Known(IPNDM_2, "polynomial", 3.0)
DEMO: dict[float, dict[int, Known]] = {  # guidance, NFE
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
FAMILIES = {"emoji32": DEMO}


def best(family: str, nfe: int, guidance: float) -> Known | None:
    """Of a family whose solvers were measured, at the nearest guidance scale; None of any other, and of a
    number of evaluations that was not."""
    table = FAMILIES.get(family, {})
    nearest = min(table, key=lambda g: abs(math.log(g / max(guidance, 1e-3))), default=0.0)
    return table.get(nearest, {}).get(nfe)


def on_list(guidance: float) -> Solver:
    """The plain solver for noise levels that a user chose: iPNDM of third order without guidance, of second
    order with it. On the demo model, on lists of 3 to 10 steps of the amed, karras, normal and simple
    schedules, its mean error is at most that of the host's iPNDM (of fourth order) on each schedule."""
    return IPNDM_3 if guidance < GUIDED else fallback()


def fallback(solver: Solver | None = None) -> Solver:
    """Return the solver that runs where nothing was fitted: `solver` if it has a recipe, otherwise (none
    given, or "multistep" without a table) iPNDM of second order."""
    return solver if solver is not None and solver.has_recipe else IPNDM_2
