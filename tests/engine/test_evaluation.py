import pytest
import torch

from amed import Multistep, sample, schedules
from amed.evaluate import Guided, evaluate_guided
from amed.fit.measures import Counter, Statistics, frechet, rmse, run
from amed.fit.plain_solvers import SOLVERS, candidates
from amed.loop import denoised_only
from amed.recipes import Solver


def test_frechet_distance_between_known_gaussians():
    a = Statistics(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()))
    b = Statistics(torch.tensor([1.0, 2.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0]).double()))
    assert frechet(a, b) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turned = [Statistics(q @ s.mean, q @ s.cov @ q.T) for s in (a, b)]
    assert frechet(*turned) == pytest.approx(frechet(a, b))


def test_statistics_need_enough_samples():
    with pytest.raises(ValueError):
        Statistics.of(torch.zeros(1, 3))
    with pytest.raises(ValueError):
        Statistics.of(torch.full((4, 3), float("nan")))


def test_rmse():
    assert rmse(torch.zeros(2, 2), torch.full((2, 2), 3.0)) == 3.0


@pytest.mark.parametrize("nfe", [2, 3, 5, 8])
def test_candidates_take_their_stated_evaluations(toy, noise, nfe):
    candidate_list = candidates(nfe, 0.01, 40)
    assert {c.solver for c in candidate_list} >= {
        s for n, s in SOLVERS.items() if n not in ("Heun", "DPM-Solver-2")
    }
    for setting in candidate_list[::3]:
        counter = Counter(toy)
        run(counter, noise, setting.sigmas(), setting.solver, afs=setting.afs)
        assert counter.evaluations == nfe


def test_run_slices_arguments_with_the_noise(noise):
    def model(x, sigma, label):
        assert len(label["k"]) == len(x)
        return x * 0 + label["k"].view(-1, 1, 1, 1)

    out, nfe = run(
        model,
        noise,
        torch.tensor([40.0, 1.0, 0.0]),
        Solver("euler"),
        {"label": {"k": torch.arange(5.0)}},
        batch=2,
    )
    assert nfe == 2 and torch.allclose(out[:, 0, 0, 0], torch.arange(5.0).double())


def test_a_counter_passes_on_the_halves_of_guidance(noise):
    """A Counter used to drop the halves silently: a table on guidance's part ran as if it had none."""

    def labelled(x, sigma, shift):
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + shift.view(-1, 1, 1, 1)

    guided, sigmas = Guided(labelled, 4.0), schedules.make("polynomial", 5, 0.01, 40)
    args = {"cond": {"shift": torch.full((5,), 0.5)}, "uncond": {"shift": torch.zeros(5)}}
    weights = torch.ones(4, 1, 2, dtype=torch.float64)
    weights[..., 1] = 0.25
    table = Multistep(sigmas, weights, parts="guidance")
    solver, counter = Solver("multistep"), Counter(guided)
    truth, plainly = (
        sample(guided, noise * 40, sigmas, solver, args, disable=True, predictor=table, evaluate=evaluate)
        for evaluate in (evaluate_guided, denoised_only)
    )
    end = sample(
        counter, noise * 40, sigmas, solver, args, disable=True, predictor=table, evaluate=evaluate_guided
    )
    assert torch.equal(end, truth) and not torch.allclose(end, plainly)
    assert counter.evaluations == 4 and counter.rows == 20
