"""The loop: look at the slope, keep it, move. Every run of this engine is this one.

for row in rows:
    slopes.append(analytic(x) if row.analytic else slope(evaluate(x)))
    x = x + sum(w * d for w, d in zip(row.weights, newest first))
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

Denoiser = Callable[..., Tensor]
TRY = "If half precision overflows in it, run it in bfloat16 or float32; else see to the file and its patches"


class NotFiniteError(ValueError):
    """The model returned NaN or infinity; the message names the sigma."""


@dataclass(eq=False, slots=True)
class Evaluation:
    """What one call of the model gave: `denoised` like x; `bottleneck` `[B, C, H, W]`, the conditional rows
    of the U-Net's middle block; `cond`, `uncond`: what each half of guidance alone denoises to. None: not
    asked for, or not to be had here."""

    denoised: Tensor
    bottleneck: Tensor | None = None
    cond: Tensor | None = None
    uncond: Tensor | None = None


class Evaluate(Protocol):
    """The one way to ask a model: x `[B, ...]`, sigma `[B]`; `wants`: of "bottleneck" and "halves" what is to
    be had besides the denoised image, where it can be; "cond": the denoised image is to be what the prompt
    alone denoises to, and the unconditional half is spared; "end": this image is what the run ends in."""

    def __call__(self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any],
                 wants: frozenset[str]) -> Evaluation: ...  # fmt: skip


def plain(
    model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str] = frozenset()
) -> Evaluation:
    """The denoised image and nothing else."""
    return Evaluation(model(x, sigma, **extra_args))


@dataclass(frozen=True)
class Problem:
    """What rows are run with. dtype: what the model is called in, None for x's own. watch: (sigma, sum of the
    output) of each evaluation, for `check` after the run; None: each output is looked at at once."""

    model: Denoiser
    extra_args: dict[str, Any] = field(default_factory=dict)
    evaluate: Evaluate = plain
    dtype: torch.dtype | None = None
    parts: Parts = PARTS[""]
    watch: list[tuple[Number, Tensor]] | None = None

    def ask(self, x: Tensor, sigma: Number, wants: frozenset[str]) -> Evaluation:
        """The model at one level of noise. Raises NotFiniteError for NaN, unless watched."""
        dtype = self.dtype or x.dtype
        if isinstance(sigma, Tensor):
            levels = sigma.flatten().expand(len(x)).to(x.device, dtype)
        else:
            levels = x.new_full((len(x),), sigma, dtype=dtype)
        seen = self.evaluate(self.model, x.to(dtype), levels, self.extra_args, wants)
        if "bottleneck" in wants and seen.bottleneck is None:
            wrong = "no bottleneck could be captured from this model: the AMED predictor is fed zeros"
            warnings.warn(wrong, stacklevel=2)
        if seen.denoised.dtype != x.dtype:
            seen = replace(seen, denoised=seen.denoised.to(x.dtype))
        if self.watch is not None:
            self.watch.append((sigma, seen.denoised.sum()))
        elif not seen.denoised.isfinite().all():
            raise not_finite(sigma, x)
        return seen


@dataclass(eq=False, slots=True)
class State:
    """Where a run is. x `[B, ...]`; slopes, each its parts, oldest first (none: nobody needs it any more);
    number of the row; the row and its evaluation. `looked`: the row was looked at, its move is still to
    come."""

    x: Tensor
    slopes: tuple[tuple[Tensor | None, ...], ...] = ()
    number: int = 0
    row: Row = Row(0.0, ())
    evaluation: Evaluation | None = None
    looked: bool = False


def look(problem: Problem, state: State, row: Row) -> State:
    """The slope where the run stands, kept.

    The first evaluation of an interval carries no gradient: its input never depends on what is learned of
    it."""
    x, sigma, sigma_model = state.x, beside(row.sigma, state.x), row.sigma_model
    sigma_model = row.sigma if sigma_model is None else sigma_model
    if row.opens and x.requires_grad:
        kept = tuple(tuple(p if p is None else p.detach() for p in d) for d in state.slopes)
        x, state = x.detach(), replace(state, slopes=kept)
    if row.analytic:
        seen, d = None, x * (1 - sigma / (1 + sigma**2) ** 0.5) if row.data else x / (1 + sigma**2) ** 0.5
    else:
        level, shown = sigma, x
        if row.rescaled:  # the same x in a VP model's own units, under another timestep
            level = beside(sigma_model, x)
            shown = x * ((1 + level**2) / (1 + sigma**2)) ** 0.5
        with torch.no_grad() if row.opens and torch.is_grad_enabled() else nullcontext():
            seen = problem.ask(shown, sigma_model, row.wants | problem.parts.wants)
            if row.rescaled or not row.data:
                d = (shown - seen.denoised).div_(level)
            seen = replace(seen, denoised=x - sigma * d) if row.rescaled else seen
            d = seen.denoised if row.data else d
    slopes = (*state.slopes, (x, d) if row.data else problem.parts.split(d, x, sigma, seen))
    return State(x, slopes, state.number, row, seen, looked=True)


def move(x: Tensor, slopes: Sequence[tuple[Tensor | None, ...]], weights: Weights,
         levels: Sequence[int] = ()) -> Tensor:  # fmt: skip
    """x and the weighted sum of slopes (oldest first; weights newest first). levels: of what is kept of a
    slope's parts, see parts.Parts."""
    if levels:
        return banded(x, slopes, weights, levels)
    new = False  # once x is our own, it may be changed in place
    for parts, shares in zip(reversed(slopes), weights):
        for d, w in zip(parts, shares):
            if d is None:
                continue
            if isinstance(w, Tensor):
                share: Any = beside(w, x)
                own = new and not (x.requires_grad or share.requires_grad)
                x = x.addcmul_(d, share) if own else x.addcmul(d, share)
            elif w == 0:
                continue
            else:
                x = x.add_(d, alpha=w) if new and not x.requires_grad else x.add(d, alpha=w)
            new = True
    return x


def banded(x: Tensor, slopes: Sequence[tuple[Tensor | None, ...]], weights: Weights,
           levels: Sequence[int]) -> Tensor:  # fmt: skip
    """`move` where parts are bands: what is kept small is summed small. A band is the difference of its own
    level and the next, so a level's share is its band's weight less that of the finer one."""
    low: Tensor | None = None
    for level in range(max(levels), 0, -1):
        total: Tensor | None = None
        for kept, shares in zip(reversed(slopes), weights):
            for i, d in enumerate(kept):
                if levels[i] == level and d is not None:
                    w: Any = shares[i] - shares[i - 1]
                    total = d * w if total is None else total.add_(d, alpha=w)
        if total is not None:
            low = total if low is None else total.add_(up(low, total))
    fine = [i for i, level in enumerate(levels) if level == 0]
    end = move(x, [tuple(d[i] for i in fine if d) for d in slopes], [[w[i] for i in fine] for w in weights])
    return end if low is None else up(low, x).add_(x) if end is x else end.add_(up(low, x))


def loop(problem: Problem, rows: Iterable[Row], state: State) -> Iterator[State]:
    """The state at each row, when it was looked at, and after its move. A state that was looked at goes on
    with the move of the first of `rows`."""
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
        kept = (*state.slopes[:-1], state.slopes[-1][1:]) if row.data else state.slopes
        if row.needed is not None:
            kept = tuple(d if use else () for d, use in zip(kept, row.needed))
        state = State(x, kept, state.number + 1, row, state.evaluation)
        del x, kept
        yield state


def not_finite(sigma: Number, x: Tensor | None = None) -> NotFiniteError:
    """What to raise when the model returned NaN or infinity at a noise level, for x if it is still there."""
    level = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else sigma
    message = f"the model returned NaN or infinity at sigma={level:.5g}"
    if x is not None:
        message += f"; x was {'finite' if x.isfinite().all() else 'already not finite'}"
    return NotFiniteError(f"{message}. {TRY}")


def check(watch: list[tuple[Number, Tensor]], x: Tensor, end: Tensor) -> None:
    """Raise NotFiniteError if a run from x came to an end that is not finite, naming the first evaluation
    whose output was not. This waits for the device, so it comes after the loop."""
    if end.sum().isfinite():
        return
    finite = torch.stack([total for _, total in watch]).isfinite().tolist() if watch else []
    if all(finite):
        was = "" if x.isfinite().all() else "not "
        raise NotFiniteError(f"the result is not finite; x was {was}finite. {TRY}")
    first = finite.index(False)
    raise not_finite(watch[first][0], None if first else x)
