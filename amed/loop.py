"""The loop that runs all rows: evaluate the slope, keep it, move. Every run of this engine goes through it.

for row in rows:
    slopes.append(analytic(x) if row.analytic else slope(evaluate(x)))
    x = x + sum(w * d for w, d in zip(row.weights, newest_first(slopes)))

`run.trajectory` assembles a run (rows and a first State) from a solver, a predictor and noise levels.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .parts import PARTS, Parts, up
from .table import Number, Row, Weights, beside

Denoiser = Callable[..., Tensor]  # model(x, sigma, **extra_args) -> denoised, x [B, ...] and sigma [B]
# the stored tensor of each part, see parts.Parts; () once no later row needs the slope
Slope = tuple[Tensor | None, ...]
REMEDY = (
    "If the model overflows in half precision, run it in bfloat16 or float32; otherwise check the checkpoint "
    "and its patches"
)


class NotFiniteError(ValueError):
    """NaN or infinity in the output of the model or in the result of a run, or weights that lead to them."""


@dataclass(eq=False, slots=True)
class Evaluation:
    """The outputs of one evaluation of the model: the denoised image, and on request the U-Net's bottleneck
    and guidance's conditional and unconditional result. The others are None."""

    denoised: Tensor  # [B, ...] like x: the model's estimate of the image, with guidance
    bottleneck: Tensor | None = (
        None  # [B, C, H, W]: output of the U-Net's middle block, conditional rows only
    )
    cond: Tensor | None = None  # [B, ...]: what the prompt alone denoises to
    uncond: Tensor | None = None  # [B, ...]: what the negative prompt alone denoises to


class Evaluate(Protocol):
    """How a host evaluates its model once.

    Args:
        model: the host's denoiser.
        x: `[B, ...]`, the noisy latents.
        sigma: `[B]`, their noise level.
        extra_args: keyword arguments of the model.
        wants: set of any of these words. "bottleneck": also return the output of the U-Net's middle block, if
            possible. "halves": also return the denoised images of the prompt and the negative prompt, if
            possible. "cond": skip the negative prompt, and return the denoised image of the prompt alone.
            "end": the denoised image is the run's result.

    Returns:
        The Evaluation."""

    def __call__(self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any],
                 wants: frozenset[str]) -> Evaluation: ...  # fmt: skip


def denoised_only(
    model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str] = frozenset()
) -> Evaluation:
    """Call the model and return its denoised image and no other output: the default Evaluate."""
    return Evaluation(model(x, sigma, **extra_args))


@dataclass(frozen=True)
class Problem:
    """The model of a run, and how it is called."""

    model: Denoiser
    extra_args: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the model
    evaluate: Evaluate = denoised_only
    dtype: torch.dtype | None = None  # in which the model is called; None: that of x
    parts: Parts = PARTS[""]  # how slopes are split
    # collects (sigma, sum of the output) of each evaluation, for `check` after the run, so that no evaluation
    # waits for the device; None: check each output at once
    watch: list[tuple[Number, Tensor]] | None = None

    def call(self, x: Tensor, sigma: Number, wants: frozenset[str]) -> Evaluation:
        """Evaluate the model once; the denoised image is returned in x's dtype.

        Args:
            x: `[B, ...]`, the noisy latents.
            sigma: their noise level, a number or `[B]`.
            wants: names of additional outputs, e.g. "bottleneck", see Evaluate.

        Raises:
            NotFiniteError: The output contains NaN or infinity. Not raised if `Problem.watch` is a list: then
                call `check` after the run."""
        dtype = self.dtype or x.dtype
        if isinstance(sigma, Tensor):
            levels = sigma.flatten().expand(len(x)).to(x.device, dtype)
        else:
            levels = x.new_full((len(x),), sigma, dtype=dtype)
        evaluation = self.evaluate(self.model, x.to(dtype), levels, self.extra_args, wants)
        if "bottleneck" in wants and evaluation.bottleneck is None:
            message = "no bottleneck could be captured from this model: the AMED predictor gets zeros instead"
            warnings.warn(message, stacklevel=2)
        if evaluation.denoised.dtype != x.dtype:
            evaluation = replace(evaluation, denoised=evaluation.denoised.to(x.dtype))
        if self.watch is not None:
            self.watch.append((sigma, evaluation.denoised.sum()))
        elif not evaluation.denoised.isfinite().all():
            raise not_finite(sigma, x)
        return evaluation


@dataclass(eq=False, slots=True)
class State:
    """The state of a run after a step's evaluation of the model, or after the change of x that follows it."""

    x: Tensor  # [B, ...]
    slopes: tuple[Slope, ...] = ()  # slopes in hand, oldest first
    number: int = 0  # index of the row that comes next, or whose move is still to come
    row: Row = Row(0.0, ())  # the latest row
    evaluation: Evaluation | None = None  # of the latest row that made one
    looked: bool = False  # True: the row's slope was evaluated, its move is still to come


def look(problem: Problem, state: State, row: Row) -> State:
    """Evaluate the slope dx/dsigma at the current x, and return the state of the run with this slope added. x
    is not changed.

    In training, the first evaluation of each interval between two noise levels is made without gradient."""
    x, sigma, sigma_model = state.x, beside(row.sigma, state.x), row.sigma_model
    sigma_model = row.sigma if sigma_model is None else sigma_model
    if row.opens and x.requires_grad:
        detached = tuple(tuple(p if p is None else p.detach() for p in d) for d in state.slopes)
        x, state = x.detach(), replace(state, slopes=detached)
    if row.analytic:
        evaluation, d = (
            None,
            x * (1 - sigma / (1 + sigma**2) ** 0.5) if row.data else x / (1 + sigma**2) ** 0.5,
        )
    else:
        level, x_model = sigma, x
        if row.rescaled:  # the same x in a VP model's own units, under another timestep
            level = beside(sigma_model, x)
            x_model = x * ((1 + level**2) / (1 + sigma**2)) ** 0.5
        with torch.no_grad() if row.opens and torch.is_grad_enabled() else nullcontext():
            evaluation = problem.call(x_model, sigma_model, row.wants | problem.parts.wants)
            if row.rescaled or not row.data:
                d = (x_model - evaluation.denoised).div_(level)
            evaluation = replace(evaluation, denoised=x - sigma * d) if row.rescaled else evaluation
            d = evaluation.denoised if row.data else d
    slope = (x, d) if row.data else problem.parts.split(d, x, sigma, evaluation)
    return State(x, (*state.slopes, slope), state.number, row, evaluation, looked=True)


def move(x: Tensor, slopes: Sequence[Slope], weights: Weights, levels: Sequence[int] = ()) -> Tensor:
    """Return x plus the weighted sum of the slopes dx/dsigma of this and earlier steps.

    Args:
        x: `[B, ...]`; not changed.
        slopes: the slopes, oldest first. Each is a tuple of terms that add up to it: one, or several such as
            its frequency bands.
        weights: the weight of each term of each slope, newest slope first.
        levels: for frequency bands: term i is stored at 1/2^levels[i] of x's size. Default: all terms have
            x's size."""
    if levels:
        return banded(x, slopes, weights, levels)
    new = False  # whether x is a new tensor, which may be changed in place
    for parts, shares in zip(reversed(slopes), weights):
        for d, w in zip(parts, shares):
            if d is None:
                continue
            if isinstance(w, Tensor):
                share: Any = beside(w, x)
                in_place = new and not (x.requires_grad or share.requires_grad)
                x = x.addcmul_(d, share) if in_place else x.addcmul(d, share)
            elif w == 0:
                continue
            else:
                x = x.add_(d, alpha=w) if new and not x.requires_grad else x.add(d, alpha=w)
            new = True
    return x


def banded(x: Tensor, slopes: Sequence[Slope], weights: Weights, levels: Sequence[int]) -> Tensor:
    """Return x plus the weighted sum of slopes that are split into bands of spatial frequency.

    Each slope is stored as an image pyramid (full, 1/2, 1/4 ... size). Each size is summed on its own, then
    enlarged. As a band is the difference between two sizes, the weight of a size is its band's weight minus
    that of the next finer band. The arguments are those of `move`."""
    low: Tensor | None = None
    for level in range(max(levels), 0, -1):
        total: Tensor | None = None
        for parts, shares in zip(reversed(slopes), weights):
            for i, d in enumerate(parts):
                if levels[i] == level and d is not None:
                    w: Any = shares[i] - shares[i - 1]
                    total = d * w if total is None else total.add_(d, alpha=w)
        if total is not None:
            low = total if low is None else total.add_(up(low, total))
    fine = [i for i, level in enumerate(levels) if level == 0]
    end = move(x, [tuple(d[i] for i in fine if d) for d in slopes], [[w[i] for i in fine] for w in weights])
    return end if low is None else up(low, x).add_(x) if end is x else end.add_(up(low, x))


def loop(problem: Problem, rows: Iterable[Row], state: State) -> Iterator[State]:
    """Run the steps of a solver. Yield the state twice per step: after its evaluation of the model, and after
    the change of x.

    Args:
        problem: the model and its arguments.
        rows: the steps to run.
        state: x at the start. To resume a run, a state that it yielded; `rows` are then the steps left.

    Raises:
        NotFiniteError: The model returned NaN or infinity. Not raised if `Problem.watch` is a list: then call
            `check` after the run."""
    for row in rows:
        if not state.looked:
            state = look(problem, state, row)
        yield state
        if row.to_zero and state.evaluation is not None:
            x = state.evaluation.denoised
        else:
            x = move(state.x, state.slopes, row.weigh(state), problem.parts.levels)
            if row.offset is not None:
                x = x + row.offset if x is state.x else x.add_(row.offset)
        slopes = (*state.slopes[:-1], state.slopes[-1][1:]) if row.data else state.slopes
        if row.needed is not None:
            slopes = tuple(d if use else () for d, use in zip(slopes, row.needed))
        state = State(x, slopes, state.number + 1, row, state.evaluation)
        del x, slopes
        yield state


def not_finite(sigma: Number, x: Tensor | None = None) -> NotFiniteError:
    """Return the error for a model that returned NaN or infinity at noise level `sigma`. If the model's input
    `x` is given, the message also says whether it was finite."""
    level = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else sigma
    message = f"the model returned NaN or infinity at sigma={level:.5g}"
    if x is not None:
        message += f"; x was {'finite' if x.isfinite().all() else 'already not finite'}"
    return NotFiniteError(f"{message}. {REMEDY}")


def check(watch: list[tuple[Number, Tensor]], x: Tensor, end: Tensor) -> None:
    """Check that the result of a run is finite. This waits for the device, so call it after the run.

    Args:
        watch: the list `Problem.watch`, with the noise level and the sum of the output of each evaluation.
        x: `[B, ...]`, the run's initial latent.
        end: `[B, ...]`, the run's result.

    Raises:
        NotFiniteError: The result is not finite. If an output of the model was not, the message names the
            noise level of the first."""
    if end.sum().isfinite():
        return
    finite = torch.stack([total for _, total in watch]).isfinite().tolist() if watch else []
    if all(finite):
        finite_or_not = "finite" if x.isfinite().all() else "not finite"
        raise NotFiniteError(
            "the result of this run contains NaN or infinity; its initial latent was "
            f"{finite_or_not}. {REMEDY}"
        )
    first = finite.index(False)
    raise not_finite(watch[first][0], None if first else x)
