"""The plain solvers and their settings: what a learned solver has to beat, each at its best.

`candidates(nfe, ...)` lists every solver x schedule x analytic first step that takes exactly `nfe`
evaluations."""

from dataclasses import dataclass
from itertools import product

from torch import Tensor

from .. import schedules
from ..recipes import Solver
from .target import Target

SOLVERS = {  # in the order in which they are worth trying at few evaluations
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
             ("time_uniform", 2.0))  # fmt: skip
FLOW_SCHEDULES = (("polynomial", 1.0), ("polynomial", 2.0), ("polynomial", 3.0), ("logsnr", 1.0),
                  ("time_uniform", 1.0))  # fmt: skip


def name_of(solver: Solver) -> str:
    """For people."""
    return next((name for name, own in SOLVERS.items() if own == solver), solver.name)


def schedule_name(kind: str, rho: float) -> str:
    """Return a schedule's name for people, with rho where it is not the usual one, e.g. "polynomial 7"."""
    usual = schedules.DEFAULT_RHO[kind] == rho and kind != "polynomial"
    return kind if usual else f"{kind} {rho:g}"


@dataclass(frozen=True)
class Setting:
    """A plain solver as one would set it: everything but the model. `sigmas()` is float64, sigma_max
    first."""

    solver: Solver
    kind: str
    rho: float
    num_steps: int
    afs: bool
    sigma_min: float
    sigma_max: float

    @property
    def schedule(self) -> str:
        """The schedule and AFS, for people."""
        return f"{schedule_name(self.kind, self.rho)}{' + AFS' if self.afs else ''}"

    @property
    def name(self) -> str:
        return name_of(self.solver)

    def sigmas(self) -> Tensor:
        return schedules.make(self.kind, self.num_steps, self.sigma_min, self.sigma_max, self.rho)


def candidates(nfe: int, sigma_min: float, sigma_max: float, solvers: dict[str, Solver] = SOLVERS,
               kinds: tuple[tuple[str, float], ...] = SCHEDULES) -> list[Setting]:  # fmt: skip
    """Every setting that takes exactly `nfe` evaluations from sigma_max to sigma_min; `kinds`: (schedule,
    rho)."""
    settings = []
    for solver, afs in product(solvers.values(), (True, False)):
        count = next((n for n in range(2, nfe + 3) if solver.evaluations(n, afs, False) == nfe), None)
        if count is not None:
            settings += [Setting(solver, kind, rho, count, afs, sigma_min, sigma_max) for kind, rho in kinds]
    return settings


def settings_for(target: Target, nfe: int) -> list[Setting]:
    """Every setting that a target may be sampled with at `nfe` evaluations."""
    kinds = FLOW_SCHEDULES if target.flow else SCHEDULES
    settings = candidates(nfe, target.sigma_min, target.sigma_max, SOLVERS, kinds)
    return [setting for setting in settings if not (setting.afs and target.flow)]
