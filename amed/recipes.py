"""Solvers as their papers write them, and the tables they make.

A recipe is plain arithmetic on vectors: x where it stands, the slopes d = eps(x, t) = (x - D(x, t)) / t seen
so far, times t in EDM's noise levels. Run on images it is the solver; run on coordinates (one for x, one for
each slope) it gives the weights of each row, and that is how everything here runs it. A new solver is one
function and one entry of RECIPES.

In every recipe s is the time gone to, h the history (`Point`s, newest last), c AMED's scale of the direction.
Over 400 lines, as all formulas and what runs them are read together."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import schedules
from .parameters import AMED
from .table import END, Number, Row, Table, Weights

Vector = Any  # an image, or coordinates: what can be added, and multiplied by a number


@dataclass
class Point:
    """Where a slope was seen: time t, position x, slope d. start, order, c: how UniPC went on from there."""

    t: Number
    x: Vector
    d: Vector
    start: Vector = None
    order: int = 1
    c: Number = 1.0

    @property
    def data(self) -> Vector:
        """The denoised D = x - t d."""
        return self.x - self.t * self.d


def log(v: Number) -> Number:
    return v.log() if isinstance(v, Tensor) else np.log(v)


def expm1(v: Number) -> Number:
    return torch.expm1(v) if isinstance(v, Tensor) else np.expm1(v)


def midpoint(t: Number, t_next: Number, r: Number) -> Number:
    """s_n = t_n^r t_{n+1}^(1-r): between two times geometrically, r = 0 at `t`, 1 at `t_next` (AMED, sec.
    3.3)."""
    return t_next**r * t ** (1 - r)


# --- one evaluation a step: (solver, x, h, s, order, c) -> x at s ------------------------------------------

ADAMS_BASHFORTH = {  # equal-step coefficients, newest slope first (iPNDM, Zhang & Chen 2023, eq. 11)
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int, c: Number) -> Vector:
    """Adams-Bashforth of equal steps on the last `order` slopes; order 1 is Euler, DDIM in EDM's time."""
    slope = sum(w * point.d for w, point in zip(ADAMS_BASHFORTH[order], reversed(h)))
    return x + c * (s - h[-1].t) * slope


def dpmpp(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int, c: Number) -> Vector:
    """Multistep DPM-Solver++ (Lu et al. 2022b, alg. 2), lambda = -log t; the second order is the midpoint
    form. c scales the terms of the model, not the linear one, as AMED's authors do."""
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


POINTS = torch.linspace(0, 1, 10_000, dtype=torch.float64)  # of DEIS's sums, as ComfyUI takes them


def deis(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int, c: Number) -> Vector:
    """tAB-DEIS (Zhang & Chen 2023, eq. 15): the slopes' polynomial in the time tau of the VP process from
    0.002 to 80, integrated over the noise level by the sum that ComfyUI's sample_deis takes, its error
    included (at three steps from 80 it moves a pixel by .001)."""
    t = h[-1].t
    if order == 1:
        return x + c * (s - t) * h[-1].d
    near = list(reversed(h[-order:]))
    like = next((v for v in (s, t, *(p.t for p in near)) if isinstance(v, Tensor)), POINTS)
    numbers = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (t, s, *(p.t for p in near)))
    first, last, *times = (schedules.vp_time(v, 0.002, 80.0) for v in numbers)
    tau = first + (last - first) * POINTS.to(like)
    pace = schedules.vp_pace(tau, 0.002, 80.0) * (last - first) / len(POINTS)
    total = 0.0
    for j, point in enumerate(near):
        basis = math.prod((tau - other) / (times[j] - other) for k, other in enumerate(times) if k != j)
        weight: Any = (basis * pace).sum(dim=-1, keepdim=True)
        if like is POINTS:
            weight = float(weight) if weight.numel() == 1 else weight.numpy()
        total = total + weight * point.d
    return x + c * total


def unipc(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int, c: Number) -> Vector:
    """UniPC with B(h), data prediction (Zhao et al. 2023, alg. 5 and 7): the slope seen here first corrects
    the step that led here, then predicts. c scales the way from the corrected x, in both."""
    here = h[-1]
    if len(h) > 1:
        last = h[-2]
        corrected = unipc_leg(solver, last.start, h[:-1], here.t, last.order, here.data)
        x = last.start + last.c * (corrected - last.start)
    here.start, here.order, here.c = x, order, c
    return x + c * (unipc_leg(solver, x, h, s, order) - x)


def unipc_leg(solver: "Solver", x: Vector, h: list[Point], s: Number, order: int,
              seen: Vector | None = None) -> Vector:  # fmt: skip
    """UniP, or with the data prediction `seen` at s UniC: x at s (eq. 3 of the paper in sigma's units)."""
    t, m = h[-1].t, [point.data for point in reversed(h[-order:])]
    step = log(s) - log(t)  # -h of the paper
    phi = expm1(step)
    b_h = phi if solver.variant == "bh2" else step
    base = s / t * x - phi * m[0]
    nodes = [(log(t) - log(point.t)) / -step for point in reversed(h[-order:-1])]
    slopes = [(v - m[0]) * (1 / node) for v, node in zip(m[1:], nodes)]
    if seen is not None:
        nodes, slopes = [*nodes, 1.0], [*slopes, seen - m[0]]
    if not slopes:
        return base
    if len(slopes) == 1 and (seen is None or order == 1):  # the papers' simplified second order
        weights: list[Number] = [0.5]
    else:
        right, value, factorial = [], phi / step - 1, 1
        for i in range(1, len(slopes) + 1):
            right.append(value * factorial / b_h)
            factorial *= i + 1
            value = value / step - 1 / factorial
        weights = solve([[node**i for node in nodes] for i in range(len(nodes))], right)
    return base - b_h * sum(w * v for w, v in zip(weights, slopes))


def solve(matrix: list[list[Number]], right: list[Number]) -> list[Number]:
    """A small linear system by elimination (numbers or tensors; its first row has no zero)."""
    rows = [[*row, value] for row, value in zip(matrix, right)]
    for i in range(len(rows)):
        pivot: list[Number] = [v / rows[i][i] for v in rows[i]]
        rows = [
            pivot if j == i else [a - row[i] * b for a, b in zip(row, pivot)] for j, row in enumerate(rows)
        ]
    return [row[-1] for row in rows]


# --- two evaluations a step: (x, d, d_mid, t, s, r, c) -> x at s; the first leg is Euler's ------------------


def amed(x: Vector, d: Vector, d_mid: Vector, t: Number, s: Number, r: Number, c: Number) -> Vector:
    """AMED-Solver (eq. 9): the whole interval along the scaled slope at the learned mid time."""
    return x + c * (s - t) * d_mid


def dpm_2(x: Vector, d: Vector, d_mid: Vector, t: Number, s: Number, r: Number, c: Number) -> Vector:
    """DPM-Solver-2(r) (Lu et al. 2022, alg. 4; r = 1/2 is the classic), r learned in the weights too."""
    return x + c * (s - t) * (1 / (2 * r) * d_mid + (1 - 1 / (2 * r)) * d)


def heun(x: Vector, d: Vector, d_mid: Vector, t: Number, s: Number, r: Number, c: Number) -> Vector:
    """EDM's Heun step: the mean of the slopes at both ends (r = 1)."""
    return x + c * (s - t) * (0.5 * d + 0.5 * d_mid)


# --- what there is -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """step: one of the functions above. pair: two evaluations an interval, always. orders: the highest. r: of
    the mid time where nobody chooses it. long: a row may weigh every slope since the first, and the last leg
    is of first order (Solver.lower_order_final). splits_x: c does not scale what a data prediction does to x
    itself. corrects: the last leg, which nothing corrects, is no start. constants: names of
    parameters.PARAMETERS that AMED fits for each interval; those beside r, c, a are handed to `step` by
    name, which must do without them too."""

    step: Callable[..., Vector]
    pair: bool = False
    orders: int = 1
    r: float = 0.5
    long: bool = False
    splits_x: bool = False
    corrects: bool = False
    constants: tuple[str, ...] = AMED


RECIPES = {
    "amed": Recipe(amed, pair=True),
    "dpm_2": Recipe(dpm_2, pair=True),
    "heun": Recipe(heun, pair=True, r=1.0),
    "euler": Recipe(ipndm),
    "ipndm": Recipe(ipndm, orders=4),
    "dpmpp": Recipe(dpmpp, orders=3, long=True, splits_x=True),
    "deis": Recipe(deis, orders=4),
    "unipc": Recipe(unipc, orders=3, long=True, corrects=True),
}
MULTISTEP = "multistep"  # no recipe: free times and free weights (constants.Multistep)
VARIANTS = ("bh1", "bh2")


@dataclass(frozen=True)
class Solver:
    """Which ODE solver: a name of RECIPES, or "multistep", and its settings.

    max_order: 1 to the recipe's. predict_x0: data instead of noise prediction (dpmpp). lower_order_final:
    first order at the last leg (dpmpp, unipc). variant: of B(h) (unipc). Raises ValueError for what no solver
    has."""

    name: str = "amed"
    max_order: int = 1
    predict_x0: bool = False
    lower_order_final: bool = True
    variant: str = "bh1"

    def __post_init__(self) -> None:
        if self.name != MULTISTEP and self.name not in RECIPES:
            names = ", ".join((*RECIPES, MULTISTEP))
            raise ValueError(f"unknown solver {self.name!r}: choose one of {names}")
        highest = 1 if self.name == MULTISTEP else RECIPES[self.name].orders
        if not 1 <= self.max_order <= highest:
            raise ValueError(f"{self.name} has orders 1 to {highest}, got {self.max_order}")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}: choose one of {', '.join(VARIANTS)}")

    @property
    def recipe(self) -> Recipe:
        """Raises KeyError for "multistep", which has none."""
        return RECIPES[self.name]

    @property
    def single_step(self) -> bool:
        """Whether an interval looks at no slope of the one before."""
        return self.name != MULTISTEP and (self.recipe.pair or self.recipe.orders == 1)

    def each(self, learned: bool) -> int:
        """Evaluations an interval; `learned`: as a student, with AMED's mid time."""
        return 2 if self.name != MULTISTEP and (self.recipe.pair or learned) else 1

    def evaluations(self, base_times: int, afs: bool, learned: bool) -> int:
        """How many evaluations a run over `base_times` positive times takes (for planning; counts are
        counted)."""
        return self.each(learned) * (base_times - 1) - afs

    def order(self, seen: int, leg: int, legs: int) -> int:
        """Of leg number `leg` of `legs`, with `seen` slopes in hand."""
        highest = min(self.max_order, max(1, legs - 1)) if self.recipe.corrects else self.max_order
        final = self.recipe.long and self.lower_order_final and leg + 1 >= highest
        return min(highest, seen, legs - leg) if final else min(highest, seen)


class Predictor(Protocol):
    """Gives the constants (r, c, a) of the interval from t to t_next, numbers or Tensors `[B or 1]`; asks for
    the bottleneck at t if it wants it."""

    wants_bottleneck: bool

    def __call__(self, t: float, t_next: float, bottleneck: Tensor | None = None) -> tuple[Number, ...]: ...


# --- running a recipe on coordinates -----------------------------------------------------------------------


class Course:
    """A run of a recipe over `times`, on vectors [where the run stands, x_0, slope 0, slope 1, ...].

    Positions are kept relative to where the run stands, so that an entry is of the size of a move, not of x,
    and single precision serves. `like`: a tensor of the device and dtype of coordinates that depend on the
    sample; None: they are plain numbers."""

    def __init__(self, solver: Solver, times: list[float], predictor: Predictor | None, afs: bool, like: Any):
        self.solver, self.recipe, self.predictor, self.afs = solver, solver.recipe, predictor, afs
        self.times, self.legs, self.like = times, solver.each(predictor is not None) * (len(times) - 1), like
        # c on the terms of a data prediction alone leaves x scaled: then x_0 must be in hand, as a slope
        self.scales_x = predictor is not None and self.recipe.splits_x and solver.predict_x0
        self.leg = 0
        size = self.legs + 2
        own = {} if like is None else {"dtype": like.dtype, "device": like.device}
        self.units = np.eye(size) if like is None else torch.eye(size, **own)[:, None]
        self.here, self.whole, self.history = self.units[0], self.units[1], list[Point]()
        self.seen = 0  # slopes; the history goes back as far as a recipe looks
        self.start: Vector = None  # of the interval under way, and its constants
        self.given: dict[str, Number] = {}

    def number(self, v: Number) -> Any:
        if not isinstance(v, Tensor):
            return v
        if self.like is not None:
            return v.to(self.like).reshape(-1, 1)
        return v.double().reshape(-1, 1).numpy() if v.numel() > 1 else float(v)

    def take(self, s: Number, c: Number, more: dict[str, Number]) -> Vector:
        """One leg of a solver with one evaluation a step."""
        order = self.solver.order(self.seen, self.leg, self.legs)
        self.leg += 1
        return self.recipe.step(self.solver, self.here, self.history, s, order, c, **more)

    def moved(self, x: Vector) -> Vector:
        """The move to x, in x_0 and slopes alone; the run stands there from now on."""
        move = x - self.here
        if self.scales_x:
            move = move + (x[..., :1] - 1) * self.whole
        move[..., 0] = 0
        if self.recipe.long:  # no other looks at positions
            self.whole = self.whole + move
            for point in self.history:
                point.x = point.x - move
                point.start = None if point.start is None else point.start - move
        return move

    def opening(self, n: int) -> Row | None:
        """The row that opens interval n, None after the last."""
        if n == len(self.times) - 1:
            return None
        analytic, two = self.afs and n == 0, self.recipe.pair or self.predictor is not None
        asks = getattr(self.predictor, "wants_bottleneck", False) and not analytic
        return Row(
            self.times[n],
            (),
            analytic=analytic,
            closes=not two,
            wants=frozenset({"bottleneck"} if asks else ()),
        )

    def advance(self, row: Row, n: int, bottleneck: Tensor | None) -> tuple[Vector, Row | None]:
        """From a row of interval n, now that it was looked at: the move, and the row after it."""
        t, t_next = self.times[n : n + 2]
        self.history.append(Point(self.number(row.sigma), self.here, self.units[2 + self.seen]))
        del self.history[: -self.solver.max_order - 1]
        self.seen += 1
        if row.closes and row.opens:
            return self.moved(self.take(t_next, 1.0, {})), self.opening(n + 1)
        if row.opens:
            if self.predictor is not None:  # Algorithm 1 goes back through one interval alone
                self.history, self.whole = [detach(point) for point in self.history], detach(self.whole)
                values = self.predictor(t, t_next, bottleneck)
                self.given = {k: self.number(v) for k, v in zip(self.recipe.constants, values)}
            r = self.given.get("r", self.recipe.r)
            s = t_next if isinstance(r, float) and r == 1 else midpoint(t, t_next, r)
            away = (s - t) * self.history[-1].d if self.recipe.pair else None
            move = self.moved(self.take(s, 1.0, {}) if away is None else self.here + away)
            self.start = None if away is None else self.here - away
            level = self.given.get("a", 1.0) * s
            scaled = getattr(self.predictor, "rescales", False)
            return move, Row(flat(s), (), flat(level), rescaled=scaled, opens=False)
        more = {k: v for k, v in self.given.items() if k not in ("r", "a")}
        c = more.pop("c", 1.0)
        if not self.recipe.pair:
            return self.moved(self.take(t_next, c, more)), self.opening(n + 1)
        first, mid = self.history[-2:]
        x = self.recipe.step(
            self.start, first.d, mid.d, t, t_next, self.given.get("r", self.recipe.r), c, **more
        )
        return self.moved(x), self.opening(n + 1)

    def weights(self, move: Vector, reach: int, lead: bool) -> Weights:
        """A move on the slopes in hand, newest first; x_0 is the first slope, the analytic one, scaled."""
        slopes = [move[..., 1 + k] for k in range(self.seen, max(self.seen - reach, 0), -1)]
        if self.scales_x:
            first = move[..., 1] * (1 + self.times[0] ** 2) ** 0.5
            slopes = [*slopes, first] if lead else [*slopes[:-1], slopes[-1] + first]
        return tuple((flat(v),) for v in slopes)

    def rows(self, fixed: bool) -> Iterator[Row]:
        lead = self.scales_x and not self.afs
        if lead:
            yield Row(self.times[0], ((0.0,),), analytic=True, opens=False, closes=False)
        reach = self.legs if self.recipe.long else max(self.solver.max_order, 1 + self.recipe.pair)
        row, interval = self.opening(0), 0
        while row is not None:
            after: list[Row | None] = []

            def weights(
                state: Any, row: Row = row, n: int = interval, after: list[Row | None] = after
            ) -> Weights:
                evaluation = getattr(state, "evaluation", None)
                move, following = self.advance(row, n, getattr(evaluation, "bottleneck", None))
                after.append(following)
                return self.weights(move, reach, lead)

            hand, needed = self.seen + 1, None
            if not self.recipe.long:
                kept = 0 if self.recipe.pair and row.closes else reach - 1
                needed = tuple(k > hand - 1 - kept for k in range(hand))
            yield replace(row, weights=weights(None) if fixed else weights, needed=needed)
            interval, row = interval + row.closes, after[0]


def rows(solver: Solver, times: list[float], predictor: Predictor | None = None, afs: bool = False,
         like: Tensor | None = None) -> Iterator[Row]:  # fmt: skip
    """The rows of a solver over `times` (positive, falling; a last 0 is one more row, to the denoised image).

    With a predictor whose constants are plain numbers, or none, a row's weights are numbers. Else they are a
    function of the loop's State, which asks the predictor then, in tensors like `like`."""
    positive = [t for t in times if t > 0]
    fixed = predictor is None or getattr(predictor, "fixed", False)
    if like is not None and like.device.type == "cpu" and not torch.is_grad_enabled():
        like = None  # NumPy's numbers are the faster ones, and no device has to be waited for
    if len(positive) > 1:
        yield from Course(solver, positive, predictor, afs, None if fixed else like).rows(fixed)
    if times[-1] == 0:
        yield Row(positive[-1], (), to_zero=True, wants=END, needed=())


def flat(v: Any) -> Number:
    """A number, or a Tensor of one of each sample's own."""
    if isinstance(v, Tensor):
        return v.flatten()
    return torch.from_numpy(v.flatten()) if isinstance(v, np.ndarray) and v.size > 1 else float(v)


def detach(v: Any) -> Any:
    """Without gradient: a Tensor, or the numbers of a point."""
    if isinstance(v, Point):
        return Point(*(detach(getattr(v, name)) for name in ("t", "x", "d", "start", "order", "c")))
    return v.detach() if isinstance(v, Tensor) else v


def compiled(solver: Solver, times: list[float], predictor: Predictor | None = None,
             afs: bool = False) -> Table:  # fmt: skip
    """The table of a solver over `times`; of a predictor whose constants are numbers, if one is given."""
    return Table.of(rows(solver, times, predictor, afs), times[-1])
