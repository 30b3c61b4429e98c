"""The measured and the theoretical order of convergence of each recipe, on a problem whose end is known
(exact_problem.py)."""

import math

from trust import exact_problem as exact

from amed import Solver
from amed.coordinates import compiled
from amed.loop import Problem, State, loop
from amed.recipes import dpmpp

START, END = 1.0, 0.2
BY_EULER = "its first step is Euler's"
UNEQUAL = "its first step is Euler's, and its weights are those of equal steps"
LAST = "its last step is of first order (lower_order_final)"
HALVED = "its third-order term, as the authors and every host have it, is half of Taylor's"


def label(solver: Solver) -> str:
    """Return the recipe's name on the page."""
    words = [solver.name if solver.single_step else f"{solver.name}-{solver.max_order}"]
    if solver.name == "unipc":
        words.append(solver.variant)
    if solver.name == "dpmpp":
        words.append("data" if solver.predict_x0 else "noise")
    if solver.recipe.lowers and not solver.lower_order_final:
        words.append("full last step")
    return ", ".join(words)


def theory(solver: Solver) -> tuple[int, int, str]:
    """Return the order of a full run on geometric steps, that of the formula alone, and why one is not the
    nominal one.

    The formula alone runs on equal steps from an exact history."""
    p, lowered = solver.max_order, solver.recipe.lowers and solver.lower_order_final and solver.max_order > 1
    if solver.recipe.pair:
        return 2, 2, ""
    if solver.name == "unipc":  # its corrector has one order more
        if lowered:
            return 2, 2, LAST
        return min(p + 1, 3), p + 1, "its first step, corrected, is of second order" if p == 3 else ""
    if p < 3:
        return p, p, ""
    if solver.name == "dpmpp":
        return 2, 2, HALVED
    return 2, p, UNEQUAL if solver.name == "ipndm" else BY_EULER


def geometric(steps: int) -> list[float]:
    return [START * (END / START) ** (k / steps) for k in range(steps + 1)]


def equal(steps: int) -> list[float]:
    return [START + (END - START) * k / steps for k in range(steps + 1)]


def slope(x, t: float, data: bool):
    """Return what a row stores of an evaluation."""
    denoised = exact.denoiser(x, x.new_full((len(x),), t))
    return denoised if data else (x - denoised) / t


def error(solver: Solver, times: list[float], known: bool = False) -> float:
    """Return the RMS distance of a run's end from the exact one.

    known: start with as many exact slopes as the solver's order needs."""
    rows, x, first = compiled(solver, times).rows, exact.start_points(START), 0
    state = State(x)
    if known and not solver.single_step:
        first = solver.max_order - 1 + solver.recipe.corrects
        on = [exact.exact_end(x, START, t) for t in times[: first + 1]]
        hand = tuple((slope(y, t, solver.predicts_data),) for y, t in zip(on[:first], times))
        state = State(on[first], hand, first)
    *_, end = loop(Problem(exact.denoiser), rows[first:], state)
    return float((end.x - exact.exact_end(x, START, END)).square().mean().sqrt())


def order_of_runs(solver: Solver, steps: int = 60) -> float:
    """Return the order by which the error of full runs falls when geometric steps are halved."""
    return math.log2(error(solver, geometric(steps)) / error(solver, geometric(2 * steps)))


def order_of_formula(solver: Solver, steps: int = 80) -> float:
    """Return the order of the formula alone, on equal steps from an exact history."""
    return math.log2(error(solver, equal(steps), True) / error(solver, equal(2 * steps), True))


def full_third_order(solver, x, h, s, order, c):
    """dpmpp with Taylor's full third-order term, of which dpmpp has half."""
    near = dpmpp(solver, x, h, s, order, c)
    if order < 3:
        return near
    data, t = solver.predict_x0, h[-1].t
    m = [point.data if data else point.d for point in reversed(h[-3:])]
    step, sign = math.log(t / s), -1 if data else 1
    r0, r1 = math.log(h[-2].t / t) / step, math.log(h[-3].t / h[-2].t) / step
    second = 1 / (r0 + r1) * (1 / r0 * (m[0] - m[1]) - 1 / r1 * (m[1] - m[2]))
    phi_3 = ((math.expm1(sign * step) / step - sign) / step) - 0.5
    return near + (-c if data else -c * s) * phi_3 * second
