"""The last stage: a fit, the best plain setting and the solvers as usually set, on noise that no fit saw."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import schedules
from ..files import Fitted
from ..kdiffusion import sample
from ..loop import Denoiser, Evaluate, denoised_only
from ..recipes import Solver
from . import plain as solvers
from .measures import Statistics, frechet, rmse
from .outer import Listed
from .samples import Samples, in_batches, per_sample, robust
from .target import Rival, Target

WIDE = 10.0


@dataclass(frozen=True)
class Row:
    """A solver's error to the reference, and Fréchet distance where features are at hand, on held-out
    noise."""

    solver: str
    schedule: str
    nfe: int
    guidance: float
    error: float
    rmse_ref: float
    fd_ref: float | None

    def as_dict(self) -> dict[str, Any]:
        row = {"solver": self.solver, "schedule": self.schedule, "nfe": self.nfe, "guidance": self.guidance}
        row |= {"error": round(self.error, 5), "rmse_ref": round(self.rmse_ref, 5)}
        return row | ({} if self.fd_ref is None else {"fd_ref": round(self.fd_ref, 5)})


@dataclass(frozen=True)
class Result:
    """`fitted`: what to use, never worse than `best_plain` on held-out noise; `improved`: whether it is a
    fit and not a plain setting. `rows`: it, the best plain setting, the solvers as usually set. `history`:
    (evaluations, held-out error) of each start and iteration. `images`: end states of the held-out samples
    by row name, and "reference"."""

    fitted: Fitted
    improved: bool
    best_plain: solvers.Setting | Listed
    rows: list[Row]
    history: list[tuple[int, float]]
    images: dict[str, Tensor]
    evaluations: int

    @property
    def text(self) -> str:
        first, best = self.rows[0], self.rows[1]
        said = (
            f"error {first.error:.3f}, {first.error / max(best.error, 1e-12):.2f} of the best plain solver's"
            if self.improved
            else "the fit did not beat the best plain solver, which is kept"
        )
        line = f"{first.nfe} evaluations: {said} ({best.solver} on {best.schedule}: {best.error:.3f})"
        return ". ".join([line, *self.warnings])

    @property
    def warnings(self) -> list[str]:
        """What is to be said against using it: another row was nearer, or it is of no use."""
        first, *others = self.rows
        nearest = min(others, key=lambda row: row.error)
        found = []
        if nearest.error < first.error or not math.isfinite(first.error):
            named = f"{nearest.solver}, {nearest.schedule}, was nearer: error {nearest.error:.3f}"
            found.append(f"On the same noise {named}, not {first.error:.3f}. Prefer it at this number")
        if not self.fitted.spec.usable:
            blank = self.fitted.spec.metrics["no_sampling_error"]
            found.append(
                f"NOT USABLE: its error {first.error:.4g} is no better than {blank:.4g}, that of no sampling "
                "at all. It is saved, but auto does not choose it. Calibrate with more evaluations"
            )
        return found

    def table(self, name: str) -> str:
        """What came of it and what it was held against, for people; `name`: the file it was saved as."""
        lines = [f"{name}: {self.text}", f"fitted with {self.evaluations} evaluations"]
        return "\n".join(lines + [f"  {row.solver}, {row.schedule}: {row.error:.4f}" for row in self.rows])


def without_sampling(ends: Tensor) -> Tensor:
    """What each reference image `[n, ...]` is held against for no sampling at all: another reference image,
    from another noise. It costs no evaluation. The mean of all would be too strict a bar: in squared error it
    beats every sharp image that is not the very same."""
    return ends.roll(1, 0) if len(ends) > 1 else torch.full_like(ends, math.inf)


def verdict(error: float, blank: float) -> dict[str, Any]:
    """For a file's metrics: nothing where its held-out error is less than `blank`, that of no sampling at
    all; else that it is not usable, and `blank`."""
    return {} if error < blank else {"usable": False, "no_sampling_error": round(blank, 5)}


@dataclass(frozen=True)
class Judge:
    """Runs and scores on the held-out samples. `scale`: of the robust error, from the best plain settings."""

    model: Denoiser
    held_out: Samples
    batch: int
    scale: float = 1.0
    features: Callable[[Tensor], Tensor] | None = None
    evaluate: Evaluate = denoised_only

    def plain(self, setting: solvers.Setting, samples: Samples | None = None) -> Tensor:
        """End states of a plain setting."""
        on, sigmas = samples or self.held_out, setting.sigmas()
        x = on.noise * sigmas[0].to(on.noise)
        return sample(self.model, x, sigmas, setting.solver, on.args, disable=True, afs=setting.afs,
                      evaluate=in_batches(self.batch, self.evaluate))  # fmt: skip

    def rival(self, rival: Rival) -> Tensor:
        """End states of a solver as a host ships it."""
        parts = self.held_out.batches(self.batch)
        return torch.cat([rival(self.model, part.noise, part.args) for part in parts])

    def error(self, end: Tensor) -> float:
        return robust(per_sample(end, self.held_out.end), self.scale)

    def verdict(self, end: Tensor) -> dict[str, Any]:
        """For a file's metrics, as `verdict` has it, by the robust error."""
        return verdict(self.error(end), self.error(without_sampling(self.held_out.end)))

    def distance(self, end: Tensor) -> float | None:
        """Fréchet distance; None without features, and for a rival whose end is not finite."""
        if self.features is None or not end.isfinite().all():
            return None
        own, reference = (Statistics.of(self.features(v)) for v in (end, self.held_out.end))
        return max(frechet(own, reference), 0.0)

    def score(self, end: Tensor) -> float:
        """What is kept by: the geometric mean of two robust errors, of which one bears WIDE times as much (an
        RMSE would be decided by the two or three samples that jump furthest); times the root of the Fréchet
        distance where there is one."""
        distance, wide = self.distance(end), robust(per_sample(end, self.held_out.end), WIDE * self.scale)
        return math.sqrt(self.error(end) * wide * (1.0 if distance is None else distance))

    def row(self, name: str, schedule: str, nfe: int, guidance: float, end: Tensor) -> Row:
        error, square = self.error(end), rmse(end, self.held_out.end)
        return Row(name, schedule, nfe, guidance, error, square, self.distance(end))


def usual(target: Target, nfe: int) -> dict[str, Rival]:
    """DPM++ 2M and iPNDM as hosts set them: on the karras schedule, `nfe` noise levels, then 0."""
    sigmas = schedules.make("polynomial", nfe, target.sigma_min, target.sigma_max)
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])

    def rival(solver: Solver) -> Rival:
        def run(model: Denoiser, noise: Tensor, args: dict[str, Any]) -> Tensor:
            return sample(model, noise * sigmas[0].to(noise), sigmas, solver, args, disable=True)

        return run

    return {
        "DPM++ 2M, karras": rival(Solver("dpmpp", 2, predict_x0=True, lower_order_final=False)),
        "iPNDM-4, karras": rival(Solver("ipndm", 4)),
    }
