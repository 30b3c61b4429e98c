"""The multistep student, conversion into it, and calibration, on a denoiser in closed form."""

import pytest
import torch
from golden import Toy

from amed import plain, schedules, store
from amed.calibration import Calibration, References, Settings, smallest
from amed.conversion import as_multistep
from amed.evaluation import Counter, rmse, run
from amed.forms import MultistepForm, Runner, TableForm, bounded
from amed.guidance import Guided, guide
from amed.predictor import MultistepTable, TablePredictor
from amed.sampling import SAMPLERS, NotFiniteError, Solver, sample

SIGMAS = schedules.make("polynomial", 5, 0.01, 40)
TABLE = TablePredictor(SIGMAS, [0.3, 0.4, 0.5, 0.2], [0.9, 1.02, 0.97, 1.0], [1.01, 0.98, 1.0, 1.03])
SOLVERS = [
    Solver("euler"),
    *(Solver("ipndm", k) for k in (1, 2, 3, 4)),
    *(Solver("dpmpp", k, x0, low) for k in (1, 2, 3) for x0 in (True, False) for low in (True, False)),
    Solver("dpm_2"),
    Solver("amed"),
    Solver("multistep"),
]


@pytest.fixture
def model() -> Toy:
    return Toy(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def draw(generator, count):
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), {}


def settings(nfe=5, budget=2500, **other) -> Settings:
    return Settings(nfe, 0.01, 40.0, budget=budget, **other)


def finished(calibration: Calibration):
    stages = [p.stage for p in calibration.run()]
    assert {"search", "compare"} < set(stages) and stages[-1] == "fit"
    return calibration.result()


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("predictor", [None, TABLE], ids=["plain", "table"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_every_explicit_solver_is_a_table(model, noise, solver, predictor, afs):
    if solver.name == "multistep":
        predictor = None
    table = as_multistep(solver, SIGMAS, afs, predictor)
    counters = Counter(model), Counter(model)
    theirs = sample(counters[0], noise * 40, SIGMAS, solver, disable=True, predictor=predictor, afs=afs)
    ours = sample(
        counters[1], noise * 40, table.sigmas, Solver("multistep"), disable=True, predictor=table, afs=afs
    )
    assert counters[0].evaluations == counters[1].evaluations
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "solver",
    [Solver("heun"), Solver("dpmpp", 2, True, True, True), Solver("dpmpp", 2, True, scales_timestep=True)],
)
def test_what_no_table_contains_is_refused(solver):
    with pytest.raises(ValueError):
        as_multistep(solver, SIGMAS)


def test_weights_on_slopes_a_run_does_not_have_go_to_the_newest(model, noise):
    """A start below the first time (img2img): consistent, no weight lost, and a = 1 Euler at its first
    step."""
    table = as_multistep(Solver("ipndm", 3), SIGMAS)
    low = SIGMAS[2:]
    first = sample(model, noise * low[0], low[:2], Solver("multistep"), disable=True, predictor=table)
    euler = sample(model, noise * low[0], low[:2], Solver("euler"), disable=True)
    assert torch.allclose(first, euler)


@pytest.mark.parametrize("between", [0.3, 0.7])
def test_constants_interpolate_in_log_sigma(between):
    a = torch.tensor([1.0, 1.1, 1.3, 0.9])
    table = MultistepTable(SIGMAS, torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(1, keepdim=True), a)
    sigma = SIGMAS[1] ** (1 - between) * SIGMAS[2] ** between
    row, told, _ = table.row(sigma)
    assert row == pytest.approx([2 + between]) and told == pytest.approx(1.1 + 0.2 * between)


@pytest.mark.parametrize(
    "tensors, named",
    [
        ((SIGMAS.flip(0), torch.ones(4, 1)), "sigmas"),
        ((SIGMAS, torch.ones(3, 1)), "weights"),
        ((SIGMAS, torch.ones(4, 4)), "weights"),
        ((SIGMAS, torch.full((4, 1), torch.nan)), "weights"),
        ((SIGMAS, torch.ones(4, 1), torch.zeros(4)), "a"),
        ((SIGMAS, torch.ones(4, 1), torch.ones(4), torch.ones(3)), "g"),
    ],
)
def test_bad_tables_are_refused(tensors, named):
    with pytest.raises(ValueError, match=named):
        MultistepTable(*tensors)


def forms():
    table = as_multistep(Solver("ipndm", 3), schedules.make("time_uniform", 7, 0.01, 40), True)
    yield MultistepForm(table, True, guided=True)
    yield MultistepForm(as_multistep(Solver("dpmpp", 3, True), SIGMAS), False, 2)
    for solver in (
        Solver("amed"),
        Solver("dpm_2"),
        Solver("euler"),
        Solver("ipndm", 3),
        Solver("dpmpp", 3, True),
    ):
        for afs in (True, False):
            yield TableForm(solver, SIGMAS, TABLE, afs)


@pytest.mark.parametrize("form", list(forms()), ids=lambda f: f"{f.solver.name}-{f.afs}")
def test_a_run_from_the_middle_is_the_whole_run(model, noise, form):
    """For every constant, re-running from where it matters gives what running everything gives, and costs
    what is said."""
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
            runner.again(moved, noise, {}, states, c), runner.end(moved, noise, {}), atol=1e-9
        )
        counted += counter.evaluations - run_costs
        counter.evaluations = 0
    assert runner.evaluations() == (run_costs, counted)


def test_times_stay_in_order_and_near():
    form = next(forms())
    start = form.vector()
    moved = bounded(
        form, start, start + torch.randn(len(start), generator=torch.Generator().manual_seed(0)) * 9
    )
    sigmas, _ = form.build(moved)
    assert (sigmas.diff() < 0).all() and sigmas[0] == form.sigmas[0] and sigmas[-1] == form.sigmas[-1]
    assert all(abs(m - s) <= c.reach + 1e-6 for m, s, c in zip(moved, start, form.constants) if c.kind != "t")


def test_calibration_beats_every_plain_solver_within_its_budget(model):
    result = finished(Calibration(model, draw, settings(budget=6000)))
    assert result.improved and 0.95 * 6000 < result.evaluations < 1.05 * 6000
    fresh, _ = draw(torch.Generator().manual_seed(99), 32)
    truth = run(model, fresh, schedules.make("polynomial", 400, 0.01, 40), Solver("ipndm", 3))[0]
    fitted = result.fitted
    end, nfe = run(model, fresh, fitted.sigmas(), fitted.spec.settings, predictor=fitted, afs=fitted.spec.afs)
    errors = [
        rmse(run(model, fresh, s.sigmas(), s.solver, afs=s.afs)[0], truth)
        for s in plain.candidates(5, 0.01, 40)
    ]
    assert nfe == 5 == fitted.nfe
    assert rmse(end, truth) < min(errors)


@pytest.mark.parametrize("sampler", ["amed", "amed_dpm_2", "amed_ipndm", "amed_dpmpp_2m"])
def test_the_papers_students_calibrate_too(model, sampler):
    result = finished(Calibration(model, draw, settings(7, 4000, sampler=sampler)))
    assert result.evaluations < 1.05 * 4000 and result.fitted.nfe == 7
    assert result.rows[0].error <= result.rows[1].error


@pytest.mark.parametrize("nfe", [2, 3, 4, 8])
def test_any_nfe_from_two(model, nfe):
    least = smallest(nfe)
    result = finished(Calibration(model, draw, settings(nfe, least)))
    assert result.fitted.nfe == nfe and result.evaluations <= 1.05 * least


def test_the_same_seed_gives_the_same_file_and_another_does_not(model, tmp_path):
    one, same, other = (finished(Calibration(model, draw, settings(seed=seed))).fitted for seed in (3, 3, 4))
    assert torch.equal(one.predictor.weights, same.predictor.weights) and torch.equal(one.base, same.base)
    assert not torch.equal(one.base, other.base)
    loaded = store.load(store.save(tmp_path / "a.safetensors", one))
    assert torch.equal(loaded.predictor.weights, one.predictor.weights)
    assert loaded.spec.metrics["plain_error"] >= loaded.spec.metrics["error"]


def test_several_nfe_share_references(model):
    counter = Counter(model)
    references = References(counter, draw, settings())
    first, second = (Calibration(counter, draw, settings(nfe), references=references) for nfe in (4, 5))
    finished(first)
    before = references.model.rows
    result = finished(second)
    assert references.model.rows - before < 0.5 * before
    assert counter.rows == first.evaluations + result.evaluations


def test_stopped_anywhere_it_keeps_the_best_so_far(model):
    calibration = Calibration(model, draw, settings(budget=4000))
    seen = 0
    for progress in calibration.run():
        if progress.stage == "search" and progress.text.startswith("best"):
            plain_only = calibration.result()
            assert not plain_only.improved and "did not beat" in plain_only.fitted.spec.how
        seen += progress.text.startswith("iPNDM") and "held-out" in progress.text
        if seen == 2:
            break
    assert calibration.result().improved


def test_nothing_to_give_before_the_search(model):
    with pytest.raises(RuntimeError, match="search"):
        Calibration(model, draw, settings()).result()


def test_a_fit_goes_on_from_a_file(model):
    first = finished(Calibration(model, draw, settings()))
    second = finished(Calibration(model, draw, settings(seed=1), start=first.fitted))
    assert second.improved
    with pytest.raises(ValueError, match="gone on"):
        Calibration(model, draw, settings(6), start=first.fitted)


def test_a_fit_that_loses_keeps_the_plain_setting(model):
    """A model whose answers hang on the exact noise levels of the best plain setting leaves nothing to
    gain."""
    calibration = Calibration(model, draw, settings())
    list(calibration.run())
    calibration._ends["fit"] = calibration._ends["fit"] + 10
    result = calibration.result()
    assert not result.improved and result.fitted.spec.solver == "multistep"
    assert "did not beat" in result.text and result.rows[0].rmse_ref == result.rows[1].rmse_ref


def test_a_model_that_returns_nan_stops_the_fit_and_names_the_sigma(model):
    def broken(x, sigma):
        return model(x, sigma) if float(sigma[0]) > 1 else torch.full_like(x, torch.nan)

    with pytest.raises(NotFiniteError, match="sigma=0.9|sigma=0.8|sigma=0.7"):
        list(Calibration(broken, draw, settings()).run())


@pytest.mark.parametrize("bad", [{"nfe": 1}, {"budget": 100}, {"sampler": "euler"}])
def test_bad_settings_say_so(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        settings(**bad)


def test_guidance_can_be_scaled_per_evaluation(noise):
    class Labelled(torch.nn.Module):
        def forward(self, x, sigma, shift):
            return x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + shift.view(-1, 1, 1, 1)

    guided = Guided(Labelled(), 4.0)
    args = {"cond": {"shift": torch.full((5,), 0.5)}, "uncond": {"shift": torch.zeros(5)}}
    table = as_multistep(Solver("ipndm", 2), SIGMAS)
    scaled = MultistepTable(table.sigmas, table.weights, None, torch.tensor([1.0, 0.5, 1.0, 1.0]))
    ends = [
        SAMPLERS["amed_multistep"](guided, noise * 40, SIGMAS, args, disable=True, predictor=t, guide=g)
        for t, g in ((table, guide), (scaled, guide), (scaled, None))
    ]
    assert torch.equal(ends[0], ends[2]) and not torch.allclose(ends[0], ends[1])


def test_half_precision_is_enough(model):
    """The fit must survive a model that computes in bfloat16."""

    def half(x, sigma):
        return model(x, sigma).bfloat16().to(x)

    assert finished(Calibration(half, draw, settings(budget=4000))).improved
