"""Multistep weights in closed form: the student runs once, and at each step the weights of its slopes are
those that bring it nearest to where the reference is at the next time. A step is linear in its weights, so a
least-squares problem of a few unknowns gives them; it costs no evaluation beyond the run itself. What a
schedule is worth with the best weights *on it* is then known for the price of sampling, and its times can be
refined, the weights following."""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..constants import Multistep, as_multistep
from ..loop import Denoiser, Evaluate, Problem, State, loop, plain
from ..parameters import PARAMETERS
from ..parts import PARTS
from ..recipes import Solver
from ..table import Row, Weights
from .forms import ordered
from .plain import Setting
from .samples import Path, Samples, in_batches, per_sample, robust

LAGS = 4  # slopes whose weights are fitted: more cost evaluations and brought nothing
RIDGE = 1e-6  # pull towards iPNDM-2, in shares of the newest slope's own square
ROUNDS = 3  # of reweighting
REFINED = (1e-2, 1e-1, 1.0, 10.0)  # dampings


@dataclass(frozen=True)
class Run:
    """A student's run with weights found on the way: its times, weights `[N, H, S]`, and the state at every
    time (at the last, the end; before it, looked at)."""

    sigmas: Tensor
    weights: Tensor
    states: list[State]
    parts: str = ""

    @property
    def end(self) -> Tensor:
        return self.states[-1].x

    @property
    def table(self) -> Multistep:
        return Multistep(self.sigmas, self.weights, parts=self.parts)


@dataclass(frozen=True)
class Candidate:
    """A run with weights in closed form, its loss on the samples it was found on, and what it is."""

    loss: float
    name: str
    run: Run
    afs: bool


@dataclass(frozen=True)
class ClosedForm:
    """Fits weights on at most `lags` slopes, and times, to samples whose reference trajectories are known.
    `scale`: of the robust error."""

    model: Denoiser
    samples: Samples
    path: Path
    scale: float = 1.0
    batch: int = 16
    parts: str = ""
    lags: int = LAGS
    evaluate: Evaluate = plain

    @torch.no_grad()
    def run(self, sigmas: Tensor, afs: bool, known: Run | None = None, since: int = 0) -> Run:
        """With the best weights on `sigmas` `[N+1]`, float64, from interval `since` on. known: an earlier run
        whose times up to and including number `since` are the same; what came before is taken from it."""
        noise, steps = self.samples.noise, len(sigmas) - 1
        prior = as_multistep(Solver("ipndm", 2), sigmas, afs).weights
        weights = torch.zeros(steps, min(self.lags, steps), PARTS[self.parts].count, dtype=torch.float64)
        weights[:, : prior.shape[1]] = prior[:, : weights.shape[1]]
        state = State(noise.to(torch.promote_types(noise.dtype, torch.float32)) * sigmas[0])
        before: list[State] = []
        if known is not None:
            weights[:since] = known.weights[:since]
            before, state = known.states[:since], known.states[since]

        def decide(n: int, state: State) -> Weights:
            t, t_next = sigmas[n : n + 2].tolist()
            slopes = list(reversed(state.slopes))[: weights.shape[1]]
            wanted = (self.path.at(t_next).to(state.x) - state.x) / (t_next - t)
            basis = torch.stack([*(part for slope in slopes for part in slope), wanted], dim=1)
            basis = basis.flatten(2).cpu().double()
            prior = weights[n, : len(slopes)]
            weights[n, : len(slopes)] = best_weights(basis @ basis.mT, prior.flatten()).view_as(prior)
            return tuple(map(tuple, ((t_next - t) * weights[n, : len(slopes)]).tolist()))

        def rows() -> Iterator[Row]:
            for n in range(since, steps):
                yield Row(float(sigmas[n]), partial(decide, n), analytic=afs and n == 0)

        ask = in_batches(self.batch, self.evaluate)
        problem = Problem(self.model, self.samples.args, ask, noise.dtype, PARTS[self.parts])
        states = list(loop(problem, rows(), state))
        looked = [state for state in states if state.looked]
        return Run(sigmas, weights, [*before, *looked, states[-1]], self.parts)

    def loss(self, run: Run) -> float:
        return robust(per_sample(run.end, self.samples.end), self.scale)

    def schedules(self, settings: list[Setting]) -> Generator[str, None, Candidate]:
        """The settings' schedules, the best of them; yields what it is doing."""
        tried = []
        for setting in settings:
            run = self.run(setting.sigmas(), setting.afs)
            tried.append(Candidate(self.loss(run), f"closed form on {setting.schedule}", run, setting.afs))
            yield f"{tried[-1].name}: {tried[-1].loss:.4f}"
        return min(tried, key=lambda candidate: candidate.loss)

    def cost(self, best: Candidate) -> int:
        """Evaluations of `refine`."""
        moves = len(best.run.sigmas) - 2
        return len(self.samples) * (moves * (moves + 1) // 2 + len(REFINED) * (moves + 1 - best.afs))

    def refine(self, start: Candidate) -> Generator[str, None, Candidate]:
        """One Gauss-Newton iteration on the times, whose weights follow: where it led, the start itself where
        nowhere better; yields what it is doing."""
        run, best, name = start.run, start, f"{start.name}, times refined"
        weight = (1 / (1 + per_sample(run.end, self.samples.end) / self.scale)).sqrt().to(run.end)[:, None]
        residual = ((run.end - self.samples.end.to(run.end)).flatten(1) * weight).flatten()
        logs, rows, t = run.sigmas.log(), [], PARAMETERS["t"]
        step = min(1.5 * t.step, 0.5 * float(-logs.diff().max()))
        for n in range(1, len(logs) - 1):
            sigmas = run.sigmas.clone()
            sigmas[n] *= math.exp(step)
            moved = self.run(sigmas, start.afs, run, n - 1)
            rows.append(((moved.end - run.end).flatten(1) * weight / step).flatten())
            yield f"{start.name}: time {n} of {len(logs) - 2}"
        jacobian = torch.stack(rows)
        matrix, vector = ((jacobian @ v).double().cpu() for v in (jacobian.T, residual))
        for damping in REFINED:
            move = torch.linalg.solve(matrix + torch.diag(damping * matrix.diagonal() + 1e-30), vector)
            sigmas = run.sigmas.clone()
            sigmas[1:-1] = ordered(logs, logs[1:-1] - move.clamp(-t.reach, t.reach)).exp()
            refined = self.run(sigmas, start.afs)
            candidate = Candidate(self.loss(refined), name, refined, start.afs)
            best = min(best, candidate, key=lambda c: c.loss)
            yield f"{name}, damping {damping:g}: {candidate.loss:.4f}"
        return best


def best_weights(products: Tensor, prior: Tensor) -> Tensor:
    """Weights w `[k]` for which the sum of w times slopes is nearest to what is wanted, by reweighted least
    squares with Cauchy's weights, so that a sample that goes elsewhere does not decide. products `[n, k+1,
    k+1]`: each sample's inner products of its slopes and, last, what is wanted."""
    count, w = len(prior), prior.clone()
    gram, right, square = products[:, :count, :count], products[:, :count, count], products[:, count, count]
    ridge = RIDGE * gram[:, 0, 0].mean() * len(gram) * torch.eye(count, dtype=gram.dtype)
    for _ in range(ROUNDS):
        errors = (square - 2 * right @ w + torch.einsum("k,nkl,l->n", w, gram, w)).clamp(min=0)
        trust = 1 / (1 + errors / errors.median().clamp(min=1e-30))
        matrix = torch.einsum("n,nkl->kl", trust, gram)
        w = prior + torch.linalg.solve(matrix + ridge, trust @ right - matrix @ prior)
    return w
