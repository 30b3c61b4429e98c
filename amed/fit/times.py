"""The stage after the plain search: on the schedules that did best, weights in closed form; the times of the best
one refined, the weights following them."""

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch

from ..loop import Denoiser, Evaluate, Problem, plain
from ..parameters import PARAMETERS
from . import closed
from .forms import ordered
from .plain import Setting
from .samples import Path, Samples, in_batches, per_sample, robust

LAGS = 4  # slopes whose weights are fitted: more cost evaluations and brought nothing
REFINED = (1e-2, 1e-1, 1.0, 10.0)  # dampings


@dataclass(frozen=True)
class Candidate:
    """A run with weights in closed form, its loss on the samples it was found on, and what it is."""

    loss: float
    name: str
    run: closed.Run
    afs: bool


@dataclass(frozen=True)
class ClosedForm:
    """Fits weights, and times, to samples whose whole reference trajectories are known."""

    model: Denoiser
    samples: Samples
    path: Path
    scale: float
    batch: int
    parts: str = ""
    evaluate: Evaluate = plain

    def on(
        self, sigmas: torch.Tensor, afs: bool, known: closed.Run | None = None, since: int = 0
    ) -> closed.Run:
        """The best weights on `sigmas`."""
        problem = Problem(self.model, self.samples.args, in_batches(self.batch, self.evaluate))
        return closed.run(problem, sigmas, afs, self.samples.noise, self.path, LAGS, known, since, self.parts)

    def loss(self, run: closed.Run) -> float:
        return robust(per_sample(run.end, self.samples.end), self.scale)

    def schedules(self, settings: list[Setting]) -> Generator[str, None, Candidate]:
        """The settings' schedules, the best of them; yields what it is doing."""
        tried = []
        for setting in settings:
            run = self.on(setting.sigmas(), setting.afs)
            tried.append(Candidate(self.loss(run), f"closed form on {setting.schedule}", run, setting.afs))
            yield f"{tried[-1].name}: {tried[-1].loss:.4f}"
        return min(tried, key=lambda candidate: candidate.loss)

    def cost(self, best: Candidate) -> int:
        """Evaluations of `refine`."""
        moves = len(best.run.sigmas) - 2
        return len(self.samples) * (moves * (moves + 1) // 2 + len(REFINED) * (moves + 1 - best.afs))

    def refine(self, best: Candidate) -> Generator[str, None, Candidate]:
        """One Gauss-Newton iteration on the times, whose weights follow: where it led, the same where nowhere
        better; yields what it is doing."""
        run, start = best.run, best
        weight = (1 / (1 + per_sample(run.end, self.samples.end) / self.scale)).sqrt().to(run.end)[:, None]
        residual = ((run.end - self.samples.end.to(run.end)).flatten(1) * weight).flatten()
        logs, rows = run.sigmas.log(), []
        t = PARAMETERS["t"]
        step = min(1.5 * t.step, 0.5 * float(-logs.diff().max()))
        for n in range(1, len(logs) - 1):
            sigmas = run.sigmas.clone()
            sigmas[n] *= math.exp(step)
            moved = self.on(sigmas, best.afs, run, n - 1)
            rows.append(((moved.end - run.end).flatten(1) * weight / step).flatten())
            yield f"{start.name}: time {n} of {len(logs) - 2}"
        jacobian = torch.stack(rows)
        matrix, vector = ((jacobian @ v).double().cpu() for v in (jacobian.T, residual))
        for damping in REFINED:
            move = torch.linalg.solve(matrix + torch.diag(damping * matrix.diagonal() + 1e-30), vector)
            sigmas = run.sigmas.clone()
            sigmas[1:-1] = ordered(logs, logs[1:-1] - move.clamp(-t.reach, t.reach)).exp()
            refined = self.on(sigmas, best.afs)
            loss = self.loss(refined)
            if loss < best.loss:
                best = Candidate(loss, f"{start.name}, times refined", refined, best.afs)
            yield f"{start.name}, times refined, damping {damping:g}: {loss:.4f}"
        return best
