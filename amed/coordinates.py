"""A recipe run on coordinates, which gives the rows of a run."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .recipes import Point, Predictor, Solver, Vector, midpoint
from .table import END, Number, Row, Table, Weights, beside

NO_STEP = "two noise levels are too near to go from one to the other: r is 0 or 1, or times hardly fall"


def beyond(v: Number) -> bool:
    """Whether it is no finite number, as tensors divide by 0 without a word; of one on another device False,
    for that would be waited for."""
    return isinstance(v, Tensor) and v.device.type == "cpu" and not bool(v.isfinite().all())


class Sum:
    """Coordinates: a sum of numbers times unit vectors, by their index; what is not there is zero."""

    __slots__ = ("of",)

    def __init__(self, of: dict[int, Number]):
        self.of = of

    def __add__(self, other: "Sum") -> "Sum":
        of = dict(self.of)
        for k, v in other.of.items():
            of[k] = of[k] + v if k in of else v
        return Sum(of)

    def __radd__(self, zero: float) -> "Sum":  # where `sum` begins
        return self

    def __sub__(self, other: "Sum") -> "Sum":
        return self + -1.0 * other

    def __mul__(self, number: Number) -> "Sum":
        return Sum({k: number if type(v) is float and v == 1 else number * v for k, v in self.of.items()})

    __rmul__ = __mul__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> "Sum":
        """A tensor times coordinates: torch asks here first."""
        number, own = args
        return Sum.__mul__(own, number)


class Course:
    """A run of a recipe over `times`, on coordinates: 0 is x where the run stands, then slope after slope, or
    of a solver that predicts data image after image.

    Positions are relative to where the run stands, so that a number is of the size of a move, not of x, and
    single precision serves. `like`: an x, for numbers that depend on the sample; None: they are plain."""

    def __init__(self, solver: Solver, times: list[float], predictor: Predictor | None, afs: bool, like: Any):
        self.solver, self.recipe, self.predictor, self.afs = solver, solver.recipe, predictor, afs
        self.times, self.legs, self.like = times, solver.each(predictor is not None) * (len(times) - 1), like
        self.data, self.leg = solver.predicts_data, 0
        self.here, self.history = Sum({0: 1.0}), list[Point]()
        self.seen = 0  # slopes; the history goes back as far as a recipe looks
        self.start: Vector = None  # of the interval under way, and its constants
        self.given: dict[str, Number] = {}

    def number(self, v: Number) -> Number:
        """As it multiplies an image. A single one of the CPU's is plain where x lies elsewhere; beside x it
        stays a tensor, whose arithmetic rounds as that of a whole batch."""
        if self.like is None or not isinstance(v, Tensor):
            return v
        away = v.device.type == "cpu" != self.like.device.type
        if away and v.numel() == 1 and not v.requires_grad:
            return float(v)
        return beside(v, self.like)

    def take(self, s: Number, c: Number, more: dict[str, Number]) -> Vector:
        """One leg of a solver with one evaluation a step."""
        order = self.solver.order(self.seen, self.leg, self.legs)
        self.leg += 1
        return self.recipe.step(self.solver, self.here, self.history, s, order, c, **more)

    def moved(self, x: Vector) -> Vector:
        """The move to x; the run stands there from now on."""
        move = x - self.here
        if not self.data:
            move.of.pop(0, None)
        return move

    def opening(self, n: int) -> Row | None:
        """The row that opens interval n, None after the last."""
        if n == len(self.times) - 1:
            return None
        analytic, two = self.afs and n == 0, self.recipe.pair or self.predictor is not None
        asks = getattr(self.predictor, "wants_bottleneck", False) and not analytic
        wants = frozenset({"bottleneck"} if asks else ())
        return Row(self.times[n], (), analytic=analytic, closes=not two, data=self.data, wants=wants)

    def advance(self, row: Row, n: int, bottleneck: Tensor | None) -> tuple[Vector, Row | None]:
        """From a row of interval n, now that it was looked at: the move, and the row after it."""
        t, t_next = self.times[n : n + 2]
        unit = Sum({1 + self.seen: 1.0})
        level = self.number(row.sigma)
        self.history.append(Point(level, data=unit) if self.data else Point(level, unit))
        del self.history[: -self.solver.max_order - 1]
        self.seen += 1
        if row.closes and row.opens:
            return self.moved(self.take(t_next, 1.0, {})), self.opening(n + 1)
        if row.opens:
            if self.predictor is not None:  # Algorithm 1 goes back through one interval alone
                if torch.is_grad_enabled():
                    self.history = [detach(point) for point in self.history]
                values = self.predictor(t, t_next, bottleneck)
                self.given = {k: self.number(v) for k, v in zip(self.recipe.constants, values)}
            r = self.given.get("r", self.recipe.r)
            s = t_next if isinstance(r, float) and r == 1 else midpoint(t, t_next, r)
            away = (s - t) * self.history[-1].d if self.recipe.pair else None
            move = self.moved(self.take(s, 1.0, {}) if away is None else self.here + away)
            self.start = None if away is None else self.here - away
            level = self.given.get("a", 1.0) * s
            scaled = getattr(self.predictor, "rescales", False)
            return move, Row(s, (), level, rescaled=scaled, opens=False, data=self.data)
        more = {k: v for k, v in self.given.items() if k not in ("r", "a")}
        c = more.pop("c", 1.0)
        if not self.recipe.pair:
            return self.moved(self.take(t_next, c, more)), self.opening(n + 1)
        first, mid = self.history[-2:]
        r = self.given.get("r", self.recipe.r)
        x = self.recipe.step(self.start, first.d, mid.d, t, t_next, r, c, **more)
        return self.moved(x), self.opening(n + 1)

    def weights(self, move: Vector, reach: int) -> Weights:
        """A move on what is in hand, newest first."""
        shares = [move.of.get(k, 0.0) for k in range(self.seen, max(self.seen - reach, 0), -1)]
        own = (move.of.get(0, 0.0), shares[0]) if self.data else (shares[0],)
        return (own, *((share,) for share in shares[1:]))

    def rows(self, fixed: bool) -> Iterator[Row]:
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
                if any(beyond(v) for share in shares for v in share) and not beyond(self.given.get("r", 0.5)):
                    raise ValueError(NO_STEP)
                return shares

            hand, kept = self.seen + 1, 0 if self.recipe.pair and row.closes else reach - 1
            row.needed = tuple(k > hand - 1 - kept for k in range(hand))
            row.weights = weights(None) if fixed else weights
            yield row
            interval, row = interval + row.closes, after[0]


def rows(solver: Solver, times: list[float], predictor: Predictor | None = None, afs: bool = False,
         like: Tensor | None = None) -> Iterator[Row]:  # fmt: skip
    """The rows of a solver over `times` (positive, falling; a last 0 is one more row, to the denoised image).

    With a predictor whose constants are plain numbers, or none, a row's weights are numbers. Else they are a
    function of the loop's State, which asks the predictor then, in tensors like `like`. Raises ValueError
    where two levels are the same, as a network may have it whose r came to 0."""
    positive = [t for t in times if t > 0]
    fixed = predictor is None or getattr(predictor, "fixed", False)
    if len(positive) > 1:
        yield from Course(solver, positive, predictor, afs, None if fixed else like).rows(fixed)
    if times[-1] == 0:
        yield Row(positive[-1], (), to_zero=True, wants=END, needed=())


def detach(v: Any) -> Any:
    """Without gradient: a Tensor, coordinates, or the numbers of a point."""
    if isinstance(v, Point):
        return Point(**{name: detach(value) for name, value in vars(v).items()})
    if isinstance(v, Sum):
        return Sum({k: detach(number) for k, number in v.of.items()})
    return v.detach() if isinstance(v, Tensor) else v


def compiled(solver: Solver, times: list[float], predictor: Predictor | None = None,
             afs: bool = False) -> Table:  # fmt: skip
    """The table of a solver over `times`; of a predictor whose constants are numbers, if one is given."""
    return Table.of(rows(solver, times, predictor, afs), times[-1])
