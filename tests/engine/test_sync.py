"""A sampling loop must not wait for its device; on a GPU every `.item()` in it would."""

from pathlib import Path

import pytest
import torch

from amed import BottleneckPredictor, Evaluation, Solver, load
from amed.loop import Problem
from amed.run import trajectory

PREDICTORS = Path(__file__).parents[2] / "predictors"


def model(x, sigma):
    return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2))


def evaluate(model, x, sigma, extra_args, wants):
    return Evaluation(model(x, sigma), x.new_empty(len(x), 32, 8, 8))


def ends(problem, solver, sigmas, x, predictor=None, afs=False):
    for state in trajectory(problem, solver, x, sigmas, predictor, afs):
        x = state.x
    return x


@pytest.mark.parametrize("name", sorted(p.stem for p in PREDICTORS.glob("emoji32-*-nfe5-cfg1.safetensors")))
def test_no_predictor_synchronises(name):
    """`meta` tensors have no values, so reading one raises."""
    fitted = load(PREDICTORS / f"{name}.safetensors").to("meta")
    problem, x = Problem(model, evaluate=evaluate, watch=[]), torch.empty(2, 3, 8, 8, device="meta")
    end = ends(problem, fitted.spec.student, fitted.sigmas(), x, fitted.predictor, fitted.spec.afs)
    assert end.device.type == "meta" and end.shape == (2, 3, 8, 8)
    assert len(problem.watch) == 5


@pytest.mark.parametrize(
    "solver",
    [
        Solver("euler"),
        Solver("heun"),
        Solver("dpm_2"),
        Solver("ipndm", 4),
        Solver("dpmpp", 3, True),
        Solver("unipc", 3),
        Solver("deis", 3),
    ],
    ids=lambda s: s.name,
)
def test_no_plain_solver_synchronises(solver):
    sigmas = torch.tensor([80.0, 10.0, 2.0, 0.3, 0.002, 0.0], dtype=torch.float64)
    end = ends(Problem(model, watch=[]), solver, sigmas, torch.empty(2, 3, 8, 8, device="meta"))
    assert end.device.type == "meta"


def test_an_immediate_check_does_synchronise():
    """The tests above can fail: without `watch` each evaluation is checked immediately."""
    sigmas = torch.tensor([80.0, 10.0], dtype=torch.float64)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        ends(Problem(model), Solver("euler"), sigmas, torch.empty(2, 3, 8, 8, device="meta"))


@pytest.mark.parametrize(
    "solver", [Solver("unipc", 3), Solver("unipc", 2, variant="bh2"), Solver("deis", 4)], ids=str
)
def test_a_network_on_unipc_and_deis_does_not_synchronise(solver):
    """Their weights depend on each sample's times, through linear systems and sums."""
    network = BottleneckPredictor(0.01, 0.1).to("meta")
    sigmas = torch.tensor([80.0, 10.0, 2.0, 0.3, 0.002, 0.0], dtype=torch.float64)
    problem, x = Problem(model, evaluate=evaluate, watch=[]), torch.empty(2, 3, 8, 8, device="meta")
    end = ends(problem, solver, sigmas, x, network, True)
    assert end.device.type == "meta" and len(problem.watch) == 8
