"""Weights in closed form, tested on closed-form denoisers."""

import pytest
import torch

from amed import Solver, sample, schedules
from amed.constants import as_multistep
from amed.fit import References, Settings, Target, references_for
from amed.fit.measures import Counter, rmse
from amed.fit.plain_solvers import Setting
from amed.fit.samples import Path, Samples
from amed.fit.table_search import mean
from amed.fit.variable_projection import Candidate, Shape, VariableProjection, best_weights
from amed.loop import Problem
from amed.run import states

GRID = schedules.make("time_uniform", 6, 0.01, 40.0)
WHOLE = Shape()
FINE = schedules.make("polynomial", 161, 0.01, 40.0)


def denoise(x, sigma):
    """The denoiser of one Gaussian of standard deviation 0.5: every sample moves along a line."""
    variance = sigma.view(-1, 1, 1, 1) ** 2
    return x * 0.25 / (0.25 + variance)


def path_of(model, noise):
    x = noise * 40
    run = states(Problem(model), Solver("ipndm", 4), x, FINE)
    return Path(FINE, (x, *(state.x for state in run)))


def closed_form(model, noise, lags, batch=16, path=None):
    path = path or path_of(model, noise)
    return VariableProjection(model, Samples(noise, {}, path.states[-1]), path, batch=batch, lags=lags)


def ends(model, table, noise, afs):
    return sample(
        model, noise * 40, table.sigmas, Solver("multistep"), disable=True, predictor=table, afs=afs
    )


@pytest.mark.parametrize("afs", [False, True])
def test_one_weight_per_step_is_exact_where_possible(noise, afs):
    counter, path = Counter(denoise), path_of(denoise, noise)
    result = closed_form(counter, noise, 3, path=path).run(GRID, afs, WHOLE)
    assert counter.evaluations == len(GRID) - 1 - afs
    exact = noise * 40 * ((0.25 + 0.01**2) / (0.25 + 40.0**2)) ** 0.5
    assert (
        rmse(result.end, exact)
        < 1e-4
        < rmse(ends(denoise, as_multistep(Solver("ipndm", 2), GRID, afs), noise, afs), exact)
    )
    assert torch.allclose(ends(denoise, result.table, noise, afs), result.end, atol=1e-9)


def test_closed_form_weights_beat_the_plain_solver_on_other_noise(toy, noise):
    other = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    result = closed_form(toy, noise, 4).run(GRID, False, WHOLE)
    truth = path_of(toy, other).states[-1]
    plain = [ends(toy, as_multistep(Solver("ipndm", k), GRID), other, False) for k in (1, 2, 3, 4)]
    assert rmse(ends(toy, result.table, other, False), truth) < min(rmse(end, truth) for end in plain)


def test_fitting_resumes_from_a_run_and_works_in_batches(toy, noise):
    """Resuming covers only the remaining intervals, and equals the full run to rounding."""
    path, moved = path_of(toy, noise), GRID.clone()
    moved[3] *= 1.1
    full_run = closed_form(toy, noise, 3, path=path).run(moved, False, WHOLE)
    first = closed_form(toy, noise, 3, path=path).run(GRID, False, WHOLE)
    counter = Counter(toy)
    again = closed_form(counter, noise, 3, path=path).run(moved, False, WHOLE, first, 2)
    assert counter.evaluations == 2  # the slope at time 2 is known
    assert torch.allclose(again.end, full_run.end, atol=1e-9) and torch.allclose(
        again.weights, full_run.weights
    )
    sizes = []

    def watched(x, sigma):
        sizes.append(len(x))
        return toy(x, sigma)

    parts = closed_form(watched, noise, 3, batch=2, path=path).run(moved, False, WHOLE)
    assert torch.allclose(parts.end, full_run.end, atol=1e-8) and set(sizes) == {1, 2}


def test_the_best_schedule_is_taken_and_its_times_refined(toy, noise):
    """The cost is as stated, and refining reduces the error."""
    path, counter = path_of(toy, noise), Counter(toy)
    stage = closed_form(counter, noise, 3, path=path)
    settings = [
        Setting(Solver("ipndm", 2), kind, rho, 6, False, 0.01, 40.0)
        for kind, rho in (("polynomial", 7.0), ("logsnr", 1.0), ("time_uniform", 1.0))
    ]
    (best, *_), texts = run_to_end(stage.schedules(settings, WHOLE))
    assert len(texts) == 3 and best.name.startswith("closed form on ")
    tried = [stage.loss(stage.run(setting.sigmas(), False, WHOLE)) for setting in settings]
    assert best.loss == pytest.approx(min(tried)) and tried[1] > best.loss
    counter.rows = 0
    refined, _ = run_to_end(stage.refine(best, 0.25))
    assert counter.rows == best.cost * len(noise)
    assert refined is not best and refined.loss < best.loss and "times refined" in refined.name
    sigmas = refined.run.sigmas
    assert (sigmas.diff() < 0).all() and torch.equal(sigmas[[0, -1]], best.run.sigmas[[0, -1]])
    assert refined.loss == pytest.approx(stage.loss(stage.run(sigmas, False, WHOLE)))


def run_to_end(stage) -> tuple[Candidate | list[Candidate], list[str]]:
    """Run a stage to its end; return its result and its progress messages."""
    texts = []
    while True:
        try:
            texts.append(next(stage))
        except StopIteration as end:
            return end.value, texts


def test_a_path_gives_its_states_and_interpolates_between_them(noise):
    times = torch.tensor([8.0, 5.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    path = Path(times, tuple(noise * (t**3 - 2 * t**2 + 1) for t in times))
    for t in (8.0, 6.1, 3.0, 1.4, 0.5):
        assert torch.allclose(path.at(t), noise * (t**3 - 2 * t**2 + 1))


def test_one_outlying_sample_does_not_decide():
    generator = torch.Generator().manual_seed(3)
    slopes = torch.randn(9, 2, 40, generator=generator, dtype=torch.float64)
    wanted = torch.einsum("k,nkd->nd", torch.tensor([1.4, -0.4], dtype=torch.float64), slopes)
    wanted += 0.01 * torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    wanted[4] = 30.0
    basis = torch.cat([slopes, wanted[:, None]], dim=1)
    weights = best_weights(basis @ basis.mT, torch.tensor([1.5, -0.5], dtype=torch.float64))
    assert torch.allclose(weights, torch.tensor([1.4, -0.4], dtype=torch.float64), atol=0.01)


def test_identical_slopes_keep_the_plain_weights():
    basis = torch.ones(3, 3, 10, dtype=torch.float64)
    prior = torch.tensor([1.5, -0.5], dtype=torch.float64)
    assert torch.allclose(best_weights(basis @ basis.mT, prior), prior)


def test_references_include_the_paths_of_the_fitted_samples(toy):
    def draw(generator, count):
        return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), {}

    references = references_for(Target(toy, draw, 0.01, 40.0), Settings(5, budget=2500))
    assert isinstance(references, References)
    for _ in references.make(references.held_out + 11):
        pass
    path, samples = references.path(references.held_out + 3, 8), references.take(references.held_out + 3, 8)
    assert torch.equal(path.states[-1], samples.end) and torch.allclose(path.states[0], samples.noise * 40)
    assert len(path.states) == len(path.times) and not set(references.paths) & set(
        range(references.held_out // references.block)
    )


def test_the_mean_of_tables_is_the_mean_of_their_log_times_weights_and_offsets(toy, noise):
    """The ends stay, so that the mean of equal tables is that table."""
    fit, shape = closed_form(toy, noise, 2), Shape("bands", True, 1e-2)
    moved = GRID.clone()
    moved[2] *= 1.2
    pair = [fit.candidate(sigmas, True, shape, "a") for sigmas in (GRID, moved)]
    table = mean(pair).run.table
    assert torch.equal(table.sigmas[[0, -1]], GRID[[0, -1]]) and mean(pair).afs
    assert table.sigmas[2] == pytest.approx((GRID[2] * moved[2]).sqrt())
    a, b = (candidate.run for candidate in pair)
    assert torch.allclose(table.weights, (a.weights + b.weights) / 2) and table.parts == "bands"
    assert torch.allclose(table.offset, (a.offset + b.offset) / 2)
    same = mean([pair[0]] * 3).run
    assert torch.allclose(same.sigmas, a.sigmas) and torch.allclose(same.weights, a.weights)
