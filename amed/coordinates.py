"""Compile recipes into rows, by running them on coordinates.

Coordinate 0 is x where the run stands; each slope so far (or denoised image, if the solver predicts data) is
one more. A recipe's step on these vectors gives the weights of a row's move."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .recipes import Point, Predictor, Solver, Vector, midpoint
from .table import END, Number, Row, Table, Weights, beside

NO_STEP = (
    "two noise levels are too close for a step between them (r is 0 or 1, or the noise levels hardly fall): "
    "choose fewer steps, or another predictor"
)


def not_finite_on_cpu(v: Number) -> bool:
    """Return whether a number is a CPU tensor that contains NaN or infinity, e.g. after a division by 0.

    Always False for tensors on other devices, because checking them would wait for the device."""
    return isinstance(v, Tensor) and v.device.type == "cpu" and not bool(v.isfinite().all())


class Sum:
    """A symbolic sum of x and slopes dx/dsigma, e.g. x - 0.5 d_1, stored as coefficients by index: 0 is x, k
    is the k-th slope.

    A coefficient is a number, or a Tensor with one number per sample. A missing one is zero."""

    __slots__ = ("of",)

    def __init__(self, of: dict[int, Number]):
        self.of = of

    def __add__(self, other: "Sum") -> "Sum":
        of = dict(self.of)
        for k, v in other.of.items():
            of[k] = of[k] + v if k in of else v
        return Sum(of)

    def __radd__(self, zero: float) -> "Sum":
        """Return 0 + this sum, so that Python's `sum`, which starts at 0, can add such sums."""
        return self

    def __sub__(self, other: "Sum") -> "Sum":
        return self + -1.0 * other

    def __mul__(self, number: Number) -> "Sum":
        return Sum({k: number if type(v) is float and v == 1 else number * v for k, v in self.of.items()})

    __rmul__ = __mul__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Sum":
        """Return the product of a Tensor and a Sum (torch calls this for `tensor * sum`)."""
        number, vector = args
        return Sum.__mul__(vector, number)


class Compiler:
    """Runs a solver's formula on symbolic sums of slopes (dx/dsigma), to find the weights by which each step
    adds slopes to x.

    The sums stand for the change of x in a step, not x itself, so that single precision suffices."""

    def __init__(self, solver: Solver, times: list[float], predictor: Predictor | None, afs: bool, like: Any):
        """Prepare to compute the steps of one run.

        Args:
            solver: a solver that is defined by a formula (not "multistep").
            times: noise levels, falling and positive.
            predictor: gives the constants of each interval between noise levels; None for the plain solver.
            afs: whether the first step uses an analytic slope, without an evaluation.
            like: a tensor with the dtype, device and number of axes of x, for constants that differ between
                samples; None if all constants are plain numbers."""
        self.solver, self.recipe, self.predictor, self.afs = solver, solver.recipe, predictor, afs
        self.times, self.like = times, like
        self.legs = solver.each(predictor is not None) * (len(times) - 1)  # moves of the run
        self.leg = 0  # index of the next move
        self.data = solver.predicts_data
        self.here = Sum({0: 1.0})  # the current x
        self.history = list[Point]()  # as far back as the recipe needs it
        self.seen = 0  # slopes so far
        self.start: Vector = None  # x at the start of the current interval, relative to the current x
        self.constants: dict[str, Number] = {}  # of the current interval

    def number(self, v: Number) -> Number:
        """Return a solver's constant, a number or a Tensor with one per sample, so that it can be multiplied
        with x.

        If x is on a GPU, a Tensor with one number on the CPU becomes a float."""
        if self.like is None or not isinstance(v, Tensor):
            return v
        away = v.device.type == "cpu" != self.like.device.type
        if away and v.numel() == 1 and not v.requires_grad:
            return float(v)
        return beside(v, self.like)

    def take(self, s: Number, c: Number, more: dict[str, Number]) -> Vector:
        """Return x after one step of the solver's formula from the current x, as a symbolic sum of x and
        slopes dx/dsigma.

        Args:
            s: noise level at the end of the step.
            c: AMED's factor on the direction of the step; 1 without a predictor.
            more: further fitted constants of the formula, by name."""
        order = self.solver.order(self.seen, self.leg, self.legs)
        self.leg += 1
        return self.recipe.step(self.solver, self.here, self.history, s, order, c, **more)

    def moved(self, x: Vector) -> Vector:
        """Return the change of x in a step; its coefficients become the step's weights.

        Args:
            x: the new value of x after the step, a symbolic sum of the current x and slopes dx/dsigma.

        Returns:
            `x` minus the current x: a sum of slopes, or, for solvers that predict data (e.g. DPM++), of x and
            denoised images."""
        difference = x - self.here
        if not self.data:
            difference.of.pop(0, None)
        return difference

    def opening(self, n: int) -> Row | None:
        """Return the step (an evaluation, then a change of x) that starts at the noise level with index n.

        Its weights for adding slopes to x are left empty; `rows` sets them. None if n is the last level."""
        if n == len(self.times) - 1:
            return None
        analytic, two = self.afs and n == 0, self.recipe.pair or self.predictor is not None
        bottleneck = getattr(self.predictor, "wants_bottleneck", False) and not analytic
        wants = frozenset({"bottleneck"} if bottleneck else ())
        return Row(self.times[n], (), analytic=analytic, closes=not two, data=self.data, wants=wants)

    def advance(self, row: Row, n: int, bottleneck: Tensor | None) -> tuple[Vector, Row | None]:
        """Return the change of x after an evaluation, as a symbolic sum, and the next step of the run (None
        at its end).

        Args:
            row: the step whose evaluation was made.
            n: index of the noise level at which its interval starts.
            bottleneck: output of the U-Net's middle block in this evaluation, the input of an AMED network;
                None if not captured."""
        t, t_next = self.times[n : n + 2]
        unit = Sum({1 + self.seen: 1.0})
        level = self.number(row.sigma)
        self.history.append(Point(level, data=unit) if self.data else Point(level, unit))
        del self.history[: -self.solver.max_order - 1]
        self.seen += 1
        if row.closes and row.opens:
            return self.moved(self.take(t_next, 1.0, {})), self.opening(n + 1)
        if row.opens:
            if self.predictor is not None:
                if torch.is_grad_enabled():  # Algorithm 1 backpropagates through one interval only
                    self.history = [detach(point) for point in self.history]
                values = self.predictor(t, t_next, bottleneck)
                self.constants = {k: self.number(v) for k, v in zip(self.recipe.constants, values)}
            r = self.constants.get("r", self.recipe.r)
            s = t_next if isinstance(r, float) and r == 1 else midpoint(t, t_next, r)
            away = (s - t) * self.history[-1].d if self.recipe.pair else None
            move = self.moved(self.take(s, 1.0, {}) if away is None else self.here + away)
            self.start = None if away is None else self.here - away
            level = self.constants.get("a", 1.0) * s
            rescaled = getattr(self.predictor, "rescales", False)
            return move, Row(s, (), level, rescaled=rescaled, opens=False, data=self.data)
        more = {k: v for k, v in self.constants.items() if k not in ("r", "a")}
        c = more.pop("c", 1.0)
        if not self.recipe.pair:
            return self.moved(self.take(t_next, c, more)), self.opening(n + 1)
        first, mid = self.history[-2:]
        r = self.constants.get("r", self.recipe.r)
        x = self.recipe.step(self.start, first.d, mid.d, t, t_next, r, c, **more)
        return self.moved(x), self.opening(n + 1)

    def weights(self, move: Vector, reach: int) -> Weights:
        """Return the weights by which a step adds earlier slopes dx/dsigma to x, newest first.

        Args:
            move: the step's change of x, a symbolic sum of slopes (see `moved`).
            reach: the largest number of slopes to return weights for; older ones are not used."""
        shares = [move.of.get(k, 0.0) for k in range(self.seen, max(self.seen - reach, 0), -1)]
        newest = (move.of.get(0, 0.0), shares[0]) if self.data else (shares[0],)
        return (newest, *((share,) for share in shares[1:]))

    def rows(self, fixed: bool) -> Iterator[Row]:
        """Yield the steps of the run: each one evaluation, and the weights for the change of x after it.

        Args:
            fixed: whether the weights are known in advance; if not, each step gets a function that computes
                them after its evaluation."""
        reach = max(self.solver.max_order, 1 + self.recipe.pair) + self.recipe.corrects
        row, interval = self.opening(0), 0
        while row is not None:
            after: list[Row | None] = []

            def weights(
                state: Any, row: Row = row, n: int = interval, after: list[Row | None] = after
            ) -> Weights:
                evaluation = getattr(state, "evaluation", None)
                try:
                    move, following = self.advance(row, n, getattr(evaluation, "bottleneck", None))
                except ArithmeticError:
                    raise ValueError(NO_STEP) from None
                after.append(following)
                shares = self.weights(move, reach)
                broken = any(not_finite_on_cpu(v) for share in shares for v in share)
                if broken and not not_finite_on_cpu(self.constants.get("r", 0.5)):
                    raise ValueError(NO_STEP)
                return shares

            hand, older = self.seen + 1, 0 if self.recipe.pair and row.closes else reach - 1
            row.needed = tuple(k > hand - 1 - older for k in range(hand))
            row.weights = weights(None) if fixed else weights
            yield row
            interval, row = interval + row.closes, after[0]


def rows(solver: Solver, times: list[float], predictor: Predictor | None = None, afs: bool = False,
         like: Tensor | None = None) -> Iterator[Row]:  # fmt: skip
    """Yield the steps of a solver's run: each one evaluation, and the weights by which slopes are then added
    to x.

    The weights are numbers without a predictor, or if it has fixed constants. If it is a network, each step
    has a function that computes them after its evaluation.

    Args:
        solver: a solver that is defined by a formula (not "multistep").
        times: noise levels, falling and positive; a last 0 is one more step, to the denoised image.
        predictor: gives the constants of each interval between noise levels; None for the plain solver.
        afs: whether the first step uses an analytic slope, without an evaluation.
        like: a tensor with the dtype, device and number of axes of x; needed if the predictor is a network.

    Raises:
        ValueError: Two noise levels are too close, e.g. because a network returned r = 0."""
    positive = [t for t in times if t > 0]
    fixed = predictor is None or getattr(predictor, "fixed", False)
    if len(positive) > 1:
        yield from Compiler(solver, positive, predictor, afs, None if fixed else like).rows(fixed)
    if times[-1] == 0:
        yield Row(positive[-1], (), to_zero=True, wants=END, needed=())


def detach(v: Any) -> Any:
    """Return a Tensor, a Sum of slopes or a Point (one evaluation) without gradient, and any other value
    unchanged."""
    if isinstance(v, Point):
        return Point(**{name: detach(value) for name, value in vars(v).items()})
    if isinstance(v, Sum):
        return Sum({k: detach(number) for k, number in v.of.items()})
    return v.detach() if isinstance(v, Tensor) else v


def compiled(solver: Solver, times: list[float], predictor: Predictor | None = None,
             afs: bool = False) -> Table:  # fmt: skip
    """Return a solver's run over the noise levels `times` as a table of weights for each step.

    The predictor, if any, must have fixed constants. See `rows` for the arguments."""
    return Table.of(rows(solver, times, predictor, afs), times[-1])
