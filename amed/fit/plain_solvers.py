"""The plain solvers and their settings: what a learned solver has to beat.

`candidates(nfe, ...)` lists every solver, schedule and analytic first step with exactly `nfe` evaluations."""

from dataclasses import dataclass
from itertools import product

from torch import Tensor

from .. import schedules
from ..recipes import Solver
from .target import Target

SOLVERS = {  # by name; first those most worth trying at few evaluations, since a small budget cuts the rest
    "iPNDM-2": Solver("ipndm", 2),
    "iPNDM-3": Solver("ipndm", 3),
    "UniPC": Solver("unipc", 3),
    "DEIS-3": Solver("deis", 3),
    "DPM++ 3M": Solver("dpmpp", 3, predict_x0=True),
    "DPM++ 2M": Solver("dpmpp", 2, predict_x0=True),
    "iPNDM-4": Solver("ipndm", 4),
    "Euler": Solver("euler"),
    "DPM-Solver-2": Solver("dpm_2"),
    "Heun": Solver("heun"),
}
SCHEDULES = (("polynomial", 7.0), ("polynomial", 3.0), ("logsnr", 1.0), ("time_uniform", 1.0),
             ("time_uniform", 2.0))  # (kind, rho)  # fmt: skip
# (kind, rho), for flow models; which family is best depends on the model
FLOW_SCHEDULES = (("polynomial", 1.0), ("polynomial", 2.0), ("shift", 3.0), ("polynomial", 3.0),
                  ("shift", 1.5), ("time_uniform", 1.0), ("shift", 2.0), ("shift", 4.5), ("logsnr", 1.0),
                  ("shift", 6.0), ("shift", 12.0))  # fmt: skip


def name_of(solver: Solver) -> str:
    """Return the solver's name in SOLVERS, or `solver.name` if it is not listed there."""
    return next((name for name, listed in SOLVERS.items() if listed == solver), solver.name)


def schedule_name(kind: str, rho: float) -> str:
    """Return a schedule's name for people, with rho where it is not the usual one, e.g. "polynomial 7"."""
    usual = schedules.DEFAULT_RHO[kind] == rho and kind not in ("polynomial", "shift")
    return kind if usual else f"{kind} {rho:g}"


@dataclass(frozen=True)
class Setting:
    """A plain solver with its schedule: everything that a run needs but the model."""

    solver: Solver
    kind: str  # of the schedule, a name of schedules.KINDS
    rho: float  # of the schedule
    num_steps: int  # number of noise levels in the schedule
    afs: bool  # whether the first step is analytic
    sigma_min: float
    sigma_max: float

    @property
    def schedule(self) -> str:
        """The schedule's name, with "+ AFS" for an analytic first step, for people."""
        return f"{schedule_name(self.kind, self.rho)}{' + AFS' if self.afs else ''}"

    @property
    def name(self) -> str:
        """The solver's name, for people."""
        return name_of(self.solver)

    def sigmas(self) -> Tensor:
        """Return the noise levels of the schedule, float64 `[num_steps]`, from sigma_max to sigma_min.

        A solver that evaluates twice per step may add a level between two of them."""
        return schedules.make(self.kind, self.num_steps, self.sigma_min, self.sigma_max, self.rho)


def candidates(nfe: int, sigma_min: float, sigma_max: float, solvers: dict[str, Solver] = SOLVERS,
               kinds: tuple[tuple[str, float], ...] = SCHEDULES) -> list[Setting]:  # fmt: skip
    """Return each plain solver on each schedule, with a length that takes exactly `nfe` evaluations.

    Each comes with and without an analytic first step, where such a length exists.

    Args:
        nfe: evaluations per sample.
        sigma_min: lowest noise level.
        sigma_max: highest noise level.
        solvers: by name.
        kinds: (schedule, rho) of the schedules.
    """
    settings = []
    for solver, afs in product(solvers.values(), (True, False)):
        count = next((n for n in range(2, nfe + 3) if solver.evaluations(n, afs, False) == nfe), None)
        if count is not None:
            settings += [Setting(solver, kind, rho, count, afs, sigma_min, sigma_max) for kind, rho in kinds]
    return settings


def settings_for(target: Target, nfe: int) -> list[Setting]:
    """Return each plain solver on each schedule for the model `target`, with `nfe` evaluations.

    On flow models none has an analytic first step."""
    kinds = FLOW_SCHEDULES if target.flow else SCHEDULES
    settings = candidates(nfe, target.sigma_min, target.sigma_max, SOLVERS, kinds)
    return [setting for setting in settings if not (setting.afs and target.flow)]
