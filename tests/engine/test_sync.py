"""A sampling loop must not wait for its device: on a GPU every `.item()` in it would."""

from pathlib import Path

import pytest
import torch

from amed import store
from amed.sampling import Problem, Solver, trajectory

PREDICTORS = Path(__file__).parents[2] / "predictors"


def model(x, sigma):
    return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2))


def capture(model, x, sigma, extra_args):
    return model(x, sigma), x.new_empty(len(x), 32, 8, 8)


def ends(problem, sigmas, afs, x):
    for state in trajectory(problem, x, sigmas, afs):
        x = state.x
    return x


@pytest.mark.parametrize("name", sorted(p.stem for p in PREDICTORS.glob("emoji32-*-nfe5-cfg1.safetensors")))
def test_no_predictor_waits(name):
    """`meta` tensors have no values: anything that asks for one raises."""
    fitted = store.load(PREDICTORS / f"{name}.safetensors")
    problem = Problem(model, fitted.spec.settings, fitted.to("meta"), capture=capture, watch=[])
    end = ends(problem, fitted.sigmas(), fitted.spec.afs, torch.empty(2, 3, 8, 8, device="meta"))
    assert end.device.type == "meta" and end.shape == (2, 3, 8, 8)
    assert len(problem.watch) == 5


@pytest.mark.parametrize(
    "solver", [Solver("euler"), Solver("heun"), Solver("dpm_2"), Solver("ipndm", 4), Solver("dpmpp", 3, True)]
)
def test_no_plain_solver_waits(solver):
    sigmas = torch.tensor([80.0, 10.0, 2.0, 0.3, 0.002, 0.0], dtype=torch.float64)
    end = ends(Problem(model, solver, watch=[]), sigmas, False, torch.empty(2, 3, 8, 8, device="meta"))
    assert end.device.type == "meta"


def test_the_check_at_once_does_wait():
    """The test can fail: with no `watch` each evaluation is looked at."""
    sigmas = torch.tensor([80.0, 10.0], dtype=torch.float64)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        ends(Problem(model, Solver("euler")), sigmas, False, torch.empty(2, 3, 8, 8, device="meta"))
