"""Predictors that consist of numbers: r, c, a for each interval (Constants), or times and weights
(Multistep).

Both are fitted on a list of noise levels. On any other list they are interpolated in log sigma."""

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

ROUNDING = 1e-13  # weights below this are rounding errors of float64, and become 0
SAME = 0.01  # noise levels closer than this, in log sigma, count as the same everywhere


def same_times(times: Tensor, reference: Tensor) -> bool:
    """Return whether the positive noise levels of `times` equal `reference`, both `[n]`, within 1 %."""
    times = as_double(times)
    times = times[times > 0]
    return len(times) == len(reference) and bool(((times / reference).log().abs() < SAME).all())


def from_the_top(times: Tensor, sigma_max: float) -> bool:
    """Return whether a list of noise levels begins at `sigma_max`, within 1 %."""
    return abs(math.log(float(times[0]) / sigma_max)) < SAME


def interpolated(sigmas: Tensor, values: Tensor, t: float) -> Tensor:
    """Interpolate a fitted constant, e.g. a weight, to noise level t, and return the result `[...]`.

    Its `values` `[N, ...]` are known at N falling noise levels `sigmas`. The interpolation is linear in log
    sigma; above the first and below the last of these levels, the nearest value is returned."""
    rising, x = [math.log(s) for s in reversed(sigmas.tolist())], math.log(t)
    high = min(bisect_left(rising, x - 1e-5), len(rising) - 1)
    low, last = max(high - 1, 0), len(rising) - 1
    share = 1.0 if high == low else min(max((x - rising[low]) / (rising[high] - rising[low]), 0.0), 1.0)
    if abs(share - round(share)) < 1e-5:  # float32's rounding of t
        share = float(round(share))
    return torch.lerp(values[last - low], values[last - high], share)


def fitted_sigmas(sigmas: Tensor) -> Tensor:
    """Return the noise levels of a predictor as float64 `[n]`.

    Raises:
        ValueError: They are fewer than 2, not positive, or do not fall at every step."""
    sigmas = as_double(sigmas)
    if sigmas.ndim != 1 or len(sigmas) < 2 or not (sigmas > 0).all() or not (sigmas.diff() < 0).all():
        raise ValueError(
            f"sigmas must be at least 2 positive noise levels that fall at every step, "
            f"but are {sigmas.tolist()}"
        )
    return sigmas


class Constants:
    """A predictor with fixed constants for each interval between two noise levels. For other noise levels,
    the constants are interpolated in log sigma.

    Args:
        sigmas: `[N]`, the noise levels that the constants are fitted on, falling and positive.
        rescales: whether the constant a changes only the timestep that a VP network is given, while the input
            of the network stays the same. Default: False.
        names: names of the constants. Default: those of AMED (Zhou et al. 2024, sec. 3.3), r (position of the
            intermediate noise level), c (factor on the step's direction) and a (factor on the noise level
            that the model is given).
        values: `[N - 1]` for each name, the constants. Default: r = 0.5, c = 1, a = 1.

    Raises:
        ValueError: A name is unknown, or a length or value does not fit."""

    wants_bottleneck, fixed = False, True

    def __init__(self, sigmas: Tensor, rescales: bool = False, names: tuple[str, ...] = AMED, **values: Any):
        self.sigmas, self.rescales, self.names = fitted_sigmas(sigmas), rescales, names
        count = len(self.sigmas) - 1
        if other := set(values) - set(names):
            raise ValueError(f"no such constant: {', '.join(sorted(other))}; choose from {', '.join(names)}")
        self.values: dict[str, Tensor] = {}
        for name in names:
            value = values.get(name)
            value = [PARAMETERS[name].default] * count if value is None else value
            value = self.values[name] = as_double(value)
            if value.shape != (count,):
                raise ValueError(
                    f"the constant {name} must have one value per interval of sigmas ({count}), "
                    f"but has shape {tuple(value.shape)}"
                )
            PARAMETERS[name].check(value)

    def __call__(self, t: float, t_next: float, bottleneck: Tensor | None = None) -> tuple[Number, ...]:
        return tuple(float(interpolated(self.sigmas[:-1], v, t)) for v in self.values.values())


class Multistep:
    """A fitted multistep solver: for N steps, the noise levels, and the weights of the slopes dx/dsigma of
    this and all earlier evaluations.

    If the first step is analytic (AFS), its slope is x / sqrt(1 + sigma^2) and needs no evaluation. If not,
    the weights may still use this slope, as if it were evaluated just before step 0.

    Args:
        sigmas: `[N + 1]`, the noise levels of the run, falling and positive; one evaluation at each but the
            last.
        weights: `[N, H]`, H at most N + 1. Entry [n, k] is the weight of step n for the slope k evaluations
            back (0: the newest), relative to the step's length in sigma. `[N, H, S]` with `parts`, which
            split a slope into S terms with a weight each.
        a: `[N]`, factor on the noise level that the model is given in each step. Default: ones.
        parts: the terms into which each slope is split: "guidance" (the unconditional slope, and what
            guidance adds to it), "halves" (the conditional slope, and what guidance adds to it), "bands" (4
            bands of spatial frequency), "halves+bands" (4 bands of each half). Default: not split.
        offset: `[N, C]`, a constant that each step adds to each of C channels of x, relative to the step's
            length in sigma. Default: none.
        alone: indices of the steps that skip guidance's unconditional pass; not step 0, and only with
            `parts` "halves" or "halves+bands". Default: none.

    Raises:
        ValueError: A shape or value does not fit."""

    wants_bottleneck, fixed = False, True

    def __init__(self, sigmas: Tensor, weights: Tensor, a: Tensor | None = None, parts: str = "",
                 offset: Tensor | None = None, alone: Sequence[int] = ()):  # fmt: skip
        self.sigmas, self.parts = fitted_sigmas(sigmas), parts
        weights = as_double(weights)
        if parts not in PARTS:
            names = ", ".join(map(repr, PARTS))
            raise ValueError(
                f"parts={parts!r} is no known way to split the slope dx/dsigma into terms with separate "
                f"weights: choose one of {names}"
            )
        count, steps = PARTS[parts].count, len(self.sigmas) - 1
        weights = weights[..., None] if weights.ndim == 2 and count == 1 else weights
        shape = tuple(weights.shape)
        if len(shape) != 3 or shape[::2] != (steps, count) or not 1 <= shape[1] <= steps + 1:
            axes = f"{steps} steps, 1 to {steps + 1} slopes"
            expected_shape = f"({axes}, {count} parts)" if count > 1 else f"({axes})"
            raise ValueError(
                f"the weights of a fitted multistep solver must have shape {expected_shape}, not {shape}"
            )
        if not weights.isfinite().all():
            raise ValueError(
                "the weights of a fitted multistep solver are not finite (NaN or infinity): calibrate again"
            )
        if weights.movedim(2, 0).triu(2).any():
            raise ValueError(
                "the weights of a fitted multistep solver use slopes from before the start of the run: step "
                "n (counted from 0) has n + 2 slopes, those of n + 1 evaluations and the analytic first one; "
                "set its other weights to 0"
            )
        self.a = as_double([1.0] * steps if a is None else a)
        if self.a.shape != (steps,):
            raise ValueError(
                f"the constant a (factor on the model's noise level) must have one value per step ({steps}), "
                f"but has shape {tuple(self.a.shape)}"
            )
        PARAMETERS["a"].check(self.a)
        self.weights = weights
        self.offset = None if offset is None else as_double(offset)
        if self.offset is not None:
            if self.offset.ndim != 2 or len(self.offset) != steps:
                raise ValueError(
                    f"the offset of a fitted multistep solver must have one row per step ({steps}) and one "
                    f"column per channel, but has shape {tuple(self.offset.shape)}"
                )
            if not self.offset.isfinite().all():
                raise ValueError(
                    "the offset (a constant per step and channel) of a fitted multistep solver contains NaN "
                    "or infinity: calibrate again"
                )
        self.alone = tuple(alone)
        if self.alone and (not parts.startswith("halves") or not 0 < min(alone) <= max(alone) < steps):
            raise ValueError(
                f"steps {self.alone} of a fitted multistep solver cannot skip the unconditional result of "
                f"guidance: choose steps from 1 to {steps - 1}, and set parts (how slopes are split) to "
                f"'halves' or 'halves+bands', not {parts!r}"
            )

    @property
    def values(self) -> dict[str, Tensor]:
        """The fitted tensors by their names in a predictor file: the weights, and further constants."""
        weights = self.weights if PARTS[self.parts].count > 1 else self.weights[..., 0]
        values = {"weights": weights, "a": self.a}
        if self.offset is not None:
            values["offset"] = self.offset
        if self.alone:
            values["alone"] = torch.zeros(len(self.a), dtype=torch.float64)
            values["alone"][list(self.alone)] = 1
        return values

    def before_first(self) -> bool:
        """Return whether any step has a weight on the analytic slope of the initial noise,
        x / sqrt(1 + sigma^2), which comes before the first evaluation."""
        return bool(self.weights.movedim(2, 0).diagonal(1, 1, 2).any())

    def table(self, times: list[float] | None = None, afs: bool = False) -> Table:
        """Return the weights of the current and earlier slopes dx/dsigma for each step of a run.

        For other noise levels than the fitted ones, weights are interpolated in log sigma. A run that starts
        below the first fitted level (e.g. img2img) lacks the earlier slopes; their weights are added to that
        of its oldest slope.

        Args:
            times: noise levels, falling; a last 0 adds a step that ends at the denoised image. Default: the
                fitted ones.
            afs: whether the first step uses an analytic slope, without an evaluation."""
        given = self.sigmas.tolist() if times is None else times
        on, grid = [t for t in given if t > 0], self.sigmas[:-1]
        fitted = same_times(as_double(on), self.sigmas)
        lead = not afs and self.before_first() and from_the_top(torch.tensor(on[:1]), float(grid[0]))
        zero = ((0.0,) * self.weights.shape[2],)
        rows = [Row(on[0], zero, analytic=True, opens=False, closes=False)] if lead else []
        for n, (t, t_next) in enumerate(pairwise(on)):
            shares, a = ((v[n] if fitted else interpolated(grid, v, t)) for v in (self.weights, self.a))
            hand = n + 1 + lead
            usable = shares[:hand].clone()
            usable[-1] += shares[hand:].sum(dim=0)
            move = tuple(map(tuple, ((t_next - t) * usable).tolist()))
            offset = self.offset
            if offset is not None:
                offset = (t_next - t) * (offset[n] if fitted else interpolated(grid, offset, t))
            wants = frozenset({"cond"} if fitted and n in self.alone else ())
            rows.append(Row(t, move, float(a) * t, afs and n == 0, wants=wants, offset=offset))
        if given[-1] == 0:
            rows.append(Row(on[-1], (), to_zero=True, wants=END))
        return Table.of(rows, given[-1], self.parts)


def as_multistep(solver: Solver, sigmas: Tensor, afs: bool = False,
                 predictor: Constants | Multistep | None = None) -> Multistep:  # fmt: skip
    """Convert a solver to a `Multistep`, a table of noise levels and weights that gives the same result.

    Args:
        solver: the solver; "multistep" is converted as iPNDM of second order.
        sigmas: `[n]`, the solver's noise levels, falling and positive.
        afs: whether the first step uses an analytic slope, without an evaluation; run the result with the
            same value.
        predictor: fitted constants of AMED-Solver or AMED-Plugin; None for the plain solver. A Multistep is
            returned unchanged.

    Raises:
        ValueError: No such table exists: the solver evaluates twice at one noise level (Heun), the predictor
            changes the model's timestep only (`Constants.rescales`), or it is a network."""
    if isinstance(predictor, Multistep):
        return predictor
    solver = fallback(solver)
    if solver.recipe.repeats_time:
        raise ValueError(
            f"{solver.name} evaluates twice at the same noise level, so it cannot be converted to a "
            "multistep solver, which evaluates once at each: choose another solver"
        )
    if getattr(predictor, "rescales", False):
        raise ValueError(
            "a predictor with rescales=True (its constant a changes only the timestep that the model is "
            "given) cannot be converted to a multistep solver: use it unconverted"
        )
    if predictor is not None and not getattr(predictor, "fixed", False):
        raise ValueError(
            "a predictor whose constants depend on the image cannot be converted to a multistep solver with "
            "fixed weights: use it unconverted"
        )
    table = compiled(solver, as_double(sigmas).tolist(), predictor, afs)
    times = [*(float(row.sigma) for row in table.rows), table.end]
    weights = shares_of(table, afs)
    a = [1.0 if row.sigma_model is None else row.sigma_model / row.sigma for row in table.rows]
    return Multistep(torch.tensor(times, dtype=torch.float64), weights, torch.tensor(a, dtype=torch.float64))


def shares_of(table: Table, afs: bool, rounding: float = ROUNDING) -> Tensor:
    """Return each step's weights on the slopes of this and earlier steps, newest first, relative to the
    step's length in sigma, `[steps, H]`.

    Args:
        table: the steps of a run, with falling noise levels.
        afs: whether the first step uses the analytic slope x / sqrt(1 + sigma^2), without an evaluation. If
            not, steps may have a weight on this slope as one more, older than the first.
        rounding: smaller weights become 0."""
    rows, steps, lead = table.rows, len(table.rows), int(not afs)
    times = [*(float(row.sigma) for row in rows), table.end]
    unit = torch.eye(steps + lead, dtype=torch.float64)
    weights = unit.new_zeros(steps, steps + lead)
    x, seen = unit[0] * (1 + times[0] ** 2) ** 0.5, list[Tensor]()  # x_0 is the analytic slope, scaled
    for n, row in enumerate(rows):
        slope = unit[n + lead]
        seen.append(x - times[n] * slope if row.data else slope)
        shares: Any = row.weigh()
        step = sum(share[-1] * v for share, v in zip(shares, reversed(seen))) + row.data * shares[0][0] * x
        x, step = x + step, step / (times[n + 1] - times[n])
        weights[n, : n + lead + 1] = torch.where(step.abs() < rounding, 0, step)[: n + lead + 1].flip(0)
    return weights[:, : int(weights.any(dim=0).nonzero().max()) + 1]
