"""Solvers as their papers write them.

A recipe is arithmetic on vectors: the current x, the slopes d = eps(x, t) = (x - D(x, t)) / t so far, and
times t in EDM's noise levels. Run on images it is the solver. Run on coordinates (one for x, one for each
slope) it gives the weights of each row, and this is how the engine runs it (coordinates.py). A new solver
is one function and one entry of RECIPES.

In every recipe s is the time at the end of the move, h the history (`Point`s, newest last), and c AMED's
scale of the direction."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from . import schedules
from .double import as_double
from .parameters import AMED
from .table import Number

Vector = Any  # an image, or coordinates (coordinates.Sum): can be added, and multiplied by a number


@dataclass
class Point:
    """One evaluation of the model in a run, with its results, which the solver's later steps use."""

    t: Number  # noise level of the evaluation
    d: Vector = None  # slope; None if the solver predicts data
    data: Vector = None  # denoised image; None unless the solver predicts data
    leg: Vector = None  # UniPC only: what the prediction from here added to first order's step
    order: int = 1  # UniPC only: order of that prediction
    c: Number = 1.0  # UniPC only: scale of that prediction


def log(v: Number) -> Number:
    """Return the natural logarithm of a number or tensor."""
    return v.log() if isinstance(v, Tensor) else math.log(v)


def expm1(v: Number) -> Number:
    """Return exp(v) - 1 of a number or tensor."""
    return torch.expm1(v) if isinstance(v, Tensor) else math.expm1(v)


def midpoint(t: Number, t_next: Number, r: Number) -> Number:
    """Return the time that divides an interval geometrically, t_next^r t^(1 - r): `t` for r = 0, `t_next` for
    r = 1 (AMED, sec. 3.3)."""
    if isinstance(r, Tensor):
        return (r * (log(t_next) - log(t))).exp() * t
    return t_next**r * t ** (1 - r)


# --- one evaluation per step: (solver, x, h, s, order, c) -> x at s ----------------------------------------

ADAMS_BASHFORTH = {  # equal-step coefficients, newest slope first (iPNDM, Zhang & Chen 2023, eq. 11)
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int, c: Number) -> Vector:
    """Adams-Bashforth with the coefficients of equal steps, on the last `order` slopes (iPNDM). Order 1 is
    Euler's method, i.e. DDIM in EDM's time."""
    slope = sum(w * point.d for w, point in zip(ADAMS_BASHFORTH[order], reversed(h)))
    return x + c * (s - h[-1].t) * slope


def dpmpp(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int, c: Number) -> Vector:
    """Multistep DPM-Solver++ (Lu et al. 2022b, alg. 2), lambda = -log t; the second order is the midpoint
    form. As in the code of AMED's authors, the learned scale c is applied to the terms with outputs of the
    model, not to the term with x."""
    data, t = solver.predict_x0, h[-1].t
    m = [point.data if data else point.d for point in reversed(h[-order:])]
    step, sign = log(t) - log(s), -1 if data else 1
    phi_1 = expm1(sign * step)
    linear, scale = (s / t * x, -c) if data else (x, -c * s)
    if order == 1:
        return linear + scale * phi_1 * m[0]
    r0 = (log(h[-2].t) - log(t)) / step
    d10 = (m[0] - m[1]) * (1 / r0)
    if order == 2:
        return linear + scale * phi_1 * (m[0] + 0.5 * d10)
    r1 = (log(h[-3].t) - log(h[-2].t)) / step
    d11 = (m[1] - m[2]) * (1 / r1)
    d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), 1 / (r0 + r1) * (d10 - d11)
    phi_2 = phi_1 / step - sign
    phi_3 = phi_2 / step - 0.5
    return linear + scale * (phi_1 * m[0] + sign * phi_2 * d1 + phi_3 * d2)


def deis(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int, c: Number) -> Vector:
    """tAB-DEIS (Zhang & Chen 2023, eq. 15): interpolate the last slopes by a polynomial in the time of the VP
    process with noise levels 0.002 to 80, and integrate it, by the same sum as ComfyUI's sample_deis."""
    t = h[-1].t
    if order == 1:
        return x + c * (s - t) * h[-1].d
    near = list(reversed(h[-order:]))
    like = next((v for v in (s, t, *(p.t for p in near)) if isinstance(v, Tensor)), None)
    zero = as_double(0.0) if like is None else like.new_zeros(())
    points = torch.linspace(0, 1, 10_000, dtype=zero.dtype, device=zero.device)  # as ComfyUI takes them
    given = (zero + v for v in (t, s, *(p.t for p in near)))
    first, last, *times = (schedules.vp_time(v[..., None], 0.002, 80.0) for v in given)
    tau = first + (last - first) * points
    pace = schedules.vp_pace(tau, 0.002, 80.0) * (last - first) / len(points)
    total = 0.0
    for j, point in enumerate(near):
        basis = math.prod((tau - other) / (times[j] - other) for k, other in enumerate(times) if k != j)
        weight = (basis * pace).sum(dim=-1)
        total = total + (float(weight) if like is None else weight) * point.d
    return x + c * total


def unipc(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int, c: Number) -> Vector:
    """UniPC with B(h), data prediction (Zhao et al. 2023, alg. 5 and 7): the newest evaluation first corrects
    the step that led to it, then predicts the next. Both changes of x are scaled by the learned c."""
    here = h[-1]
    if len(h) > 1:  # prediction and correction of the last step share its first-order part
        last = h[-2]
        x = x + last.c * (unipc_leg(solver, h[:-1], here.t, last.order, here.data) - last.leg)
    here.leg, here.order, here.c = unipc_leg(solver, h, s, order), order, c
    return x + c * ((s / here.t - 1) * (x - here.data) + here.leg)


def unipc_leg(solver: "Solver", h: list[Point], s: Number, order: int, seen: Vector | None = None) -> Vector:
    """Return the higher-order term of a step of UniPC from the newest evaluation to noise level s (Zhao et
    al. 2023, eq. 3, in units of sigma).

    Args:
        solver: UniPC with its variant of B(h).
        h: the evaluations so far, newest last.
        s: noise level at the end of the step.
        order: order of the step.
        seen: the denoised image at s, for the corrector (UniC). Default: none, for the predictor (UniP)."""
    t, m = h[-1].t, [point.data for point in reversed(h[-order:])]
    step = log(s) - log(t)  # -h of the paper
    phi = expm1(step)
    b_h = phi if solver.variant == "bh2" else step
    nodes = [(log(t) - log(point.t)) / -step for point in reversed(h[-order:-1])]
    slopes = [(v - m[0]) * (1 / node) for v, node in zip(m[1:], nodes)]
    if seen is not None:
        nodes, slopes = [*nodes, 1.0], [*slopes, seen - m[0]]
    if not slopes:
        return 0.0 * m[0]
    if len(slopes) == 1 and (seen is None or order == 1):  # the papers' simplified second order
        weights: list[Number] = [0.5]
    else:
        right, value, factorial = [], phi / step - 1, 1
        for i in range(1, len(slopes) + 1):
            right.append(value * factorial / b_h)
            factorial *= i + 1
            value = value / step - 1 / factorial
        weights = solve([[node**i for node in nodes] for i in range(len(nodes))], right)
    return -b_h * sum(w * v for w, v in zip(weights, slopes))


def solve(matrix: list[list[Number]], right: list[Number]) -> list[Number]:
    """Solve a small system of linear equations, of numbers or tensors, by elimination.

    The rows are not exchanged, so that no pivot may be 0."""
    rows = [[*row, value] for row, value in zip(matrix, right)]
    for i in range(len(rows)):
        pivot: list[Number] = [v / rows[i][i] for v in rows[i]]
        rows = [
            pivot if j == i else [a - row[i] * b for a, b in zip(row, pivot)] for j, row in enumerate(rows)
        ]
    return [row[-1] for row in rows]


# --- two evaluations per step: (x, d, d_mid, t, s, r, c) -> x at s; Euler's step leads to the mid time -----


def amed(x: Vector, d: Vector, d_mid: Vector, t: Number, s: Number, r: Number, c: Number) -> Vector:
    """AMED-Solver (Zhou et al. 2024, eq. 9): cross the interval along the scaled slope at the learned mid
    time."""
    return x + c * (s - t) * d_mid


def dpm_2(x: Vector, d: Vector, d_mid: Vector, t: Number, s: Number, r: Number, c: Number) -> Vector:
    """DPM-Solver-2(r) (Lu et al. 2022, alg. 4; usually r = 1/2): the weights of both slopes depend on r."""
    return x + c * (s - t) * (1 / (2 * r) * d_mid + (1 - 1 / (2 * r)) * d)


def heun(x: Vector, d: Vector, d_mid: Vector, t: Number, s: Number, r: Number, c: Number) -> Vector:
    """EDM's Heun step: the mean of the slopes at both ends (r = 1)."""
    return x + c * (s - t) * (0.5 * d + 0.5 * d_mid)


# --- the list of solvers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A solver's formula and properties, e.g. its highest order and its evaluations per interval."""

    # the formula: (solver, x, h, s, order, c), or (x, d, d_mid, t, s, r, c) with `pair`; returns x at s
    step: Callable[..., Vector]
    pair: bool = False  # every interval takes two evaluations, the second at its mid time
    orders: int = 1  # the highest `Solver.max_order`
    r: float = 0.5  # mid time of a pair without a predictor: 0 is the start of the interval, 1 its end
    lowers: bool = False  # the order falls to 1 at the end of the run (`Solver.lower_order_final`)
    corrects: bool = False  # each evaluation also corrects the move that led to it (the last move has none)
    # whether steps are sums of denoised images instead of slopes; "optional": as `Solver.predict_x0` says
    predicts_data: Literal["never", "optional", "always"] = "never"
    repeats_time: bool = False  # evaluates twice at one noise level, so that `multistep` cannot express it
    teaches: bool = True  # may be its own teacher in Algorithm 1; otherwise Heun is
    # names of parameters.PARAMETERS, one value per interval; those other than r, c and a are passed to `step`
    # by name and need a default there
    constants: tuple[str, ...] = AMED


RECIPES = {
    "amed": Recipe(amed, pair=True, teaches=False),
    "dpm_2": Recipe(dpm_2, pair=True, teaches=False),
    "heun": Recipe(heun, pair=True, r=1.0, repeats_time=True),
    "euler": Recipe(ipndm),
    "ipndm": Recipe(ipndm, orders=4),
    "dpmpp": Recipe(dpmpp, orders=3, lowers=True, predicts_data="optional"),
    "deis": Recipe(deis, orders=4),
    "unipc": Recipe(unipc, orders=3, lowers=True, corrects=True, predicts_data="always"),
}
MULTISTEP = "multistep"  # has no recipe: its times and weights are fitted (constants.Multistep)
VARIANTS = ("bh1", "bh2")  # B(h) = h and B(h) = exp(h) - 1 of UniPC


@dataclass(frozen=True)
class Solver:
    """An ODE solver and its settings.

    Raises:
        ValueError: Unknown name or variant, or an order that the solver does not have."""

    name: str = "amed"  # a name of RECIPES, or "multistep"
    max_order: int = 1  # highest order of a step, 1 to `Recipe.orders`
    predict_x0: bool = False  # predict data instead of noise (dpmpp only)
    lower_order_final: bool = True  # fall to first order at the end of the run (dpmpp and unipc only)
    variant: str = "bh1"  # UniPC's B(h), one of VARIANTS (unipc only)

    def __post_init__(self) -> None:
        if self.name not in (*RECIPES, MULTISTEP):
            names = ", ".join((*RECIPES, MULTISTEP))
            raise ValueError(f"unknown solver {self.name!r}: choose one of {names}")
        highest = self.recipe.orders if self.has_recipe else 1
        if not 1 <= self.max_order <= highest:
            raise ValueError(
                f"the solver {self.name} has orders 1 to {highest}, but max_order is {self.max_order}"
            )
        if self.variant not in VARIANTS:
            raise ValueError(
                f"unknown variant {self.variant!r} of the solver UniPC: choose one of {', '.join(VARIANTS)}"
            )

    @property
    def has_recipe(self) -> bool:
        """Whether a formula defines the solver; False for "multistep", whose weights are fitted."""
        return self.name in RECIPES

    @property
    def recipe(self) -> Recipe:
        """The solver's formula and properties. Raises KeyError for "multistep", which has no formula."""
        return RECIPES[self.name]

    @property
    def predicts_data(self) -> bool:
        """Whether a step is a weighted sum of x and denoised images, not of x and slopes dx/dsigma."""
        trait = self.recipe.predicts_data if self.has_recipe else "never"
        return trait == "always" or (trait == "optional" and self.predict_x0)

    @property
    def single_step(self) -> bool:
        """Whether an interval is solved from its own slopes alone, without those of earlier intervals."""
        return self.has_recipe and (self.recipe.pair or self.recipe.orders == 1)

    def each(self, learned: bool) -> int:
        """Return the evaluations of the model per interval: two if it has a mid time, otherwise one.

        Args:
            learned: whether an AMED predictor runs the solver; it adds a mid time, except to "multistep"."""
        return 2 if self.has_recipe and (self.recipe.pair or learned) else 1

    def evaluations(self, base_times: int, afs: bool, learned: bool) -> int:
        """Return how many evaluations of the model a run takes.

        Args:
            base_times: number of positive noise levels in the schedule.
            afs: whether the first step is analytic, which saves an evaluation.
            learned: whether an AMED predictor runs the solver."""
        return self.each(learned) * (base_times - 1) - afs

    def order(self, seen: int, leg: int, legs: int) -> int:
        """Return the order of one step of a run: `max_order`, or less.

        It is less while there are few evaluations, and in the last steps if `lower_order_final` is set.
        UniPC, which also corrects its steps, has at most order legs - 1.

        Args:
            seen: number of evaluations so far.
            leg: number of the step, from 0.
            legs: number of steps of the run."""
        highest = min(self.max_order, max(1, legs - 1)) if self.recipe.corrects else self.max_order
        final = self.recipe.lowers and self.lower_order_final and leg + 1 >= highest
        return min(highest, seen, legs - leg) if final else min(highest, seen)


class Predictor(Protocol):
    """A function that returns the learned constants of one interval of the schedule.

    Args:
        t, t_next: noise levels at the interval's start and end.
        bottleneck: `[B, C, H, W]`, the U-Net's bottleneck at t; None if the predictor does not need it or the
            host does not provide it.

    Returns:
        Mid time r, direction scale c and time scale a, or other constants that the solver's formula needs:
        numbers, or Tensors `[B]` or `[1]`."""

    wants_bottleneck: bool  # whether the call needs the bottleneck of the evaluation at t

    def __call__(self, t: float, t_next: float, bottleneck: Tensor | None = None) -> tuple[Number, ...]: ...
