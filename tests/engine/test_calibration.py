"""Calibration on a closed-form denoiser: constants as one vector, reuse of a run's prefix, and the
results."""

import pytest
import torch
from golden import Toy

from amed import Constants, Solver, load, save, schedules
from amed.constants import as_multistep
from amed.fit import Calibration, Settings, Target, plain_solvers, references_for, smallest_budget
from amed.fit.measures import Counter, rmse, run
from amed.fit.parametrisation import Parametrisation, Runner
from amed.loop import NotFiniteError

SIGMAS = schedules.make("polynomial", 5, 0.01, 40)
CONSTANTS = Constants(SIGMAS, r=[0.3, 0.4, 0.5, 0.2], c=[0.9, 1.02, 0.97, 1.0], a=[1.01, 0.98, 1.0, 1.03])


@pytest.fixture
def model() -> Toy:
    return Toy(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def draw(generator, count):
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), {}


def target(model) -> Target:
    return Target(model, draw, 0.01, 40.0)


def calibration_of(model, nfe=5, budget=2500, references=None, start=None, **other) -> Calibration:
    return Calibration(target(model), Settings(nfe, budget=budget, **other), references, start)


def finished(calibration: Calibration):
    stages = [p.stage for p in calibration.run()]
    assert {"search", "compare"} < set(stages) and stages[-1] == "fit"
    return calibration.result()


def forms():
    table = as_multistep(Solver("ipndm", 3), schedules.make("time_uniform", 7, 0.01, 40), True)
    yield Parametrisation(Solver("multistep"), table, True)
    yield Parametrisation(Solver("multistep"), as_multistep(Solver("dpmpp", 3, True), SIGMAS), False, 2)
    for solver in (
        Solver("amed"),
        Solver("dpm_2"),
        Solver("euler"),
        Solver("ipndm", 3),
        Solver("dpmpp", 3, True),
        Solver("deis", 3),
        Solver("unipc", 3),
    ):
        for afs in (True, False):
            yield Parametrisation(solver, CONSTANTS, afs)


@pytest.mark.parametrize("form", list(forms()), ids=lambda f: f"{f.solver.name}-{f.afs}")
def test_a_run_from_the_middle_equals_the_full_run(model, noise, form):
    """For every constant, resuming where it first matters gives the full run's result at the stated cost."""
    counter = Counter(model)
    runner, values = Runner(counter, form), form.vector()
    states = runner.states(values, noise, {})
    assert torch.allclose(runner.end(values, noise, {}), states[-1].x)
    counter.evaluations = 0
    runner.end(values, noise, {})
    run_costs, counted = counter.evaluations, counter.evaluations
    counter.evaluations = 0
    for i, c in enumerate(form.constants):
        moved = values.clone()
        moved[i] += c.step
        assert torch.allclose(
            runner.rerun(moved, noise, {}, states, c), runner.end(moved, noise, {}), atol=1e-9
        )
        counted += counter.evaluations - run_costs
        counter.evaluations = 0
    assert runner.evaluations() == (run_costs, counted)


def test_times_stay_ordered_and_near_their_start():
    form = next(forms())
    start = form.vector()
    moved = form.bounded(
        start, start + torch.randn(len(start), generator=torch.Generator().manual_seed(0)) * 9
    )
    sigmas = form.build(moved).sigmas
    assert (sigmas.diff() < 0).all() and sigmas[0] == form.sigmas[0] and sigmas[-1] == form.sigmas[-1]
    reaches = [
        (abs(m - s), c.parameter.reach) for m, s, c in zip(moved, start, form.constants) if c.kind != "t"
    ]
    assert reaches and all(way <= reach + 1e-6 for way, reach in reaches)


def test_calibration_beats_every_plain_solver_within_its_budget(model):
    result = finished(calibration_of(model, budget=6000))
    assert result.improved and 0.85 * 6000 < result.evaluations < 1.05 * 6000
    fresh, _ = draw(torch.Generator().manual_seed(99), 32)
    truth = run(model, fresh, schedules.make("polynomial", 400, 0.01, 40), Solver("ipndm", 3))[0]
    fitted = result.fitted
    spec, options = fitted.spec, {"predictor": fitted.predictor, "afs": fitted.spec.afs}
    end, nfe = run(model, fresh, fitted.sigmas(), spec.student, **options)
    errors = [
        rmse(run(model, fresh, s.sigmas(), s.solver, afs=s.afs)[0], truth)
        for s in plain_solvers.candidates(5, 0.01, 40)
    ]
    assert nfe == 5 == fitted.nfe
    assert rmse(end, truth) < min(errors)


@pytest.mark.parametrize(
    "sampler", ["amed", "amed_dpm_2", "amed_ipndm", "amed_dpmpp_2m", "amed_uni_pc", "amed_deis"]
)
def test_the_papers_students_can_be_calibrated(model, sampler):
    result = finished(calibration_of(model, 7, 4000, sampler=sampler))
    assert result.evaluations < 1.05 * 4000 and result.fitted.nfe == 7
    assert result.rows[0].error <= result.rows[1].error


@pytest.mark.parametrize("nfe", [2, 3, 4, 8])
def test_any_nfe_from_two_can_be_calibrated(model, nfe):
    least = smallest_budget(nfe)
    result = finished(calibration_of(model, nfe, least))
    assert result.fitted.nfe == nfe and result.evaluations <= 1.05 * least


def test_only_the_same_seed_gives_the_same_file(model, tmp_path):
    first, same, other = (finished(calibration_of(model, seed=seed)).fitted for seed in (3, 3, 4))
    assert torch.equal(first.predictor.weights, same.predictor.weights) and torch.equal(first.base, same.base)
    assert not torch.equal(first.base, other.base)
    loaded = load(save(tmp_path / "a.safetensors", first))
    assert torch.equal(loaded.predictor.weights, first.predictor.weights)
    assert loaded.spec.metrics["plain_error"] >= loaded.spec.metrics["error"]


def test_several_nfe_share_references(model):
    counter = Counter(model)
    references = references_for(target(counter), Settings(5, budget=2500))
    first, second = (calibration_of(counter, nfe, references=references) for nfe in (4, 5))
    finished(first)
    before = references.model.rows
    result = finished(second)
    assert references.model.rows - before < 0.5 * before
    assert counter.rows == first.evaluations + result.evaluations


def test_an_interrupted_fit_keeps_the_best_so_far(model):
    calibration = calibration_of(model, budget=4000)
    steps = 0
    for progress in calibration.run():
        if progress.stage == "search" and progress.text.startswith("best"):
            plain_only = calibration.result()
            assert not plain_only.improved and "did not beat" in plain_only.fitted.spec.how
        steps += progress.text.startswith("iPNDM") and "held-out" in progress.text
        if steps == 2:
            break
    assert calibration.result().improved


def test_there_is_no_result_before_the_search(model):
    with pytest.raises(RuntimeError, match="no result yet"):
        calibration_of(model).result()


def test_a_fit_resumes_from_a_file(model):
    first = finished(calibration_of(model))
    second = finished(calibration_of(model, seed=1, start=first.fitted))
    assert second.improved
    with pytest.raises(ValueError, match="cannot be resumed"):
        calibration_of(model, 6, start=first.fitted)


def test_a_fit_that_loses_keeps_the_plain_setting(model):
    """A model whose answers depend on the exact noise levels of the best plain setting leaves nothing to
    gain."""
    calibration = calibration_of(model)
    list(calibration.run())
    for fit in calibration.fits:
        fit.held_out += 10
    result = calibration.result()
    assert not result.improved and result.fitted.spec.sampler == "amed_multistep"
    assert not result.fitted.spec.learned and result.fitted.spec.student == result.best_plain.solver
    assert "did not beat" in result.text and result.rows[0].rmse_ref == result.rows[1].rmse_ref


def test_a_model_that_returns_nan_stops_the_fit_and_names_the_sigma(model):
    def broken(x, sigma):
        return model(x, sigma) if float(sigma[0]) > 1 else torch.full_like(x, torch.nan)

    with pytest.raises(NotFiniteError, match="sigma=0.9|sigma=0.8|sigma=0.7"):
        list(calibration_of(broken).run())


@pytest.mark.parametrize("bad", [{"nfe": 1}, {"budget": 100}, {"sampler": "euler"}])
def test_bad_settings_are_errors(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        Settings(**{"nfe": 5, "budget": 2500} | bad)


def test_half_precision_is_enough(model):
    """A fit must work with a model that computes in bfloat16."""

    def half(x, sigma):
        return model(x, sigma).bfloat16().to(x)

    assert finished(calibration_of(half, budget=4000)).improved
