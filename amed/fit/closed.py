"""Multistep weights in closed form: the student runs once, and at each step the weights of its slopes are
those that bring it nearest to where the reference is at the next time.

A step is linear in its weights, so a least-squares problem of a few unknowns gives them; it costs no
evaluation beyond the run itself. What a schedule is worth with the best weights *on it* is then known for
the price of sampling."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..constants import Multistep, as_multistep
from ..loop import Problem, State, loop
from ..parts import PARTS
from ..recipes import Solver
from ..table import Row, Weights
from .samples import Path

RIDGE = 1e-6  # pull towards iPNDM-2, in shares of the newest slope's own square
ROUNDS = 3  # of reweighting


@dataclass(frozen=True)
class Run:
    """A student's run with weights found on the way: its times, weights `[N, H, S]`, and the state at every time
    (at the last, the end; before it, looked at)."""

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


@dataclass
class Weighing:
    """The rows of such a run: each one's weights are decided when it was looked at."""

    sigmas: Tensor
    afs: bool
    path: Path
    lags: int
    parts: str
    weights: Tensor = field(init=False)

    def __post_init__(self) -> None:
        steps, count = len(self.sigmas) - 1, PARTS[self.parts].count
        prior = as_multistep(Solver("ipndm", 2), self.sigmas, self.afs).weights
        self.weights = torch.zeros(steps, min(self.lags, steps), count, dtype=torch.float64)
        width = min(self.weights.shape[1], prior.shape[1])
        self.weights[:, :width] = prior[:, :width]

    def rows(self, since: int) -> Iterator[Row]:
        for n, t in enumerate(self.sigmas[:-1].tolist()):
            if n >= since:
                yield Row(t, lambda state, n=n: self.decide(state, n), analytic=self.afs and n == 0)

    def decide(self, state: State, n: int) -> Weights:
        """The weights of step n, and what they are in shares of its length."""
        t, t_next = self.sigmas[n : n + 2].tolist()
        slopes = list(reversed(state.slopes))[: self.weights.shape[1]]
        wanted = (self.path.at(t_next).to(state.x) - state.x) / (t_next - t)
        basis = torch.stack([*(part for slope in slopes for part in slope), wanted], dim=1)
        basis = basis.flatten(2).cpu().double()
        prior = self.weights[n, : len(slopes)]
        found = best_weights(basis @ basis.mT, prior.flatten()).view_as(prior)
        self.weights[n, : len(slopes)] = found
        return ((t_next - t) * found).tolist()


@torch.no_grad()
def run(
    problem: Problem,
    sigmas: Tensor,
    afs: bool,
    noise: Tensor,
    path: Path,
    lags: int,
    known: Run | None = None,
    since: int = 0,
    parts: str = "",
) -> Run:
    """Run on `sigmas` `[N+1]`, float64, with the best weights on at most `lags` slopes from interval `since` on.

    noise `[n, ...]` unit, in the path's order; the problem's arguments are for these samples. known: an earlier
    run whose times up to and including number `since` are the same; what came before is taken from it."""
    dtype = torch.promote_types(noise.dtype, torch.float32)
    problem = Problem(problem.model, problem.extra_args, problem.evaluate, noise.dtype, PARTS[parts])
    rows = Weighing(sigmas, afs, path, lags, parts)
    before: list[State] = []
    state = State(noise.to(dtype) * float(sigmas[0]))
    if known is not None:
        rows.weights[:since] = known.weights[:since]
        before, state = known.states[:since], known.states[since]
    run = list(loop(problem, rows.rows(since), state))
    looked = [state for state in run if state.looked]
    return Run(sigmas, rows.weights, [*before, *looked, run[-1]], parts)


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
