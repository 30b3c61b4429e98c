"""The paper's Algorithm 1: fit a predictor by gradient, interval by interval, to a teacher's states.

    for progress in train(denoiser, solver, predictor, times, draw, teacher=Teacher(Solver("heun"), extra=1)):
        print(progress.images, progress.loss)

It works with any denoiser that is differentiable in x; a BottleneckPredictor also needs an `evaluate` that
returns the bottleneck."""

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
    """A plain solver with more evaluations than the student, the solver to train.

    The student is trained to reach the teacher's states at the end of each of its intervals."""

    solver: Solver = field(default_factory=lambda: Solver("heun"))
    extra: int = 1  # additional points inside each interval, the paper's M

    def times(self, kind: str, num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
        """Return the teacher's noise levels, float64: the student's, and `extra` more between each two.

        Args:
            kind: kind of the schedule, a name of schedules.KINDS.
            num_steps: number of noise levels in the student's schedule.
            sigma_min: lowest noise level.
            sigma_max: highest noise level.
            rho: exponent of the schedule, e.g. 7: uniform in sigma^(1/7) for "polynomial".
        """
        return schedules.make(kind, (self.extra + 1) * (num_steps - 1) + 1, sigma_min, sigma_max, rho)

    @torch.no_grad()
    def states(self, model: Denoiser, x: Tensor, times: Tensor, extra_args: dict[str, Any]) -> list[Tensor]:
        """Return the teacher's states `[n, ...]` at all noise levels of the student's schedule but the first.

        Args:
            model: the denoiser.
            x: states `[n, ...]` at times[0].
            times: the teacher's noise levels, from `times()`.
            extra_args: further arguments of the model.
        """
        run = states(Problem(model, extra_args), self.solver, x, times)
        return [state.x for i, state in enumerate(run, 1) if i % (self.extra + 1) == 0]


def checkpointed(evaluate: Evaluate) -> Evaluate:
    """Wrap `evaluate`, which calls the model, so that the backward pass recomputes activations.

    This saves memory. While gradients are enabled, it returns only the denoised image, not the bottleneck
    features or the halves of guidance that `evaluate` may return as well."""

    def evaluate_checkpointed(
        model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
    ) -> Evaluation:
        if not torch.is_grad_enabled():
            return evaluate(model, x, sigma, extra_args, wants)
        return Evaluation(checkpoint(lambda a, b: model(a, b, **extra_args), x, sigma, use_reentrant=False))

    return evaluate_checkpointed


def losses(problem: Problem, solver: Solver, predictor: nn.Module, x: Tensor, base: Tensor,
           targets: list[Tensor], afs: bool) -> Iterator[Tensor]:  # fmt: skip
    """Yield the training loss of each interval of the student's schedule, from high noise to low.

    It is the squared error to the teacher's state at the interval's end, summed over a sample's values and
    averaged over the batch. Update the predictor after each loss. A single-step student starts every
    interval from the teacher's state, a multistep one from its own.

    Args:
        problem: the model and its arguments.
        solver: the student, whose constants the predictor gives.
        predictor: the module to train; the losses have gradients with respect to its weights.
        x: states `[n, ...]` at base[0], where the run starts.
        base: noise levels `[N]` of the student's schedule.
        targets: the teacher's states `[n, ...]` at base[1:].
        afs: whether the first step is analytic.
    """
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
    """Settings of a training run: its length, its optimiser and its noise."""

    images: int = 10_000  # trajectories in all
    batch: int = 64  # trajectories per update of each interval
    held_out: int = 64  # other noises, by which the best state is chosen
    lr: float = 5e-3  # Adam's learning rate at the start; it falls along a cosine to a tenth
    seed: int = 0  # of the noise
    every: int = 5  # batches between two measurements of the held-out error
    betas: tuple[float, float] = (0.9, 0.999)  # Adam's
    # Divide each interval's loss by its running mean. The first interval's loss is a hundred times the last
    # one's; without this it alone sets Adam's step size, and the later intervals, which decide the image,
    # hardly learn.
    balanced: bool = True
    checkpointing: bool = False  # recompute activations in the backward pass, which saves memory


@dataclass
class TrainingProgress:
    """What a training run reports after each batch."""

    images: int  # trajectories so far
    losses: list[float]  # of each interval in this batch
    held_out: float  # latest held-out error
    best: float  # best held-out error
    measured: bool  # whether `held_out` was measured after this batch
    state: Callable[[], dict[str, Any]]  # returns the current state, from which `train` can resume

    @property
    def loss(self) -> float:
        """Training loss of the batch, summed over all intervals of the trained solver's schedule."""
        return sum(self.losses)


def train(
    model: Denoiser, solver: Solver, predictor: nn.Module, times: Tensor, draw: Draw, teacher: Teacher,
    settings: Settings = Settings(), *, afs: bool = False, evaluate: Evaluate | None = None,
    error: Callable[[Tensor, Tensor, dict[str, Any]], float] | None = None,
    resume: dict[str, Any] | None = None,
) -> Iterator[TrainingProgress]:  # fmt: skip
    """Train `predictor` in place, and yield the progress after every batch.

    `predictor` gives the constants of a student, the solver that is trained to reach a teacher's states. When
    the generator ends or is closed, the predictor has the weights with the lowest held-out error, not the
    last ones.
    Gradients that are not finite are replaced by 0 (as the authors do); an interval whose loss is not
    finite is skipped.

    Args:
        model: the denoiser; its weights get no gradient.
        solver: the student, whose constants the predictor gives.
        predictor: the module to train.
        times: the *teacher's* noise levels, from Teacher.times; the student's are among them.
        draw: draws training data: (generator, n) -> (states `[n, ...]` at times[0], extra_args).
        teacher: the solver whose states the student is trained to reach.
        settings: length and optimiser.
        afs: whether the student's first step is analytic.
        evaluate: calls the model once; default: for the denoised image only.
        error: (end states, start states, extra_args) -> held-out error that chooses the best weights;
            default: root mean square distance to the teacher's end states.
        resume: `TrainingProgress.state()` of an earlier run with the same settings.

    Raises:
        NotFiniteError: the model returned NaN or infinity in a teacher's run.
    """
    base = times[:: teacher.extra + 1]
    evaluator = (
        checkpointed(evaluate or denoised_only) if settings.checkpointing else evaluate or denoised_only
    )
    generator = seeded(settings.seed)
    held_x, held_args = draw(seeded(settings.seed + HELD_OUT), settings.held_out)
    truth = teacher.states(model, held_x, times, held_args)[-1] if error is None else held_x
    optimiser = torch.optim.Adam(predictor.parameters(), lr=settings.lr, betas=settings.betas)
    frozen = [p for p in getattr(model, "parameters", lambda: ())() if p.requires_grad]
    now: dict[str, Any] = {"images": 0, "batches": 0, "usual": {}}

    def measure() -> float:
        with torch.no_grad():
            *_, end = states(Problem(model, held_args, evaluator), solver, held_x, base, predictor, afs)
        return rmse(end.x, truth) if error is None else error(end.x, held_x, held_args)

    def snapshot() -> dict[str, Any]:
        weights = {"predictor": predictor.state_dict(), "optimiser": optimiser.state_dict()}
        return copy.deepcopy(weights | now) | {"generator": generator.get_state()}

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
            run = losses(Problem(model, extra_args, evaluator), solver, predictor, x, base, targets, afs)
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
            yield TrainingProgress(now["images"], batch, now["held_out"], now["best"], measured, snapshot)
    finally:
        predictor.load_state_dict(now["best_state"])
        predictor.requires_grad_(False)
        for p in frozen:
            p.requires_grad_(True)


@dataclass(frozen=True)
class TrainingPlan:
    """The student (the solver to train) and its teacher, for one number of evaluations."""

    solver: Solver  # the student
    num_steps: int  # number N of noise levels in the student's schedule
    afs: bool  # whether the student's first step is analytic
    teacher: Teacher

    @property
    def points(self) -> int:
        """Number of all noise levels in the teacher's schedule, the first and the last included."""
        return (self.teacher.extra + 1) * (self.num_steps - 1) + 1


def plan(sampler: str, nfe: int, extra: int = 1, may_afs: bool = True) -> TrainingPlan:
    """Return the plan for training a sampler of two evaluations per interval.

    The teacher is Heun for AMED-Solver and DPM-Solver-2, and otherwise the solver that AMED-Plugin extends.

    Args:
        sampler: a name of amed.SAMPLERS.
        nfe: evaluations per sample; an odd number takes an analytic first step.
        extra: additional points of the teacher inside each interval.
        may_afs: whether the model allows an analytic first step; flow models do not.

    Raises:
        ValueError: the sampler has no network, `nfe` is below 2, or it is odd and `may_afs` is False.
    """
    solver, afs = solver_of(sampler), bool(nfe % 2)
    if not solver.has_recipe:
        raise ValueError(
            f"{sampler} has no network to train: use calibrate instead, or choose another sampler"
        )
    if nfe < 2 or (afs and not may_afs):
        allowed = "at least 2" if may_afs else "an even number"
        raise ValueError(f"nfe is {nfe}: set it to {allowed} to train {sampler} on this model")
    teacher = Teacher(solver if solver.recipe.teaches else Solver("heun"), extra)
    return TrainingPlan(solver, (nfe + afs) // 2 + 1, afs, teacher)
