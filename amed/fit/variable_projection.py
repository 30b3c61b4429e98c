"""Variable projection: only a multistep solver's noise levels are searched; its weights follow from them.

The solver runs once. At each step the weights of its slopes (or of their parts, and the offset, a constant
that is added to each channel) are those that bring the state nearest to the reference at the next time. A
step is linear in them, so they are the solution of a small least-squares problem and cost no evaluation
beyond the run itself. So one run tells how good some times are with the best weights *on them*, and
Gauss-Newton moves the times.

Tried on the demo model and left out: weights that depend on the sample (on its norm, the ratios of its slopes
or the local image: worse than constants, or 3 % better), the model's noise level as a second unknown of each
step, a common correction of each step's weights chosen by the end state, each step's energy per band matched
to the reference's (15 % less Fréchet distance, 1 % more error), an offset for each place of the image
(8 % better on emoji, which all stand in the middle), bands by FFT or cosines (not better, and slower)."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..constants import Multistep, as_multistep
from ..double import as_double
from ..known import fallback
from ..loop import Denoiser, Evaluate, Problem, State, denoised_only, loop
from ..parameters import PARAMETERS
from ..parts import PARTS, Parts
from ..table import Row, Weights
from .gauss_newton import DAMPINGS, NormalEquations
from .parametrisation import ordered
from .plain_solvers import Setting
from .samples import Path, Samples, in_batches, per_sample, robust

LAGS = 4  # slopes whose weights are fitted; more cost evaluations and did not help
ROUNDS = 3  # of reweighted least squares
SIMPLER = 0.1  # ridge of the simpler table itself, in shares of the table's ridge


@dataclass(frozen=True)
class Shape:
    """Which weights a multistep solver has at each step, and how strongly they are regularised."""

    parts: str = ""  # how slopes are split, a name of PARTS; "" for no split
    offset: bool = False  # whether a constant, the offset, is added to each channel
    ridge: float = 1e-6  # strength of the pull towards simpler weights, see best_weights
    spared: tuple[int, ...] = ()  # rows whose evaluation skips the unconditional half

    @property
    def text(self) -> str:
        """Description for people: how slopes are split, whether there is an offset, and the ridge.

        An offset is a constant added to each channel, the ridge the strength of the regularisation."""
        words = [*filter(None, self.parts.split("+")), *["offset"] * self.offset]
        return f"{' and '.join(words) or 'whole slopes'}, ridge {self.ridge:g}"


@dataclass(frozen=True)
class Run:
    """A run of a multistep solver on given noise levels, with the weights that were fitted during it."""

    sigmas: Tensor  # times, float64 `[N+1]`
    weights: Tensor  # `[N, H, S]` of each step on the H newest slopes and their S parts
    states: list[State]  # at each time after its evaluation, and the end state
    shape: Shape = field(default_factory=Shape)
    offset: Tensor | None = None  # `[N, C]` of each step and channel; None for no offsets

    @property
    def end(self) -> Tensor:
        """The end states `[n, ...]`."""
        return self.states[-1].x

    @property
    def table(self) -> Multistep:
        """The noise levels and the fitted weights of this solver run, as a multistep predictor."""
        shape = self.shape
        return Multistep(self.sigmas, self.weights, None, shape.parts, self.offset, shape.spared)


@dataclass(frozen=True)
class Candidate:
    """A multistep solver with weights fitted by least squares, and its error."""

    loss: float  # robust error on the samples that it was fitted to
    name: str  # for people
    run: Run
    afs: bool  # whether the first step is analytic
    refined: bool = False  # whether its times were refined

    @property
    def cost(self) -> int:
        """Evaluations per sample of one refinement of the noise levels (VariableProjection.refine)."""
        moves = len(self.run.sigmas) - 2
        return moves * (moves + 1) // 2 + len(DAMPINGS) * (moves + 1 - self.afs)


@dataclass(frozen=True)
class VariableProjection:
    """Fits a multistep solver's weights and noise levels to samples with known reference trajectories.

    The weights follow by least squares for any noise levels, so only the noise levels are searched."""

    model: Denoiser
    samples: Samples
    path: Path  # reference trajectories of the samples
    scale: float = 1.0  # of the robust error, a mean squared error
    batch: int = 16  # most samples in one call of the model
    lags: int = LAGS  # most slopes whose weights are fitted
    evaluate: Evaluate = denoised_only  # how the model is called

    @torch.no_grad()
    def run(self, sigmas: Tensor, afs: bool, shape: Shape, earlier: Run | None = None, since: int = 0) -> Run:
        """Run a multistep solver on given noise levels, and fit the weights of each step on the way.

        Args:
            sigmas: noise levels, float64 `[N+1]`.
            afs: whether the first step is analytic.
            shape: settings of the weights, e.g. whether each band of spatial frequency has its own.
            earlier: a run with the same noise levels up to index `since`, to continue from.
            since: first step whose weights are fitted; those of the steps before are copied from
                `earlier`.
        """
        noise, steps, parts = self.samples.noise, len(sigmas) - 1, PARTS[shape.parts]
        usual = as_multistep(fallback(), sigmas, afs).weights[..., 0]
        weights = torch.zeros(steps, min(self.lags, steps), parts.count, dtype=torch.float64)
        offset = torch.zeros(steps, noise.shape[1] if shape.offset else 0, dtype=torch.float64)
        state = State(noise.to(torch.promote_types(noise.dtype, torch.float32)) * float(sigmas[0]))
        before: list[State] = []
        if earlier is not None:
            weights[:since] = earlier.weights[:since]
            if earlier.offset is not None:
                offset[:since] = earlier.offset[:since]
            before, state = earlier.states[:since], earlier.states[since]

        def decide(n: int, state: State) -> Weights:
            """Fit the weights and the offset of step n; return the weights times the step's length.

            The offset, a constant that the step adds to each channel, is written into shifts[n]."""
            t, t_next = sigmas[n : n + 2].tolist()
            hand = list(reversed(state.slopes))[: weights.shape[1]]
            slots = [
                (k, s) for k, slope in enumerate(hand) for s, part in enumerate(slope) if part is not None
            ]
            wanted = (self.path.at(t_next).to(state.x) - state.x) / (t_next - t)
            products = [self.products(hand, wanted, p, shape) for p in self.slices]
            prior = torch.tensor([simpler(usual[n], hand, k, s) for k, s in slots], dtype=torch.float64)
            prior = torch.cat([prior, prior.new_zeros(offset.shape[1])])
            groups = band_groups(parts, slots, len(prior))
            solution = best_weights(torch.cat(products), prior, shape.ridge, groups)
            for (k, s), w in zip(slots, solution.tolist()):
                weights[n, k, s] = w
            offset[n] = solution[len(slots) :]
            shifts[n].copy_(((t_next - t) * offset[n]).to(shifts[n]).view(shifts[n].shape))
            return tuple(map(tuple, ((t_next - t) * weights[n, : len(hand)]).tolist()))

        like = state.x.new_zeros(offset.shape[1], *[1] * (state.x.ndim - 2))
        shifts = [like.clone() for _ in range(steps)]

        def rows() -> Iterator[Row]:
            for n in range(since, steps):
                wants = frozenset({"cond"} if n in shape.spared else ())
                shift = shifts[n] if shape.offset else None
                weigh = partial(decide, n)
                yield Row(float(sigmas[n]), weigh, analytic=afs and n == 0, wants=wants, offset=shift)

        evaluate = in_batches(self.batch, self.evaluate)
        problem = Problem(self.model, self.samples.args, evaluate, noise.dtype, parts)
        states = list(loop(problem, rows(), state))
        looked = [state for state in states if state.looked]
        return Run(sigmas, weights, [*before, *looked, states[-1]], shape, offset if shape.offset else None)

    @property
    def slices(self) -> list[slice]:
        """The slices of the samples that are computed at once."""
        return [slice(i, i + self.batch) for i in range(0, len(self.samples), self.batch)]

    def products(self, hand: Sequence[tuple[Tensor | None, ...]], wanted: Tensor, part: slice,
                 shape: Shape) -> Tensor:  # fmt: skip
        """Return the inner products from which a step's weights and offsets follow by least squares.

        Offsets are constants that the step adds to the channels.

        Args:
            hand: stored slopes, newest first, each split into parts, e.g. bands of spatial frequency.
            wanted: slope `[n, ...]` that leads to the reference at the step's end.
            part: slice of the samples to compute for.
            shape: settings of the weights, e.g. whether each band of spatial frequency has its own.

        Returns:
            `[n, k+1, k+1]`: first the k unknowns (parts of slopes, then offsets of channels), last the
            wanted slope.
        """
        split = PARTS[shape.parts]
        columns = [
            v for slope in hand for v in split.full([None if d is None else d[part] for d in slope])
            if v is not None
        ]  # fmt: skip
        # [n, k + 1, C, pixels]; slopes are nearly parallel, and float32 here cost a fit up to 66 % more error
        basis = as_double(torch.stack([*columns, wanted[part]], dim=1).flatten(3))
        flat = basis.flatten(2)
        inner = flat @ flat.mT
        if not shape.offset:
            return inner
        sums = basis.sum(dim=3)  # inner products with the image that is 1 in one channel
        squares = torch.eye(sums.shape[2], dtype=torch.float64).expand(len(sums), -1, -1) * basis.shape[3]
        k = len(columns)
        upper = torch.cat([inner[:, :k, :k], sums[:, :k], inner[:, :k, k:]], dim=2)
        middle = torch.cat([sums[:, :k].mT, squares, sums[:, k:].mT], dim=2)
        lower = torch.cat([inner[:, k:, :k], sums[:, k:], inner[:, k:, k:]], dim=2)
        return torch.cat([upper, middle, lower], dim=1)

    def loss(self, run: Run) -> float:
        """Return the robust error (by Cauchy's loss) of a run's end states to those of converged runs."""
        return robust(per_sample(run.end, self.samples.end), self.scale)

    def candidate(
        self, sigmas: Tensor, afs: bool, shape: Shape, name: str, refined: bool = False
    ) -> Candidate:
        """Fit the weights of a multistep solver on given noise levels.

        Args:
            sigmas: noise levels, float64 `[N+1]`.
            afs: whether the first step is analytic.
            shape: settings of the weights, e.g. whether each band of spatial frequency has its own.
            name: name of the fit, for people.
            refined: whether the noise levels were refined.
        """
        run = self.run(sigmas, afs, shape)
        return Candidate(self.loss(run), name, run, afs, refined)

    def schedules(self, settings: list[Setting], shape: Shape) -> Generator[str, None, list[Candidate]]:
        """Fit a multistep solver's weights on each schedule of `settings` by least squares.

        Yields lines of progress; returns the fitted solvers, best first."""
        tried = []
        for setting in settings:
            name = f"closed form on {setting.schedule}"
            tried.append(self.candidate(setting.sigmas(), setting.afs, shape, name))
            yield f"{name}: {tried[-1].loss:.4f}"
        return sorted(tried, key=lambda candidate: candidate.loss)

    def refine(self, start: Candidate, wide: float) -> Generator[str, None, Candidate]:
        """Run one Gauss-Newton iteration on the noise levels of a multistep solver.

        For all noise levels that are tried, the weights are fitted again by least squares.

        Args:
            start: the solver to refine.
            wide: width of the finite differences in log sigma, as a share of the distance to the nearer
                neighbouring noise level. Narrow ones fail from NFE 7 on, because the loss is not smooth.

        Yields:
            Lines of progress.

        Returns:
            The best of the trials and `start`.
        """
        run, name = start.run, f"{start.name.removesuffix(', times refined')}, times refined"
        logs, reach = run.sigmas.log(), PARAMETERS["t"].reach
        equations = NormalEquations(len(logs) - 2)

        def moved() -> Iterator[tuple[Tensor, float]]:
            for n in range(1, len(logs) - 1):
                sigmas, step = run.sigmas.clone(), wide * float((-logs.diff())[n - 1 : n + 1].min())
                sigmas[n] *= math.exp(step)
                yield self.run(sigmas, start.afs, run.shape, run, n - 1).end, step

        def attempt(step: Tensor) -> tuple[float, Candidate]:
            sigmas = run.sigmas.clone()
            sigmas[1:-1] = ordered(logs, logs[1:-1] - step.clamp(-reach, reach)).exp()
            refined = self.candidate(sigmas, start.afs, run.shape, name, True)
            return refined.loss, refined

        yield from equations.add(start.name, run.end, self.samples.end, self.scale, moved())
        tried = yield from equations.trials(name, attempt)
        return min([start, *(candidate for _, candidate in tried)], key=lambda c: c.loss)


def band_groups(parts: Parts, slots: list[tuple[int, int]], count: int) -> Tensor:
    """Return groups of weights; a fit is regularised towards equal weights within each group.

    A group has the weights on all bands of spatial frequency of one slope; if slopes are also split by
    guidance, the conditional and the unconditional half each have a group. Each offset (a constant that is
    added to a channel) is a group of its own.

    Args:
        parts: how slopes are split, e.g. into bands of spatial frequency.
        slots: (lag, part) of each weight: the age of its slope in steps, and the index of the part.
        count: number k of all weights and offsets.

    Returns:
        `[k, m]`: 1 where a weight or offset belongs to one of the m groups, 0 elsewhere.
    """
    levels = parts.levels or (0,) * parts.count
    of = [*((k, s - levels[s]) for k, s in slots), *((n, -1) for n in range(count - len(slots)))]
    groups = list(dict.fromkeys(of))
    return torch.tensor([[float(group == name) for group in groups] for name in of], dtype=torch.float64)


def simpler(plain_weights: Tensor, hand: Sequence[tuple[Tensor | None, ...]], lag: int, part: int) -> float:
    """Return the value towards which the fit pulls one weight (as in ridge regression).

    It is the weight of the unfitted solver. A slope is split into parts with a weight each, e.g. its
    conditional and its unconditional part. If the newest slope lacks the part (it was not evaluated), the
    newest slope that has it gets the sum of all weights, and the others get 0.

    Args:
        plain_weights: the unfitted solver's weights on the slopes, newest first.
        hand: stored slopes, newest first, split into parts; a part is None where it was not evaluated.
        lag: index of the slope in `hand`.
        part: index of the part.
    """
    if hand[0][part] is not None:
        return float(plain_weights[lag]) if lag < len(plain_weights) else 0.0
    newest = next(k for k, slope in enumerate(hand) if slope[part] is not None)
    return float(plain_weights.sum()) if lag == newest else 0.0


def best_weights(
    products: Tensor, prior: Tensor, ridge: float = 1e-6, groups: Tensor | None = None
) -> Tensor:
    """Return the weights `[k]` of slopes whose weighted sum comes nearest to a wanted slope.

    They are found by least squares, with less weight on samples with a large error (Cauchy's loss), so
    that a sample that ends in another image does not decide.

    Args:
        products: `[n, k+1, k+1]`, inner products of the slopes and the wanted one, see
            VariableProjection.products.
        prior: weights `[k]` of the unfitted solver.
        ridge: strength of the pull towards the simpler weights that `groups` states, relative to the
            diagonal of the normal equations.
        groups: `[k, m]`, see `band_groups`: the simpler weights are fitted, but equal within each group.
            None: they are `prior`.
    """
    count, w = len(prior), prior.clone()
    gram, right, square = products[:, :count, :count], products[:, :count, count], products[:, count, count]
    for _ in range(ROUNDS):
        errors = (square - 2 * right @ w + torch.einsum("k,nkl,l->n", w, gram, w)).clamp(min=0)
        trust = 1 / (1 + errors / errors.median().clamp(min=1e-30))
        matrix, vector = torch.einsum("n,nkl->kl", trust, gram), trust @ right
        simple = prior
        if groups is not None:
            first = groups.T @ prior / groups.sum(dim=0)
            matrix_m, vector_m = groups.T @ matrix @ groups, groups.T @ vector
            simple = groups @ ridge_solution(matrix_m, vector_m, first, SIMPLER * ridge)
        w = ridge_solution(matrix, vector, simple, ridge)
    return w


def ridge_solution(matrix: Tensor, vector: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """Solve the normal equations `[k, k]`, `[k]` with each unknown pulled towards `prior`.

    The strength of the pull is `ridge` times the unknown's own diagonal element."""
    squares = matrix.diagonal()
    pull = torch.diag(ridge * squares.clamp(min=1e-9 * float(squares.max()) + 1e-30))
    solution: Tensor = prior + torch.linalg.solve(matrix + pull, vector - matrix @ prior)
    return solution
