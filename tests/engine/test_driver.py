"""One driver for every host: several numbers of evaluations, what is kept, and what must never be lost."""

import dataclasses

import pytest
import torch

from amed import Constants, Fitted, Solver, load, sample, save, schedules
from amed.files.keep import keep
from amed.fingerprint import signature
from amed.fit import Calibration, Job, Outcome, Settings, Target, fit, plain_solvers, smallest_budget, target
from amed.fit.measures import Counter
from amed.kdiffusion import SAMPLERS
from amed.recipes import RECIPES


def weights(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [(f"w{i}", torch.randn(64, 256, generator=generator).to(dtype)) for i in range(32)]


MINE, IN_FP8, THEIRS = map(signature, (weights(1), weights(1, torch.float8_e5m2), weights(2)))


def draw(generator, count):
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), {}


@pytest.fixture
def toy_target(toy) -> Target:
    return Target(toy, draw, 0.01, 40.0, family="toy", fingerprint="f" * 16, name="a toy")


def path_in(folder):
    return lambda nfe: folder / f"my-nfe{nfe}.safetensors"


def fitted(toy_target, *, error=0.1, finished=None, **spec):
    """A file of some fit, with an error."""
    result = plain_solvers.Setting(Solver("ipndm", 2), "polynomial", 7.0, 6, False, 0.01, 40.0)
    more = {"features": "plain", "schedule": "polynomial", "rho": 7.0, "metrics": {"error": error}}
    made = toy_target.spec(result.solver, result.sigmas(), 1.0, **more)
    made = dataclasses.replace(made, **spec)
    if finished is not None:
        made = dataclasses.replace(made, metrics=made.metrics | {"finished": finished})
    return Fitted(made, None, result.sigmas())


def test_several_nfe_in_one_job(toy_target, tmp_path):
    seen = []
    outcome = fit(toy_target, Job((4, 5), budget=2500), path_in(tmp_path), seen.append)
    assert [kept.path.name for kept in outcome.fits] == ["my-nfe4.safetensors", "my-nfe5.safetensors"]
    assert [load(kept.path).nfe for kept in outcome.fits] == [4, 5] and not outcome.interrupted
    assert all(load(kept.path).spec.metrics["finished"] for kept in outcome.fits)
    counts = [p.evaluations for p in seen]
    assert counts == sorted(counts) and counts[-1] <= 5000 and {p.budget for p in seen} == {5000}
    assert {p.nfe for p in seen} == {4, 5}
    assert "my-nfe4.safetensors" in outcome.text and str(tmp_path) in outcome.text


def test_nfes_whose_budgets_hold_out_different_numbers_of_samples(toy_target, tmp_path):
    """It raised after the first had been fitted."""
    job = Job((6, 7), budget="normal")
    assert len({settings.held_out for settings in job.settings()}) == 2
    outcome = fit(toy_target, job, path_in(tmp_path), lambda progress: None)
    assert [load(kept.path).nfe for kept in outcome.fits] == [6, 7]


def test_a_bad_number_is_said_before_any_work(toy_target, tmp_path):
    counter = Counter(toy_target.model)
    counted = dataclasses.replace(toy_target, model=counter)
    with pytest.raises(ValueError, match="at least 2"):
        fit(counted, Job((5, 1)), path_in(tmp_path), lambda progress: None)
    assert counter.evaluations == 0


class Stopped(BaseException):
    """As a host's interruption."""


def stop_at(share):
    def tell(progress):
        if progress.evaluations > share * progress.budget:
            raise Stopped

    return tell


def test_interrupted_the_best_so_far_is_kept_as_unfinished(toy_target, tmp_path):
    outcome = Outcome()
    with pytest.raises(Stopped):
        fit(toy_target, Job((4, 5), budget=2500), path_in(tmp_path), stop_at(0.9), outcome)
    assert outcome.interrupted and len(outcome.fits) == 2
    first, second = (load(kept.path).spec.metrics for kept in outcome.fits)
    assert first["finished"] and not second["finished"]
    assert "unfinished" in outcome.fits[1].text and "the best so far is kept" in outcome.text


def test_interrupted_before_there_is_anything(toy_target, tmp_path):
    outcome = Outcome()
    with pytest.raises(Stopped):
        fit(toy_target, Job((5,), budget=2500), path_in(tmp_path), stop_at(0), outcome)
    assert outcome.fits == [] and "nothing was saved" in outcome.text and not list(tmp_path.iterdir())


def test_a_stopped_fit_leaves_a_finished_better_one_alone(toy_target, tmp_path):
    whole = fit(toy_target, Job((5,), budget=6000), path_in(tmp_path), lambda progress: None)
    before = whole.fits[0].path.read_bytes()
    outcome = Outcome()
    with pytest.raises(Stopped):
        fit(toy_target, Job((5,), budget=6000, seed=1), path_in(tmp_path), stop_at(0.5), outcome)
    assert whole.fits[0].path.read_bytes() == before
    assert outcome.fits[0].path.name == "my-nfe5-2.safetensors"
    assert "my-nfe5.safetensors stays, it is finished" in outcome.text


@pytest.mark.parametrize(
    ("old", "new", "finished", "replaced"),
    [
        ({"error": 0.2}, {"error": 0.1}, True, True),
        ({"error": 0.1}, {"error": 0.1}, True, True),  # the same fit again
        ({"error": 0.1}, {"error": 0.2}, True, False),
        ({"error": 0.2}, {"error": 0.1}, False, False),  # finished by unfinished
        ({"error": 0.1, "finished": False}, {"error": 0.2}, True, True),  # unfinished by finished
        ({"error": 0.1, "finished": False}, {"error": 0.2}, False, False),
        ({"error": 0.2, "finished": False}, {"error": 0.1}, False, True),
        ({"error": 0.2, "guidance": 4.0}, {"error": 0.1}, True, False),
        ({"error": 0.2, "model_fingerprint": "a" * 16}, {"error": 0.1}, True, False),
        ({"error": 0.2, "model_fingerprint": ""}, {"error": 0.1}, True, False),
        ({"error": 0.2, "model_signature": MINE}, {"error": 0.1}, True, True),  # by the fingerprint
        # the same checkpoint in another precision; another whose fingerprint is the same
        (
            {"error": 0.2, "model_fingerprint": "a" * 16, "model_signature": IN_FP8},
            {"error": 0.1, "model_signature": MINE},
            True,
            True,
        ),
        ({"error": 0.2, "model_signature": THEIRS}, {"error": 0.1, "model_signature": MINE}, True, False),
    ],  # fmt: skip
)
def test_what_replaces_what(toy_target, tmp_path, old, new, finished, replaced):
    place = tmp_path / "a.safetensors"
    save(place, fitted(toy_target, **old))
    before = place.read_bytes()
    saved, text = keep(place, fitted(toy_target, **new), finished)
    assert (saved == place) == replaced and saved.name in text
    if not replaced:
        assert place.read_bytes() == before and saved.name == "a-2.safetensors" and "stays" in text
        again, _ = keep(place, fitted(toy_target, **new), finished)
        assert load(again).spec.metrics["error"] == new["error"] and place.read_bytes() == before


def test_a_file_that_cannot_be_read_is_not_replaced_either(toy_target, tmp_path):
    (tmp_path / "a.safetensors").write_text("not a predictor; perhaps somebody's only copy")
    saved, text = keep(tmp_path / "a.safetensors", fitted(toy_target), True)
    assert saved.name == "a-2.safetensors" and "cannot be read" in text
    assert (tmp_path / "a.safetensors").read_text().startswith("not a")


def test_a_better_fit_replaces_the_plain_solver_that_was_kept_in_its_place(toy_target, tmp_path):
    """Asked for UniPC, a first fit kept a plain solver, which runs under another sampler's name."""
    place, base = tmp_path / "a.safetensors", schedules.make("polynomial", 4, 0.01, 40.0)
    save(place, fitted(toy_target, error=0.2))
    spec = toy_target.spec(Solver("unipc", 3), base, 1.0, afs=True, metrics={"error": 0.1})
    saved, _ = keep(place, Fitted(spec, Constants(base), base), True)
    assert saved == place and load(place).spec.sampler == "amed_uni_pc"


def only(monkeypatch, *names):
    monkeypatch.setattr(plain_solvers, "SOLVERS", {name: plain_solvers.SOLVERS[name] for name in names})


@pytest.mark.parametrize("names", [("Heun",), ("Heun", "DPM-Solver-2")])
def test_heun_may_be_the_best_plain_solver(toy_target, tmp_path, monkeypatch, names):
    """Its result raised: Heun evaluates twice at one noise level, which no list of falling times holds."""
    only(monkeypatch, *names)
    calibration = Calibration(toy_target, Settings(6, budget=smallest_budget(6)))
    list(calibration.run())
    calibration.fits.clear()  # no fit wins
    result = calibration.result()
    assert not result.improved and "did not beat" in result.fitted.spec.how
    place = save(tmp_path / "heun.safetensors", result.fitted)
    again, best = load(place), result.best_plain
    counter = Counter(toy_target.model)
    x = draw(torch.Generator().manual_seed(3), 2)[0] * 40
    end = SAMPLERS["amed_multistep"](counter, x, again.sigmas(), predictor=again, disable=True)
    assert counter.evaluations == 6 == again.nfe
    assert torch.equal(
        end, sample(toy_target.model, x, best.sigmas(), best.solver, disable=True, afs=best.afs)
    )
    below = torch.tensor([5.0, 1.0, 0.2, 0.0], dtype=torch.float64)  # img2img: its recipe on other levels
    end = SAMPLERS["amed_multistep"](toy_target.model, x / 8, below, predictor=again, disable=True)
    assert torch.equal(end, sample(toy_target.model, x / 8, below, best.solver, disable=True))


def test_a_plain_solver_that_nobody_ranked_takes_part(toy_target, monkeypatch):
    """A new entry of the plain solvers broke every calibration."""
    monkeypatch.setitem(RECIPES, "ralston", dataclasses.replace(RECIPES["dpm_2"], r=2 / 3))
    monkeypatch.setattr(plain_solvers, "SOLVERS", {"Ralston": Solver("ralston"), **plain_solvers.SOLVERS})
    calibration = Calibration(toy_target, Settings(6, budget=12_000))
    list(calibration.run())
    assert any(setting.name == "Ralston" for setting in calibration.search.ranking)
    assert calibration.result().fitted.nfe == 6


def test_flow_models_get_their_schedules_and_no_plain_solver_starts_analytically(toy_target):
    """A table with its offset may."""
    flow = dataclasses.replace(toy_target, prediction_type="flow")
    kinds = {(s.kind, s.rho) for s in plain_solvers.settings_for(flow, 5)}
    assert kinds == set(plain_solvers.FLOW_SCHEDULES) and not any(
        s.afs for s in plain_solvers.settings_for(flow, 5)
    )
    calibration = Calibration(flow, Settings(5, budget=2500))
    list(calibration.run())
    spec, best = calibration.result().fitted.spec, calibration.search.best
    assert not best.afs and (spec.learned or not spec.afs)
    with pytest.raises(ValueError, match="set nfe to 6"):
        list(Calibration(flow, Settings(5, "amed", budget=2500)).run())


FACTORIES = """
def nothing():
    return 3

def broken(guidance):
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("factories:nothing", "could not be called"),
        ("factories:broken", r"ZeroDivisionError: division by zero \(.*factories.py, line 6\)"),
        ("factories:absent", "AttributeError"),
        ("nowhere:target", "nowhere"),
        ("factories", "module:function"),
    ],
)
def test_a_factory_that_will_not_do_is_named_with_its_place(tmp_path, monkeypatch, factory, said):
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=said):
        target.load(factory, 1.0)


def test_kept_by_both_errors(toy_target):
    """A few samples that jump do not decide alone, nor do they count for nothing."""
    calibration = Calibration(toy_target, Settings(5, budget=2500))
    list(calibration.run())
    judge = calibration.search.judge
    near = judge.held_out.end + 0.01
    jumped = near.clone()
    jumped[0] += 5.0
    assert judge.error(jumped) < 10 * judge.error(near)  # robust
    assert judge.score(jumped) > 2 * judge.score(near)


def test_schedules_differ_by_model_kind():
    assert set(plain_solvers.SCHEDULES) != set(plain_solvers.FLOW_SCHEDULES)
    assert all(
        kind in schedules.KINDS for kind, _ in (*plain_solvers.SCHEDULES, *plain_solvers.FLOW_SCHEDULES)
    )
