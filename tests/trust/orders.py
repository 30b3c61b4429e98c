"""The order of convergence that each recipe has, and the one that theory gives it, on a problem whose end is
known (exact.py)."""

import math

from trust import exact

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
    """As the page names it."""
    said = [solver.name if solver.single_step else f"{solver.name}-{solver.max_order}"]
    if solver.name == "unipc":
        said.append(solver.variant)
    if solver.name == "dpmpp":
        said.append("data" if solver.predict_x0 else "noise")
    if solver.recipe.lowers and not solver.lower_order_final:
        said.append("full last step")
    return ", ".join(said)


def theory(solver: Solver) -> tuple[int, int, str]:
    """The order of a whole run on geometric steps; of its formula alone, on equal steps from an exact
    history; why one of them is not the nominal one."""
    p, lowered = solver.max_order, solver.recipe.lowers and solver.lower_order_final and solver.max_order > 1
    if solver.recipe.pair:
        return 2, 2, ""
    if solver.name == "unipc":  # its corrector is of one order more
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
    """What a row keeps of an evaluation."""
    denoised = exact.denoiser(x, x.new_full((len(x),), t))
    return denoised if data else (x - denoised) / t


def error(solver: Solver, times: list[float], known: bool = False) -> float:
    """RMS distance of a run's end from the exact one. known: it starts with exact slopes in hand, as many as
    its order asks for."""
    rows, x, first = compiled(solver, times).rows, exact.starts(START), 0
    state = State(x)
    if known and not solver.single_step:
        first = solver.max_order - 1 + solver.recipe.corrects
        on = [exact.carried(x, START, t) for t in times[: first + 1]]
        hand = tuple((slope(y, t, solver.predicts_data),) for y, t in zip(on[:first], times))
        state = State(on[first], hand, first)
    *_, end = loop(Problem(exact.denoiser), rows[first:], state)
    return float((end.x - exact.carried(x, START, END)).square().mean().sqrt())


def as_run(solver: Solver, steps: int = 60) -> float:
    """The order by which the error of whole runs falls where geometric steps are halved."""
    return math.log2(error(solver, geometric(steps)) / error(solver, geometric(2 * steps)))


def alone(solver: Solver, steps: int = 80) -> float:
    """The same of the formula alone, on equal steps from an exact history."""
    return math.log2(error(solver, equal(steps), True) / error(solver, equal(2 * steps), True))


def whole_third_order(solver, x, h, s, order, c):
    """dpmpp with Taylor's third-order term: what is half there, once more."""
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
