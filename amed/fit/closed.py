"""Variable projection: of a table only the times are searched, its weights follow in closed form.

The student runs once, and at each step the weights of its slopes (of their parts, and the offset) are those
that bring it nearest to where the reference is at the next time. A step is linear in them, so a least-squares
problem of a few unknowns gives them; it costs no evaluation beyond the run itself. What times are worth with
the best weights *on them* is then known for the price of sampling, and Gauss-Newton moves the times, the
weights following at every trial.

Also tried, on the demo model, and left out: weights that follow the sample (its norm, its slopes' ratios,
what its image does locally: worse than constants, or 3 % better), the level the model is told as a second
unknown of each step, a common correction of each step's weights that the end state chooses, each step's
energy by band as the reference's (15 % less Frechet distance, 1 % more error), an offset for each place of
the image (8 % better on emoji, which all stand in the middle), bands by FFT or cosines (as good as a pyramid,
and slower)."""

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
from .forms import ordered
from .plain import Setting
from .samples import Path, Samples, in_batches, per_sample, robust

LAGS = 4  # slopes whose weights are fitted: more cost evaluations and brought nothing
ROUNDS = 3  # of reweighting
SIMPLER = 0.1  # how strongly the simpler table itself is pulled, in shares of the ridge
DAMPINGS = (5e-2, 5e-1, 5.0)


@dataclass(frozen=True)
class Shape:
    """What a table is made of: how its slopes are split, whether each channel has an offset, how strongly
    the weights are pulled towards the simpler table's (in shares of each slope's own square), and the rows
    whose evaluation leaves the unconditional half out."""

    parts: str = ""
    offset: bool = False
    ridge: float = 1e-6
    alone: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """For people."""
        made = [*filter(None, self.parts.split("+")), *["offset"] * self.offset]
        return f"{' and '.join(made) or 'whole slopes'}, ridge {self.ridge:g}"


@dataclass(frozen=True)
class Run:
    """A student's run with weights found on the way: its times, weights `[N, H, S]`, offsets `[N, C]`, and
    the state at every time (at the last, the end; before it, looked at)."""

    sigmas: Tensor
    weights: Tensor
    states: list[State]
    shape: Shape = field(default_factory=Shape)
    offset: Tensor | None = None

    @property
    def end(self) -> Tensor:
        return self.states[-1].x

    @property
    def table(self) -> Multistep:
        shape = self.shape
        return Multistep(self.sigmas, self.weights, None, shape.parts, self.offset, shape.alone)


@dataclass(frozen=True)
class Candidate:
    """A run with weights in closed form, its loss on the samples it was found on, and what it is."""

    loss: float
    name: str
    run: Run
    afs: bool
    refined: bool = False

    @property
    def cost(self) -> int:
        """Evaluations of `refine`, of each sample."""
        moves = len(self.run.sigmas) - 2
        return moves * (moves + 1) // 2 + len(DAMPINGS) * (moves + 1 - self.afs)


@dataclass(frozen=True)
class ClosedForm:
    """Fits weights on at most `lags` slopes, and times, to samples whose reference trajectories are known.
    `scale`: of the robust error."""

    model: Denoiser
    samples: Samples
    path: Path
    scale: float = 1.0
    batch: int = 16
    lags: int = LAGS
    evaluate: Evaluate = denoised_only

    @torch.no_grad()
    def run(self, sigmas: Tensor, afs: bool, shape: Shape, known: Run | None = None, since: int = 0) -> Run:
        """With the best weights on `sigmas` `[N+1]`, float64, from interval `since` on. known: an earlier run
        whose times up to and including number `since` are the same; what came before is taken from it."""
        noise, steps, parts = self.samples.noise, len(sigmas) - 1, PARTS[shape.parts]
        usual = as_multistep(fallback(), sigmas, afs).weights[..., 0]
        weights = torch.zeros(steps, min(self.lags, steps), parts.count, dtype=torch.float64)
        offset = torch.zeros(steps, noise.shape[1] if shape.offset else 0, dtype=torch.float64)
        state = State(noise.to(torch.promote_types(noise.dtype, torch.float32)) * float(sigmas[0]))
        before: list[State] = []
        if known is not None:
            weights[:since] = known.weights[:since]
            if known.offset is not None:
                offset[:since] = known.offset[:since]
            before, state = known.states[:since], known.states[since]

        def decide(n: int, state: State) -> Weights:
            """Row n's weights; its offset is written where the row has it."""
            t, t_next = sigmas[n : n + 2].tolist()
            hand = list(reversed(state.slopes))[: weights.shape[1]]
            slots = [(k, s) for k, kept in enumerate(hand) for s, part in enumerate(kept) if part is not None]
            wanted = (self.path.at(t_next).to(state.x) - state.x) / (t_next - t)
            products = [self.products(hand, wanted, p, shape) for p in self.slices]
            prior = torch.tensor([simpler(usual[n], hand, k, s) for k, s in slots], dtype=torch.float64)
            prior = torch.cat([prior, prior.new_zeros(offset.shape[1])])
            found = best_weights(torch.cat(products), prior, shape.ridge, alike(parts, slots, len(prior)))
            for (k, s), w in zip(slots, found.tolist()):
                weights[n, k, s] = w
            offset[n] = found[len(slots) :]
            shifts[n].copy_(((t_next - t) * offset[n]).to(shifts[n]).view(shifts[n].shape))
            return tuple(map(tuple, ((t_next - t) * weights[n, : len(hand)]).tolist()))

        like = state.x.new_zeros(offset.shape[1], *[1] * (state.x.ndim - 2))
        shifts = [like.clone() for _ in range(steps)]

        def rows() -> Iterator[Row]:
            for n in range(since, steps):
                wants = frozenset({"cond"} if n in shape.alone else ())
                shift = shifts[n] if shape.offset else None
                weigh = partial(decide, n)
                yield Row(float(sigmas[n]), weigh, analytic=afs and n == 0, wants=wants, offset=shift)

        ask = in_batches(self.batch, self.evaluate)
        problem = Problem(self.model, self.samples.args, ask, noise.dtype, parts)
        states = list(loop(problem, rows(), state))
        looked = [state for state in states if state.looked]
        own = offset if shape.offset else None
        return Run(sigmas, weights, [*before, *looked, states[-1]], shape, own)

    @property
    def slices(self) -> list[slice]:
        return [slice(i, i + self.batch) for i in range(0, len(self.samples), self.batch)]

    def products(self, hand: Sequence[tuple[Tensor | None, ...]], wanted: Tensor, part: slice,
                 shape: Shape) -> Tensor:  # fmt: skip
        """Inner products `[n, k+1, k+1]` of some samples' slopes (by parts), channels, and what is wanted."""
        split = PARTS[shape.parts]
        columns = [
            v for kept in hand for v in split.full([None if d is None else d[part] for d in kept])
            if v is not None
        ]  # fmt: skip
        # [n, k + 1, C, pixels]; slopes are nearly parallel, and float32 here cost a fit up to 66 % more error
        basis = as_double(torch.stack([*columns, wanted[part]], dim=1).flatten(3))
        flat = basis.flatten(2)
        inner = flat @ flat.mT
        if not shape.offset:
            return inner
        sums = basis.sum(dim=3)  # with an image that is 1 in one channel
        own = torch.eye(sums.shape[2], dtype=torch.float64).expand(len(sums), -1, -1) * basis.shape[3]
        k = len(columns)
        upper = torch.cat([inner[:, :k, :k], sums[:, :k], inner[:, :k, k:]], dim=2)
        middle = torch.cat([sums[:, :k].mT, own, sums[:, k:].mT], dim=2)
        lower = torch.cat([inner[:, k:, :k], sums[:, k:], inner[:, k:, k:]], dim=2)
        return torch.cat([upper, middle, lower], dim=1)

    def loss(self, run: Run) -> float:
        return robust(per_sample(run.end, self.samples.end), self.scale)

    def candidate(
        self, sigmas: Tensor, afs: bool, shape: Shape, name: str, refined: bool = False
    ) -> Candidate:
        run = self.run(sigmas, afs, shape)
        return Candidate(self.loss(run), name, run, afs, refined)

    def schedules(self, settings: list[Setting], shape: Shape) -> Generator[str, None, list[Candidate]]:
        """The settings' schedules, best first; yields what it is doing."""
        tried = []
        for setting in settings:
            name = f"closed form on {setting.schedule}"
            tried.append(self.candidate(setting.sigmas(), setting.afs, shape, name))
            yield f"{name}: {tried[-1].loss:.4f}"
        return sorted(tried, key=lambda candidate: candidate.loss)

    def refine(self, start: Candidate, wide: float) -> Generator[str, None, Candidate]:
        """One Gauss-Newton iteration on the times, whose weights follow, with Cauchy's weights of the
        samples: where it led, the start itself where nowhere better; yields what it is doing.

        wide: derivatives are secants, over this share of the gap to the nearer of a time's neighbours. Images
        that jump make the loss rough: narrow ones see nothing else, and lead nowhere from NFE 7 on."""
        run, best, name = start.run, start, f"{start.name.removesuffix(', times refined')}, times refined"
        weight = (1 / (1 + per_sample(run.end, self.samples.end) / self.scale)).sqrt().to(run.end)[:, None]
        residual = ((run.end - self.samples.end.to(run.end)).flatten(1) * weight).flatten()
        logs, rows, reach = run.sigmas.log(), [], PARAMETERS["t"].reach
        for n in range(1, len(logs) - 1):
            sigmas, step = run.sigmas.clone(), wide * float((-logs.diff())[n - 1 : n + 1].min())
            sigmas[n] *= math.exp(step)
            moved = self.run(sigmas, start.afs, run.shape, run, n - 1)
            rows.append(((moved.end - run.end).flatten(1) * weight / step).flatten())
            yield f"{start.name}: time {n} of {len(logs) - 2}"
        jacobian = torch.stack(rows)
        matrix, vector = (as_double(jacobian @ v) for v in (jacobian.T, residual))
        for damping in DAMPINGS:
            move = torch.linalg.solve(matrix + torch.diag(damping * matrix.diagonal() + 1e-30), vector)
            sigmas = run.sigmas.clone()
            sigmas[1:-1] = ordered(logs, logs[1:-1] - move.clamp(-reach, reach)).exp()
            refined = self.candidate(sigmas, start.afs, run.shape, name, True)
            best = min(best, refined, key=lambda c: c.loss)
            yield f"{name}, damping {damping:g}: {refined.loss:.4f}"
        return best


def alike(parts: Parts, slots: list[tuple[int, int]], count: int) -> Tensor:
    """Of weights by (lag, part), and then offsets, which of the simpler table's each has, `[count, m]`: bands
    have the same."""
    levels = parts.levels or (0,) * parts.count
    of = [*((k, s - levels[s]) for k, s in slots), *((n, -1) for n in range(count - len(slots)))]
    names = list(dict.fromkeys(of))
    return torch.tensor([[float(name == one) for name in names] for one in of], dtype=torch.float64)


def simpler(usual: Tensor, hand: Sequence[tuple[Tensor | None, ...]], lag: int, part: int) -> float:
    """The weight that a slope's part has in the simpler table: `usual` by lag, the same for all parts; where
    the newest slope lacks this part, the newest there is stands in for all."""
    if hand[0][part] is not None:
        return float(usual[lag]) if lag < len(usual) else 0.0
    newest = next(k for k, kept in enumerate(hand) if kept[part] is not None)
    return float(usual.sum()) if lag == newest else 0.0


def best_weights(products: Tensor, prior: Tensor, ridge: float = 1e-6, alike: Tensor | None = None) -> Tensor:
    """Weights w `[k]` for which the sum of w times slopes is nearest to what is wanted, by reweighted least
    squares with Cauchy's weights, so that a sample that goes elsewhere does not decide. products `[n, k+1,
    k+1]`: each sample's inner products of its slopes and, last, what is wanted.

    ridge: pull, in shares of each slope's own square, towards the simpler table. alike `[k, m]`: of each
    slope which of the m weights of that table it has, 1 there (a slope's parts have the same); those are
    found in the same way, a tenth as strongly pulled towards `prior`. None: `prior` is that table."""
    count, w = len(prior), prior.clone()
    gram, right, square = products[:, :count, :count], products[:, :count, count], products[:, count, count]
    for _ in range(ROUNDS):
        errors = (square - 2 * right @ w + torch.einsum("k,nkl,l->n", w, gram, w)).clamp(min=0)
        trust = 1 / (1 + errors / errors.median().clamp(min=1e-30))
        matrix, vector = torch.einsum("n,nkl->kl", trust, gram), trust @ right
        simple = prior
        if alike is not None:
            first = alike.T @ prior / alike.sum(dim=0)
            simple = alike @ pulled(alike.T @ matrix @ alike, alike.T @ vector, first, SIMPLER * ridge)
        w = pulled(matrix, vector, simple, ridge)
    return w


def pulled(matrix: Tensor, vector: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """Least squares by its normal equations, each unknown pulled to `prior` in shares of its own square."""
    own = matrix.diagonal()
    pull = torch.diag(ridge * own.clamp(min=1e-9 * float(own.max()) + 1e-30))
    found: Tensor = prior + torch.linalg.solve(matrix + pull, vector - matrix @ prior)
    return found
