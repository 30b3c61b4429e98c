"""Multistep weights in closed form: the student runs once, and at each step the weights of its slopes are
those that bring it nearest to where the reference is at the next time.

A step is linear in its weights, so a least-squares problem of a few unknowns gives them; it costs no
evaluation beyond the run itself. What a schedule is worth with the best weights *on it* is then known for
the price of sampling."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .bottleneck import Denoiser
from .conversion import as_multistep
from .predictor import MultistepTable
from .sampling import MULTISTEP, Problem, Solver, State, begin, interval

RIDGE = 1e-6  # pull towards iPNDM-2, in shares of the newest slope's own square
ROUNDS = 3  # of reweighting


@dataclass(frozen=True)
class Path:
    """Reference states of some samples: `states` (each `[n, ...]`) at falling `times`."""

    times: Tensor
    states: tuple[Tensor, ...]

    def at(self, t: float, part: slice) -> Tensor:
        """The states at time t: the cubic through the four nearest of them, in t."""
        times, count = self.times.tolist(), len(self.times)
        below = next((i for i, time in enumerate(times) if time <= t * (1 + 1e-9)), count - 1)
        first = min(max(below - 2, 0), count - 4)
        near, total = range(first, first + 4), 0.0
        for i in near:
            weight = 1.0
            for j in near:
                if j != i:
                    weight *= (t - times[j]) / (times[i] - times[j])
            total = total + weight * self.states[i][part]
        return total


@dataclass(frozen=True)
class Run:
    """A student's run with weights found on the way: its times, weights `[N, H]`, and the states of every
    part of the samples at every time (those before an interval with its evaluation made)."""

    sigmas: Tensor
    weights: Tensor
    states: list[list[State]]

    @property
    def end(self) -> Tensor:
        return torch.cat([states[-1].x for states in self.states])

    @property
    def table(self) -> MultistepTable:
        return MultistepTable(self.sigmas, self.weights)


@torch.no_grad()
def run(
    model: Denoiser,
    sigmas: Tensor,
    afs: bool,
    parts: list[tuple[Tensor, dict[str, Any]]],
    path: Path,
    lags: int,
    known: Run | None = None,
    since: int = 0,
) -> Run:
    """Run on `sigmas` `[N+1]`, float64, with the best weights on at most `lags` slopes from interval
    `since` on.

    parts: (unit noise, arguments) of the samples, in batches, in the path's order. known: an earlier run
    whose times up to and including number `since` are the same; what came before is taken from it."""
    prior = as_multistep(Solver("ipndm", 2), sigmas, afs).weights
    steps = len(sigmas) - 1
    weights = torch.zeros(steps, min(lags, steps), dtype=torch.float64)
    width = min(weights.shape[1], prior.shape[1])
    weights[:, :width] = prior[:, :width]
    dtype = torch.promote_types(parts[0][0].dtype, torch.float32)
    times = sigmas.to(parts[0][0].device, dtype).view(-1, *[1] * parts[0][0].ndim)
    if known is None:
        states = [[State(noise.to(dtype) * times[0])] for noise, _ in parts]
    else:
        weights[:since] = known.weights[:since]
        states = [list(found[: since + 1]) for found in known.states]
    for n in range(since, steps):
        products, first = [], 0
        for (noise, args), found in zip(parts, states):
            problem = Problem(model, Solver(MULTISTEP), extra_args=args, dtype=noise.dtype)
            if found[n].begun is None:
                found[n] = begin(problem, found[n], times[n], afs and n == 0)
            slopes = [found[n].begun[1], *(d for d, _ in reversed(found[n].history))][: weights.shape[1]]
            part = slice(first, first := first + len(noise))
            target = path.at(float(sigmas[n + 1]), part).to(found[n].x)
            wanted = (target - found[n].x) / (times[n + 1] - times[n])
            basis = torch.stack([*slopes, wanted], dim=1).flatten(2).cpu().double()
            products.append(basis @ basis.mT)
        count = len(slopes)
        weights[n, :count] = best_weights(torch.cat(products), weights[n, :count])
        table = MultistepTable(sigmas, weights)
        for (noise, args), found in zip(parts, states):
            problem = Problem(model, Solver(MULTISTEP), table, args, dtype=noise.dtype)
            found.append(interval(problem, found[n], times[n], times[n + 1]))
    return Run(sigmas, weights, states)


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
