"""Predictors that are plain numbers: r, c, a for each interval (Constants), or free times and free weights
(Multistep). Both are fitted on a list of noise levels; on any other they are interpolated in log sigma."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .coordinates import compiled
from .double import as_double
from .known import fallback
from .parameters import AMED, PARAMETERS
from .parts import PARTS
from .recipes import Solver
from .table import END, Number, Row, Table

ROUNDING = 1e-13  # of a weight in float64
SAME = 0.01  # noise levels this near each other, in log sigma, are the same: one tolerance for every question


def same_times(times: Tensor, own: Tensor) -> bool:
    """Whether the positive ones of `times` are `own`."""
    times = as_double(times)
    times = times[times > 0]
    return len(times) == len(own) and bool(((times / own).log().abs() < SAME).all())


def from_the_top(times: Tensor, sigma_max: float) -> bool:
    """Whether a list of noise levels begins at `sigma_max`."""
    return abs(math.log(float(times[0]) / sigma_max)) < SAME


def between(sigmas: Tensor, values: Tensor, t: float) -> Tensor:
    """Of values `[N, ...]` on falling noise levels `[N]`, those at t: linear in log sigma, the ends
    beyond."""
    rising, x = [math.log(s) for s in reversed(sigmas.tolist())], math.log(t)
    high = min(bisect_left(rising, x - 1e-5), len(rising) - 1)
    low, last = max(high - 1, 0), len(rising) - 1
    share = 1.0 if high == low else min(max((x - rising[low]) / (rising[high] - rising[low]), 0.0), 1.0)
    if abs(share - round(share)) < 1e-5:  # fp32's own rounding
        share = float(round(share))
    return torch.lerp(values[last - low], values[last - high], share)


def falling(sigmas: Tensor) -> Tensor:
    """A fitted list of noise levels as float64. Raises ValueError for what is none."""
    sigmas = as_double(sigmas)
    if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas > 0).all() or not (sigmas.diff() < 0).all():
        raise ValueError(f"sigmas must be at least 2 falling positive noise levels, got {sigmas.tolist()}")
    return sigmas


class Constants:
    """A recipe's constants for each interval of `sigmas` `[N]`: by name `[N-1]` (r, c, a; what is left out is
    its default). A Predictor: other times than the fitted interpolate.

    rescales: see table.Row.rescaled. Raises ValueError when lengths or ranges do not fit."""

    wants_bottleneck, fixed = False, True

    def __init__(self, sigmas: Tensor, rescales: bool = False, names: tuple[str, ...] = AMED, **values: Any):
        self.sigmas, self.rescales, self.names = falling(sigmas), rescales, names
        count = len(self.sigmas) - 1
        if other := set(values) - set(names):
            raise ValueError(f"no such constant: {', '.join(sorted(other))}; there are {', '.join(names)}")
        self.values: dict[str, Tensor] = {}
        for name in names:
            value = values.get(name)
            value = [PARAMETERS[name].default] * count if value is None else value
            value = self.values[name] = as_double(value)
            if value.shape != (count,):
                wrong = f"got shape {tuple(value.shape)}"
                raise ValueError(f"{name} must have one value per interval ({count}), {wrong}")
            PARAMETERS[name].check(value)

    def __call__(self, t: float, t_next: float, bottleneck: Tensor | None = None) -> tuple[Number, ...]:
        return tuple(float(between(self.sigmas[:-1], v, t)) for v in self.values.values())


class Multistep:
    """The student `multistep`: free times and free weights on all slopes in hand.

    `sigmas` `[N+1]` its times, falling and positive: one evaluation at each but the last. `weights` `[N, H]`,
    or `[N, H, S]` for slopes in S parts (`parts`: a name of PARTS): of step n on the newest slope, the one
    before ..., in shares of the step's length. `a` `[N]`: scale of the noise level the model is told. With
    AFS the first slope is analytic and a[0] means nothing; without, the slope before the first is the
    analytic one, x_0 / sqrt(1 + t_0^2), which costs nothing and may be given a weight too. H is at most N +
    1. `offset` `[N, C]`: of each channel, a slope that is the same for every image, in shares of the step's
    length too. `alone`: numbers of the steps whose evaluation leaves guidance's unconditional half out, with
    parts that take the halves apart. Raises ValueError for what does not fit."""

    wants_bottleneck, fixed = False, True

    def __init__(self, sigmas: Tensor, weights: Tensor, a: Tensor | None = None, parts: str = "",
                 offset: Tensor | None = None, alone: Sequence[int] = ()):  # fmt: skip
        self.sigmas, self.parts = falling(sigmas), parts
        weights = as_double(weights)
        if parts not in PARTS:
            raise ValueError(f"parts is {parts!r}: there are {', '.join(map(repr, PARTS))}")
        count, steps = PARTS[parts].count, len(self.sigmas) - 1
        weights = weights[..., None] if weights.ndim == 2 and count == 1 else weights
        shape = tuple(weights.shape)
        if len(shape) != 3 or shape[::2] != (steps, count) or not 1 <= shape[1] <= steps + 1:
            by = f" by {count} parts" if count > 1 else ""
            raise ValueError(f"weights must have {steps} rows of 1 to {steps + 1}{by}, got shape {shape}")
        if not weights.isfinite().all():
            raise ValueError("weights are not finite")
        if weights.movedim(2, 0).triu(2).any():
            raise ValueError("weights reach back to slopes before the first")
        self.a = as_double([1.0] * steps if a is None else a)
        if self.a.shape != (steps,):
            raise ValueError(f"a must have {steps} values, got shape {tuple(self.a.shape)}")
        PARAMETERS["a"].check(self.a)
        self.weights = weights
        self.offset = None if offset is None else as_double(offset)
        if self.offset is not None:
            if self.offset.ndim != 2 or len(self.offset) != steps:
                raise ValueError(f"offset must have {steps} rows, got shape {tuple(self.offset.shape)}")
            if not self.offset.isfinite().all():
                raise ValueError("offset is not finite")
        self.alone = tuple(alone)
        if self.alone and (not parts.startswith("halves") or not 0 < min(alone) <= max(alone) < steps):
            raise ValueError(
                f"steps {self.alone} cannot do without the unconditional half, with parts {parts!r}"
            )

    @property
    def values(self) -> dict[str, Tensor]:
        """As a file has them."""
        weights = self.weights if PARTS[self.parts].count > 1 else self.weights[..., 0]
        values = {"weights": weights, "a": self.a}
        if self.offset is not None:
            values["offset"] = self.offset
        if self.alone:
            values["alone"] = torch.zeros(len(self.a), dtype=torch.float64)
            values["alone"][list(self.alone)] = 1
        return values

    def before_first(self) -> bool:
        """Whether any step weighs the analytic slope before the first."""
        return bool(self.weights.movedim(2, 0).diagonal(1, 1, 2).any())

    def table(self, times: list[float] | None = None, afs: bool = False) -> Table:
        """Its rows; on other `times` (a last 0 is one more row) interpolated, and what they weigh of slopes
        that such a run does not have (it began below the first time) goes to its oldest: so the end is
        continuous in the start, also where that passes one of the table's own times."""
        given = self.sigmas.tolist() if times is None else times
        on, grid = [t for t in given if t > 0], self.sigmas[:-1]
        own = same_times(as_double(on), self.sigmas)
        lead = not afs and self.before_first() and from_the_top(torch.tensor(on[:1]), float(grid[0]))
        zero = ((0.0,) * self.weights.shape[2],)
        rows = [Row(on[0], zero, analytic=True, opens=False, closes=False)] if lead else []
        for n, (t, t_next) in enumerate(pairwise(on)):
            shares, a = ((v[n] if own else between(grid, v, t)) for v in (self.weights, self.a))
            hand = n + 1 + lead
            kept = shares[:hand].clone()
            kept[-1] += shares[hand:].sum(dim=0)
            move = tuple(map(tuple, ((t_next - t) * kept).tolist()))
            offset = self.offset
            if offset is not None:
                offset = (t_next - t) * (offset[n] if own else between(grid, offset, t))
            wants = frozenset({"cond"} if own and n in self.alone else ())
            rows.append(Row(t, move, float(a) * t, afs and n == 0, wants=wants, offset=offset))
        if given[-1] == 0:
            rows.append(Row(on[-1], (), to_zero=True, wants=END))
        return Table.of(rows, given[-1], self.parts)


def as_multistep(solver: Solver, sigmas: Tensor, afs: bool = False,
                 predictor: Constants | Multistep | None = None) -> Multistep:  # fmt: skip
    """With which `multistep` does exactly what `solver` does over `sigmas` `[n]` (positive, falling).

    `predictor`: a plugin's, or AMED-Solver's constants. With AFS its run needs it too. Raises ValueError for
    a solver that is no list of falling times and weights: Heun evaluates twice at one time, `rescales` tells
    the model other states, a network has no constants."""
    if isinstance(predictor, Multistep):
        return predictor
    solver = fallback(solver)
    if solver.recipe.repeats_time:
        raise ValueError(
            f"{solver.name} evaluates twice at the same noise level, so a multistep table cannot express it: "
            "choose another solver"
        )
    if getattr(predictor, "rescales", False):
        raise ValueError("rescales cannot be written as weights on slopes")
    if predictor is not None and not getattr(predictor, "fixed", False):
        raise ValueError("this predictor looks at the image: it has no constants to convert")
    table = compiled(solver, as_double(sigmas).tolist(), predictor, afs)
    times = [*(float(row.sigma) for row in table.rows), table.end]
    weights = shares_of(table, afs)
    a = [1.0 if row.sigma_model is None else row.sigma_model / row.sigma for row in table.rows]
    return Multistep(torch.tensor(times, dtype=torch.float64), weights, torch.tensor(a, dtype=torch.float64))


def shares_of(table: Table, afs: bool, rounding: float = ROUNDING) -> Tensor:
    """The moves of a table over falling times as weights `[rows, H]` on the slopes in hand, newest first, in
    shares of the step's length; without AFS the last may be on the analytic slope before the first."""
    rows, steps, lead = table.rows, len(table.rows), int(not afs)
    times = [*(float(row.sigma) for row in rows), table.end]
    unit = torch.eye(steps + lead, dtype=torch.float64)
    weights = unit.new_zeros(steps, steps + lead)
    x, seen = unit[0] * (1 + times[0] ** 2) ** 0.5, list[Tensor]()  # x_0 is the analytic slope, scaled
    for n, row in enumerate(rows):
        slope = unit[n + lead]
        seen.append(x - times[n] * slope if row.data else slope)
        shares: Any = row.weigh()
        own = sum(share[-1] * v for share, v in zip(shares, reversed(seen))) + row.data * shares[0][0] * x
        x, own = x + own, own / (times[n + 1] - times[n])
        weights[n, : n + lead + 1] = torch.where(own.abs() < rounding, 0, own)[: n + lead + 1].flip(0)
    return weights[:, : int(weights.any(dim=0).nonzero().max()) + 1]
