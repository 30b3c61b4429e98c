"""Recipes: the same arithmetic on images and on coordinates."""

import numpy as np
import pytest
import torch
from every_solver import EVERY

from amed import Constants, Solver, sample, schedules
from amed.coordinates import compiled
from amed.loop import Problem, State, loop
from amed.recipes import ADAMS_BASHFORTH, RECIPES, Point, deis, midpoint, solve
from amed.run import states

SIGMAS = schedules.make("polynomial", 5, 0.01, 40)
CONSTANTS = Constants(SIGMAS, r=[0.3, 0.4, 0.5, 0.2], c=[0.9, 1.02, 0.97, 1.0], a=[1.01, 0.98, 1.0, 1.03])


def on_images(model, solver, times, x, predictor=None, afs=False):
    """Run a recipe as it is written, but on images instead of coordinates."""
    recipe, history, leg = solver.recipe, [], 0
    legs = solver.each(predictor is not None) * (len(times) - 1)

    def see(x, t, sigma_model, analytic=False):
        d = x / (1 + t * t) ** 0.5 if analytic else (x - model(x, x.new_full((len(x),), sigma_model))) / t
        history.append(Point(t, d, x - t * d))
        return d

    def go(x, s, c=1.0):
        nonlocal leg
        leg += 1
        return recipe.step(solver, x, history, s, solver.order(len(history), leg - 1, legs), c)

    for n, (t, t_next) in enumerate(zip(times, times[1:])):
        r, c, a = (recipe.r, 1.0, 1.0) if predictor is None else predictor(t, t_next)
        d = see(x, t, t, afs and n == 0)
        s = t_next if r == 1 else midpoint(t, t_next, r)
        if recipe.pair:
            x_mid = x + (s - t) * d
            x = recipe.step(x, d, see(x_mid, s, a * s), t, t_next, r, c)
        elif predictor is None:
            x = go(x, t_next)
        else:
            x = go(x, s)
            see(x, s, a * s)
            x = go(x, t_next, c)
    return x


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("predictor", [None, CONSTANTS], ids=["plain", "constants"])
@pytest.mark.parametrize("solver", EVERY, ids=str)
def test_a_recipe_is_the_same_on_images_and_on_coordinates(toy, noise, solver, predictor, afs):
    directly = on_images(toy, solver, SIGMAS.tolist(), noise * 40, predictor, afs)
    *_, state = loop(Problem(toy), compiled(solver, SIGMAS.tolist(), predictor, afs).rows, State(noise * 40))
    assert torch.allclose(state.x, directly, rtol=1e-10, atol=1e-10)


class OfEachSample:
    """Constants as a network gives them: tensors, new ones for each step."""

    wants_bottleneck = False

    def __call__(self, t, t_next, bottleneck=None):
        return tuple(torch.full((5,), v, dtype=torch.float64) for v in CONSTANTS(t, t_next))


@pytest.mark.parametrize("solver", EVERY, ids=str)
def test_rows_produced_one_by_one_equal_the_table(toy, noise, solver):
    lazily, compiled_ = (
        sample(toy, noise * 40, SIGMAS, solver, disable=True, predictor=p)
        for p in (OfEachSample(), CONSTANTS)
    )
    assert torch.allclose(lazily, compiled_, rtol=1e-10, atol=1e-10)
    *_, graph = states(
        Problem(toy), solver, noise * 40, SIGMAS, OfEachSample()
    )  # the way Algorithm 1 runs them
    assert torch.allclose(graph.x, compiled_, rtol=1e-10, atol=1e-10)


def test_every_recipe_states_how_many_slopes_it_uses():
    """A row weighs no slope older than its order, and one more where the previous step is corrected."""
    for solver in EVERY:
        for row in compiled(solver, schedules.make("polynomial", 9, 0.01, 40).tolist()).rows:
            reach = max(solver.max_order, 1 + solver.recipe.pair) + solver.recipe.corrects
            assert len(row.weights) <= reach


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if not recipe.pair])
def test_a_single_step_is_eulers(toy, noise, name):
    """With one known slope every recipe of one evaluation per step makes DDIM's move."""
    for solver in (s for s in EVERY if s.name == name):
        ends = [sample(toy, noise * 40, SIGMAS[:2], s, disable=True) for s in (solver, Solver("euler"))]
        assert torch.allclose(*ends, rtol=1e-10)


def test_deis_1_equals_euler(toy, noise):
    ends = [sample(toy, noise * 40, SIGMAS, s, disable=True) for s in (Solver("deis"), Solver("euler"))]
    assert torch.equal(*ends)


def test_deis_approaches_adams_bashforth_at_small_steps():
    """Three slopes at equal small steps give the classic weights, by the papers' polynomial."""
    times = [2.0 + 0.002 * k for k in (2, 1, 0)]
    history = [Point(t, np.eye(3)[i]) for i, t in enumerate(times)]
    moved = deis(Solver("deis", 3), np.zeros(3), history, 2.0 - 0.002, 3, 1.0)
    assert moved[::-1] / -0.002 == pytest.approx(ADAMS_BASHFORTH[3], rel=0.01)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_small_linear_systems_are_solved(count):
    generator = torch.Generator().manual_seed(count)
    matrix = torch.randn(count, count, generator=generator).double() + 3 * torch.eye(count).double()
    right = torch.randn(count, generator=generator).double()
    wanted = torch.linalg.solve(matrix, right)
    assert solve(matrix.tolist(), right.tolist()) == pytest.approx(wanted.tolist())


def test_unipcs_order_depends_on_the_number_of_steps(toy, noise):
    """With at most as many steps as its order, the order falls, as in ComfyUI's function."""
    for steps, order in ((2, 1), (3, 2), (4, 3)):
        times = schedules.make("polynomial", steps + 1, 0.01, 40)
        high, same = (
            sample(toy, noise * 40, times, Solver("unipc", k), disable=True) for k in (3, min(order, 3))
        )
        assert torch.allclose(high, same, rtol=1e-10)
