"""The comparison of a fit with the best plain solver and with solvers at their usual settings.

It is made on held-out samples, whose noise no fit was made on."""

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
from . import plain_solvers
from .host_sampler import HostSchedule
from .measures import Statistics, frechet, rmse
from .samples import Samples, in_batches, per_sample, robust
from .target import Rival, Target

WIDE = 10.0  # scale of the second robust error in Judge.score, in multiples of the first one's


@dataclass(frozen=True)
class ResultRow:
    """One of the compared solvers, with its errors on the held-out samples."""

    solver: str  # name, for people
    schedule: str  # name, for people
    nfe: int  # evaluations per sample
    guidance: float  # guidance scale
    error: float  # robust error to the reference
    rmse_ref: float  # root mean square error to the reference
    fd_ref: float | None  # Fréchet distance to the reference; None without features

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a dict for a file, with rounded numbers.

        `fd_ref`, the Fréchet distance to the end states of converged runs, is omitted if it is None."""
        row = {"solver": self.solver, "schedule": self.schedule, "nfe": self.nfe, "guidance": self.guidance}
        row |= {"error": round(self.error, 5), "rmse_ref": round(self.rmse_ref, 5)}
        return row | ({} if self.fd_ref is None else {"fd_ref": round(self.fd_ref, 5)})


@dataclass(frozen=True)
class Result:
    """The result of a calibration, i.e. of the fit of a sampler's constants to a model."""

    fitted: Fitted  # the predictor to save, never worse than `best_plain` on the held-out samples
    improved: bool  # whether it is a fit; False: it is the best plain solver
    best_plain: plain_solvers.Setting | HostSchedule
    rows: list[ResultRow]  # `fitted`, the best plain solver, then the solvers at their usual settings
    history: list[tuple[int, float]]  # (evaluations, held-out error) of each start and iteration
    images: dict[str, Tensor]  # end states of the held-out samples: "fit", "plain", "reference", rivals
    evaluations: int  # of the model, each sample of a call counted

    @property
    def text(self) -> str:
        """The calibration's result in one sentence, and its warnings, for people."""
        first, best = self.rows[0], self.rows[1]
        verdict = (
            f"error {first.error:.3f}, {first.error / max(best.error, 1e-12):.2f} of the best plain solver's"
            if self.improved
            else "the fit did not beat the best plain solver, which is kept"
        )
        line = f"{first.nfe} evaluations: {verdict} ({best.solver} on {best.schedule}: {best.error:.3f})"
        return ". ".join([line, *self.warnings])

    @property
    def warnings(self) -> list[str]:
        """Reasons not to use the saved predictor, for people: another solver is better, or it is unusable."""
        first, *others = self.rows
        nearest = min(others, key=lambda row: row.error)
        warnings = []
        if nearest.error < first.error or not math.isfinite(first.error):
            named = f"{nearest.solver}, {nearest.schedule}, was nearer: error {nearest.error:.3f}"
            warnings.append(f"On the same noise {named}, not {first.error:.3f}. Prefer it at this number")
        if not self.fitted.spec.usable:
            blank = self.fitted.spec.metrics["no_sampling_error"]
            warnings.append(
                f"NOT USABLE: its error {first.error:.4g} is no better than {blank:.4g}, that of no sampling "
                "at all. It is saved, but auto does not choose it. Calibrate with more evaluations"
            )
        return warnings

    def table(self, name: str) -> str:
        """Return the errors of the predictor and of the solvers it is compared with, as lines of text.

        `name`: the predictor's file."""
        lines = [f"{name}: {self.text}", f"fitted with {self.evaluations} evaluations"]
        return "\n".join(lines + [f"  {row.solver}, {row.schedule}: {row.error:.4f}" for row in self.rows])


def without_sampling(ends: Tensor) -> Tensor:
    """Return the reference images `ends` `[n, ...]` in another order, to pair each with a wrong one.

    The error of these pairs is the limit for a usable predictor: above it, the predictor's images are no
    nearer to the references than unrelated images are. For a single image, returns infinity (no limit)."""
    return ends.roll(1, 0) if len(ends) > 1 else torch.full_like(ends, math.inf)


def verdict(error: float, blank: float) -> dict[str, Any]:
    """Return the entries that mark a predictor as unusable in its file; empty if it is usable.

    Args:
        error: the predictor's held-out error.
        blank: the error of unrelated images (see `without_sampling`); that of a usable predictor is
            lower.
    """
    return {} if error < blank else {"usable": False, "no_sampling_error": round(blank, 5)}


@dataclass(frozen=True)
class Judge:
    """Runs solvers on the held-out samples and scores their end states."""

    model: Denoiser
    held_out: Samples
    batch: int  # most samples in one call of the model
    scale: float = 1.0  # of the robust error, a mean squared error; set from the best plain solvers
    features: Callable[[Tensor], Tensor] | None = None  # end states -> `[n, F]`; None: no Fréchet distance
    evaluate: Evaluate = denoised_only  # how the model is called

    def plain(self, setting: plain_solvers.Setting, samples: Samples | None = None) -> Tensor:
        """Return the end states of an unfitted solver; `samples` default to the held-out ones."""
        samples, sigmas = samples or self.held_out, setting.sigmas()
        x = samples.noise * sigmas[0].to(samples.noise)
        return sample(self.model, x, sigmas, setting.solver, samples.args, disable=True, afs=setting.afs,
                      evaluate=in_batches(self.batch, self.evaluate))  # fmt: skip

    def rival(self, rival: Rival) -> Tensor:
        """Run a solver to compare with on the held-out samples, and return its end states."""
        parts = self.held_out.batches(self.batch)
        return torch.cat([rival(self.model, part.noise, part.args) for part in parts])

    def error(self, end: Tensor) -> float:
        """Return the robust error (by Cauchy's loss) of end states to those of converged runs."""
        return robust(per_sample(end, self.held_out.end), self.scale)

    def verdict(self, end: Tensor) -> dict[str, Any]:
        """Return the entries that mark a predictor as unusable in its file; empty if it is usable.

        It is unusable if its end states `end` are no nearer to those of converged runs than unrelated
        images are (see `without_sampling`)."""
        return verdict(self.error(end), self.error(without_sampling(self.held_out.end)))

    def metrics(
        self, rows: list[ResultRow], end: Tensor, evaluations: int, passes: int | None = None
    ) -> dict[str, Any]:
        """Return the metrics to write to a predictor's file.

        Args:
            rows: errors of each solver; the first is the predictor, the second the best plain solver.
            end: the predictor's end states on the held-out samples.
            evaluations: number of evaluations of the model that the calibration took.
            passes: network passes per sample; None: the usual two per evaluation with guidance.
        """
        first, best = rows[0].as_dict(), rows[1].as_dict()
        metrics = {k: v for k, v in first.items() if k not in ("solver", "schedule")}
        metrics |= {"plain": rows[1].solver, "plain_schedule": rows[1].schedule}
        metrics |= {f"plain_{k}": best[k] for k in ("error", "rmse_ref", "fd_ref") if k in best}
        metrics |= {"noises": len(self.held_out), "evaluations": evaluations}
        metrics |= {"passes": passes} if passes else {}
        return metrics | self.verdict(end)

    def distance(self, end: Tensor) -> float | None:
        """Return the Fréchet distance between end states and those of converged runs, as in FID.

        It compares their image features. None if the model has no feature function, or an end state is
        not finite."""
        if self.features is None or not end.isfinite().all():
            return None
        statistics, reference = (Statistics.of(self.features(v)) for v in (end, self.held_out.end))
        return max(frechet(statistics, reference), 0.0)

    def score(self, end: Tensor) -> float:
        """Return the score of end states by which the best fit is chosen; lower is better.

        It is the geometric mean of two robust errors to the end states of converged runs, times the
        square root of the Fréchet distance if the model has a feature function. The second error is less
        robust: samples that end in another image count more in it."""
        distance, wide = self.distance(end), robust(per_sample(end, self.held_out.end), WIDE * self.scale)
        return math.sqrt(self.error(end) * wide * (1.0 if distance is None else distance))

    def row(self, name: str, schedule: str, nfe: int, guidance: float, end: Tensor) -> ResultRow:
        """Return a row for the table of compared solvers: the errors of one solver's end states `end`,
        measured against converged runs from the same noise."""
        error, square = self.error(end), rmse(end, self.held_out.end)
        return ResultRow(name, schedule, nfe, guidance, error, square, self.distance(end))


def usual_schedule(target: Target, count: int) -> tuple[str, Tensor]:
    """Return the name of the schedule on which hosts usually run their samplers, and `count` noise levels of
    it without the final 0: karras, or for a flow model `simple` with shift 3, the most usual shift."""
    if target.flow:
        return "simple, shift 3", schedules.make("shift", count + 1, 1e-9, target.sigma_max, 3.0)[:-1]
    return "karras", schedules.make("polynomial", count, target.sigma_min, target.sigma_max)


def usual_rivals(target: Target, nfe: int) -> dict[str, Rival]:
    """Return DPM++ 2M and iPNDM-4, by name, on the usual schedule of `nfe` noise levels and a final 0.

    ComfyUI and the WebUI run them in this way."""
    usual, sigmas = usual_schedule(target, nfe)
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])

    def rival(solver: Solver) -> Rival:
        def run(model: Denoiser, noise: Tensor, args: dict[str, Any]) -> Tensor:
            return sample(model, noise * sigmas[0].to(noise), sigmas, solver, args, disable=True)

        return run

    return {
        f"DPM++ 2M, {usual}": rival(Solver("dpmpp", 2, predict_x0=True, lower_order_final=False)),
        f"iPNDM-4, {usual}": rival(Solver("ipndm", 4)),
    }
