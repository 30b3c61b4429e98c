"""Figures 4 and 5 of the paper: how flat a trajectory is, and the best mid time r."""

import pytest
import torch

from amed import SAMPLERS, Constants, Solver
from amed.constants import as_multistep
from amed.geometry import Plane, trajectory_pca, walk
from amed.kdiffusion import sample
from amed.loop import Problem
from bench.trajectories import best_r


def test_a_plane_curve_has_two_components():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(48, 3, dtype=torch.float64))[0].T
    t = torch.linspace(0, 3, 20, dtype=torch.float64)[:, None]
    curves = [torch.cat([t, (k + t).sin(), k * 0.05 * t**3], dim=1) @ basis for k in (0.0, 1.0)]
    states = torch.stack(curves, dim=1).view(20, 2, 3, 4, 4)
    error, variance = trajectory_pca(states + 1)
    assert error.shape == (20, 2) and variance.shape == (2, 20)
    assert error[:, 0].max() < 1e-7 and error[:, 1].max() > 1e-3
    assert variance[0, :2].sum() == pytest.approx(1) and variance[1, 2] > 1e-4
    flat = states[:, 1].flatten(1) + 1
    centre = flat.mean(0)
    plane = torch.linalg.svd(flat - centre, full_matrices=False).Vh[:2]
    back = centre + (flat - centre) @ plane.T @ plane
    assert torch.allclose(error[:, 1], (flat - back).norm(dim=1) / flat.norm(dim=1), atol=1e-9)


def model(x, sigma):
    """The exact denoiser of a Gaussian of variance 1/4: x(t) = x(T) sqrt((1/4 + t^2) / (1/4 + T^2))."""
    return x * (0.25 / (0.25 + sigma.view(-1, 1) ** 2))


@pytest.mark.parametrize("solver", [Solver("amed"), Solver("dpm_2"), Solver("euler"), Solver("ipndm", 3)])
def test_the_best_r_is_never_worse_than_half_and_fits_the_sampler(solver):
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.1], dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = [x * ((0.25 + t**2) / (0.25 + 100)).sqrt() for t in sigmas]
    result = best_r(model, solver, sigmas, exact)
    assert result.r.shape == (3, 3) and (result.best <= result.half).all()
    assert (result.alignment >= 0).all() and (
        result.spread < 1e-6
    ).all()  # for a linear model one r is best everywhere
    if solver.name == "amed":
        table = Constants(sigmas[:2], r=result.r[0, :1])
        end = SAMPLERS["amed"](model, exact[0].float(), sigmas[:2], predictor=table, disable=True)
        error = (end - exact[1].float()).square().mean(1).sqrt()
        assert float(error[0]) == pytest.approx(float(result.best[0, 0]), abs=5e-8)  # relative to x, in fp32


def test_the_plane_is_that_of_the_pca():
    torch.manual_seed(0)
    states = torch.randn(9, 1, 3, 4, 4) * torch.linspace(3, 0.1, 9).view(-1, 1, 1, 1, 1) + 1
    plane, (error, _) = Plane.of(states[:, 0]), trajectory_pca(states)
    assert torch.allclose(plane.lost(states[:, 0]), error[:, 0], atol=1e-9)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64), atol=1e-9)
    points = plane.project(states[:, 0])
    assert points.mean(0).abs().max() < 1e-9 and points[:, 0].var() >= points[:, 1].var()


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("solver", [Solver("amed"), Solver("dpm_2"), Solver("ipndm", 3),
                                    Solver("dpmpp", 2, True), Solver("unipc", 3)])  # fmt: skip
def test_a_walk_follows_the_sampler(solver, afs):
    """A walk ends where the sampler ends, and its moves are the weights of the equivalent table."""
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.1], dtype=torch.float64)
    x = 10 * torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    learned = Constants(sigmas, r=torch.tensor([0.4, 0.5, 0.6]), c=torch.tensor([1.1, 1.0, 0.9]))
    for predictor in (None, learned, Looking(learned)):
        path = walk(Problem(model), solver, x, sigmas, predictor, afs)
        end = sample(model, x, sigmas, solver, disable=True, predictor=predictor, afs=afs)
        assert torch.equal(path.states[-1:], end) and len(path.states) == len(path.times)
        fixed = learned if predictor is not None else None
        same = as_multistep(solver, sigmas, afs, fixed)
        assert torch.allclose(path.shares(predictor, afs), same.weights, atol=1e-5)
        assert path.times == pytest.approx(same.sigmas.tolist(), rel=1e-6)
        assert sum(not row.opens for row in path.table.rows) == (
            3 if solver.each(fixed is not None) == 2 else 0
        )


class Looking:
    """Constants given as a network gives them: tensors, in one call per run."""

    wants_bottleneck, fixed = False, False

    def __init__(self, constants):
        self.constants = constants

    def __call__(self, t, t_next, bottleneck=None):
        return tuple(torch.tensor([v]) for v in self.constants(t, t_next))


def test_mismatching_arguments_are_errors():
    sigmas = torch.tensor([10.0, 1.0], dtype=torch.float64)
    x = torch.randn(2, 5)
    with pytest.raises(ValueError, match="must include 0.5"):
        best_r(model, Solver("amed"), sigmas, [x, x], grid=torch.tensor([0.2, 0.4]))
    with pytest.raises(ValueError, match="reference"):
        best_r(model, Solver("amed"), sigmas, [x])
    with pytest.raises(ValueError, match="components"):
        trajectory_pca(x[None], 2)
    with pytest.raises(ValueError, match="components"):
        Plane.of(x)
