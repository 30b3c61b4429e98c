"""Algorithm 1: fit a predictor by gradient, interval by interval, to a teacher's states.

    for progress in train(denoiser, solver, predictor, times, draw, teacher=Teacher(Solver("heun"), extra=1)):
        print(progress.images, progress.loss)

Works on any denoiser a gradient can pass through; a BottleneckPredictor also needs an `evaluate` that gives
the bottleneck."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import schedules
from ..kdiffusion import solver_of
from ..loop import Denoiser, Evaluate, Evaluation, Problem, State, denoised_only, loop
from ..recipes import Solver
from ..run import rows_of, states
from .measures import rmse
from .target import Draw, seeded

HELD_OUT = 1_000_003  # added to the seed for the noises that choose the best state


@dataclass(frozen=True)
class Teacher:
    """A plain solver with `extra` (M) more points inside each interval, along the same schedule, without
    AFS."""

    solver: Solver = field(default_factory=lambda: Solver("heun"))
    extra: int = 1

    def times(self, kind: str, num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
        """The teacher's schedule, float64 `[(extra + 1) (num_steps - 1) + 1]`."""
        return schedules.make(kind, (self.extra + 1) * (num_steps - 1) + 1, sigma_min, sigma_max, rho)

    @torch.no_grad()
    def states(self, model: Denoiser, x: Tensor, times: Tensor, extra_args: dict[str, Any]) -> list[Tensor]:
        """The teacher's states at the student's base times after the first; x at times[0]."""
        run = states(Problem(model, extra_args), self.solver, x, times)
        return [state.x for i, state in enumerate(run, 1) if i % (self.extra + 1) == 0]


def checkpointed(evaluate: Evaluate) -> Evaluate:
    """The same, its activations recomputed in the backward pass: memory of one network pass less."""

    def ask(
        model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
    ) -> Evaluation:
        if not torch.is_grad_enabled():
            return evaluate(model, x, sigma, extra_args, wants)
        return Evaluation(checkpoint(lambda a, b: model(a, b, **extra_args), x, sigma, use_reentrant=False))

    return ask


def losses(problem: Problem, solver: Solver, predictor: nn.Module, x: Tensor, base: Tensor,
           targets: list[Tensor], afs: bool) -> Iterator[Tensor]:  # fmt: skip
    """The loss of each interval, from high noise to low, with a gradient to the predictor: squared error to
    the teacher's state, summed over a sample's values, averaged over the batch (the update belongs between
    two).

    x at base[0]; `base` `[N]`; `targets` N-1 states. A single-step student starts every interval from the
    teacher's state, a multistep one goes on from its own."""
    times, starts = base.tolist(), [x, *targets[:-1]] if solver.single_step else [x]

    def ends() -> Iterator[Tensor]:
        for i, start in enumerate(starts):
            part = times[i : i + 2] if solver.single_step else times
            run = loop(problem, rows_of(solver, part, predictor, afs and i == 0, x), State(start))
            yield from (state.x for state in run if not state.looked and state.row.closes)

    for end, target in zip(ends(), targets):
        yield (end - target).square().sum() / len(x)


@dataclass(frozen=True)
class Settings:
    """How long and how fast: `images` trajectories in batches of `batch`; Adam at `lr`, falling along a
    cosine to a tenth; `seed` draws the noise; every `every` batches the error of `held_out` other noises is
    measured.

    `balanced`: each interval's loss is divided by its own running mean. The first interval's loss is a
    hundred times the last one's, and without this Adam's step size, shared by all intervals in the network,
    is set by the first alone: the later ones, which decide the image, hardly learn. The loss itself stays the
    paper's."""

    images: int = 10_000
    batch: int = 64
    held_out: int = 64
    lr: float = 5e-3
    seed: int = 0
    every: int = 5
    betas: tuple[float, float] = (0.9, 0.999)
    balanced: bool = True
    checkpointing: bool = False


@dataclass
class Progress:
    """After a batch: images seen, losses per interval of this batch, the held-out error measured last and at
    its best, whether it was measured just now; `state()`: from which `train` resumes, as it stands when it is
    called."""

    images: int
    losses: list[float]
    held_out: float
    best: float
    measured: bool
    state: Callable[[], dict[str, Any]]

    @property
    def loss(self) -> float:
        return sum(self.losses)


def train(
    model: Denoiser, solver: Solver, predictor: nn.Module, times: Tensor, draw: Draw, teacher: Teacher,
    settings: Settings = Settings(), *, afs: bool = False, evaluate: Evaluate | None = None,
    error: Callable[[Tensor, Tensor, dict[str, Any]], float] | None = None,
    resume: dict[str, Any] | None = None,
) -> Iterator[Progress]:  # fmt: skip
    """Fit `predictor` in place; a generator that yields after every batch. When it ends or is closed, the
    predictor holds the best held-out state, never the last.

    model: frozen by the caller's choice or not, its weights get no gradient here. times: the *teacher's*
    times, from Teacher.times; the student's base times are every (extra + 1)-th. draw(generator, count) -> (x
    at times[0] `[count, ...]`, extra_args). error(end, x, extra_args) -> what the best held-out state is
    chosen by, from the student's end states; default: root mean square distance to the teacher's. resume:
    `Progress.state()` of an earlier run with the same settings.

    Gradients that are not finite are replaced by 0 (as the authors do), a loss that is not finite leaves its
    interval out. Raises NotFiniteError if the model itself returns NaN for a teacher."""
    base = times[:: teacher.extra + 1]
    ask = checkpointed(evaluate or denoised_only) if settings.checkpointing else evaluate or denoised_only
    generator = seeded(settings.seed)
    held_x, held_args = draw(seeded(settings.seed + HELD_OUT), settings.held_out)
    truth = teacher.states(model, held_x, times, held_args)[-1] if error is None else held_x
    optimiser = torch.optim.Adam(predictor.parameters(), lr=settings.lr, betas=settings.betas)
    frozen = [p for p in getattr(model, "parameters", lambda: ())() if p.requires_grad]
    now: dict[str, Any] = {"images": 0, "batches": 0, "usual": {}}

    def measure() -> float:
        with torch.no_grad():
            *_, end = states(Problem(model, held_args, ask), solver, held_x, base, predictor, afs)
        return rmse(end.x, truth) if error is None else error(end.x, held_x, held_args)

    def snapshot() -> dict[str, Any]:
        own = {"predictor": predictor.state_dict(), "optimiser": optimiser.state_dict()}
        return copy.deepcopy(own | now) | {"generator": generator.get_state()}

    predictor.requires_grad_(True)
    if resume is None:
        now["held_out"] = now["best"] = measure()
        now["best_state"] = copy.deepcopy(predictor.state_dict())
    else:
        predictor.load_state_dict(resume["predictor"])
        optimiser.load_state_dict(resume["optimiser"])
        generator.set_state(resume["generator"])
        now = {
            k: copy.deepcopy(v) for k, v in resume.items() if k not in ("predictor", "optimiser", "generator")
        }
    for p in frozen:
        p.requires_grad_(False)
    try:
        while now["images"] < settings.images:
            for group in optimiser.param_groups:
                share = min(now["images"] / settings.images, 1)
                group["lr"] = settings.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
            x, extra_args = draw(generator, settings.batch)
            targets = teacher.states(model, x, times, extra_args)
            run = losses(Problem(model, extra_args, ask), solver, predictor, x, base, targets, afs)
            batch = []
            with torch.enable_grad():
                for i, loss in enumerate(run):
                    batch.append(loss.item())
                    optimiser.zero_grad(set_to_none=True)
                    if not math.isfinite(batch[-1]):
                        continue
                    if settings.balanced:
                        usual = now["usual"][i] = 0.8 * now["usual"].get(i, batch[-1]) + 0.2 * batch[-1]
                        loss = loss / max(usual, 1e-12)
                    torch.autograd.backward(loss)
                    for p in predictor.parameters():
                        if p.grad is not None:
                            torch.nan_to_num(p.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=p.grad)
                    optimiser.step()
            now["images"], now["batches"] = now["images"] + len(x), now["batches"] + 1
            if measured := now["batches"] % settings.every == 0 or now["images"] >= settings.images:
                now["held_out"] = measure()
                if now["held_out"] < now["best"]:
                    now |= {"best": now["held_out"], "best_state": copy.deepcopy(predictor.state_dict())}
            yield Progress(now["images"], batch, now["held_out"], now["best"], measured, snapshot)
    finally:
        predictor.load_state_dict(now["best_state"])
        predictor.requires_grad_(False)
        for p in frozen:
            p.requires_grad_(True)


@dataclass(frozen=True)
class Plan:
    """How Algorithm 1 reaches a number of evaluations: the student, its N base times, AFS or not, the
    teacher."""

    solver: Solver
    num_steps: int
    afs: bool
    teacher: Teacher

    @property
    def points(self) -> int:
        """The teacher's number of times."""
        return (self.teacher.extra + 1) * (self.num_steps - 1) + 1


def plan(sampler: str, nfe: int, extra: int = 1, may_afs: bool = True) -> Plan:
    """For a sampler of two evaluations an interval; an odd `nfe` takes the analytic first step. The teacher
    is Heun for AMED-Solver and DPM-Solver-2, else the plugin's own solver, with `extra` more points inside
    each interval.

    Raises ValueError for a sampler without a network, an nfe below 2, or an odd one where AFS is not
    allowed."""
    solver, afs = solver_of(sampler), bool(nfe % 2)
    if not solver.has_recipe:
        raise ValueError(f"{sampler} has no network to train: calibrate it")
    if nfe < 2 or (afs and not may_afs):
        allowed = "at least 2" if may_afs else "an even number"
        raise ValueError(f"nfe is {nfe}: {sampler} on this model takes {allowed}")
    teacher = Teacher(solver if solver.recipe.teaches else Solver("heun"), extra)
    return Plan(solver, (nfe + afs) // 2 + 1, afs, teacher)
