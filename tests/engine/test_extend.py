"""Extend the engine: a solver, a constant and a part of a slope, each added in a few lines and run end to
end.

The additions are also fitted and saved. `monkeypatch` removes them after each test."""

import dataclasses
import importlib
import pathlib
import re
from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from amed import (
    BottleneckPredictor,
    Constants,
    Fitted,
    Library,
    Multistep,
    PredictorError,
    Solver,
    Spec,
    load,
    parameters,
    parts,
    recipes,
    sample,
    save,
    schedules,
)
from amed import kdiffusion as samplers
from amed.__main__ import main
from amed.choose import Identity, Request, choose, untrained
from amed.constants import as_multistep
from amed.evaluate import FromModule
from amed.files.description import describe
from amed.files.fitted import constants_of
from amed.fit import Calibration, Settings, Target, smallest_budget
from amed.fit.algorithm1 import Settings as Training
from amed.fit.algorithm1 import plan, train
from amed.fit.measures import Counter, rmse
from amed.fit.parametrisation import Parametrisation, Runner
from amed.fit.samples import Path, Samples
from amed.fit.variable_projection import Shape, VariableProjection
from amed.kdiffusion import ENTRIES, SAMPLERS
from amed.parameters import PARAMETERS, Parameter
from amed.parts import PARTS
from amed.recipes import RECIPES, Recipe

SIGMAS = schedules.make("polynomial", 5, 0.01, 40)
R, C, A = [0.3, 0.4, 0.5, 0.2], [0.9, 1.02, 0.97, 1.0], [1.01, 0.98, 1.0, 1.03]


def draw(generator, count):
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), {}


@pytest.fixture
def target(toy) -> Target:
    return Target(toy, draw, 0.01, 40.0, "edm", "toy", "f" * 16, "a toy", FromModule(toy.middle_block))


def requires(path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()["requires"]


# --- the code in CONTRIBUTING.md

TEXT = (pathlib.Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
REGISTRIES = (RECIPES, ENTRIES, SAMPLERS, PARAMETERS, PARTS)


def blocks(heading: str) -> list[tuple[str, str]]:
    """Return (file, code) of each block of a section whose first line names a file of the engine."""
    section = re.search(rf"^## {heading}$(.*?)^## ", TEXT, re.M | re.S)
    return re.findall(r"^```python\n# (amed/\S+)\.py\n(.*?)^```", section[1], re.M | re.S)


@pytest.fixture
def follow() -> Iterator:
    """Return a function that runs a section's code, each block as if it stood at the end of its file."""
    before = [dict(registry) for registry in REGISTRIES]

    def run(heading: str) -> list[str]:
        code = blocks(heading)
        for file, text in code:
            module = importlib.import_module(file.replace("/", "."))
            exec(compile(text, f"CONTRIBUTING.md, {file}.py", "exec"), dict(vars(module)))
        return [file for file, _ in code]

    yield run
    for registry, entries in zip(REGISTRIES, before):
        registry.clear()
        registry.update(entries)


def test_every_block_of_the_three_sections_is_run():
    whole = re.search(r"^## Add a solver$.*(?=^## ComfyUI's page)", TEXT, re.M | re.S)[0]
    named = [block for heading in re.findall("^## (.*)$", whole, re.M) for block in blocks(heading)]
    assert len(named) == whole.count("```python") == 5


# --- a solver


@pytest.fixture
def solver(follow) -> Solver:
    """The recipe, and the entry that gives it a name in every host."""
    assert follow("Add a solver") == ["amed/recipes", "amed/kdiffusion"]
    SAMPLERS["amed_ab2"] = samplers._k_diffusion("amed_ab2", ENTRIES["amed_ab2"])
    return ENTRIES["amed_ab2"].solver


def test_a_solver_states_that_it_predicts_data(follow, toy, noise):
    """Whatever its other traits are: it got no data unless its order fell at the end."""
    RECIPES["full"] = Recipe(recipes.dpmpp, orders=3, predicts_data="optional")
    same = Solver("dpmpp", 2, True, lower_order_final=False)
    ends = [sample(toy, noise * 40, SIGMAS, s, disable=True) for s in (Solver("full", 2, True), same)]
    assert torch.equal(*ends) and Solver("full", 2, True).predicts_data
    assert not Solver("full", 2).predicts_data


def test_a_solver_samples(solver, toy, noise):
    """The new solver has its order and equals the formula it implements."""
    x, slopes, times = noise * 40, [], SIGMAS.tolist()
    for n, (t, s) in enumerate(zip(times, times[1:])):
        slopes.append((x - toy(x, x.new_full((5,), t))) / t)
        share = (s - t) / (t - times[n - 1]) / 2 if n else 0.0
        x = x + (s - t) * ((1 + share) * slopes[-1] - share * slopes[n - 1])
    assert torch.allclose(sample(toy, noise * 40, SIGMAS, solver, disable=True), x, rtol=1e-10, atol=1e-10)

    def end(of, steps):
        return sample(toy, noise * 40, schedules.make("logsnr", steps, 0.01, 40), of, disable=True)

    truth = (4 * end(Solver("heun"), 401) - end(Solver("heun"), 201)) / 3
    coarse, fine = ((end(solver, n) - truth).norm() for n in (101, 201))
    assert coarse / fine > 2**1.65


@pytest.mark.parametrize("afs", [False, True])
def test_a_solver_is_a_plugin_with_constants(solver, toy, noise, tmp_path, afs):
    constants = Constants(SIGMAS, r=R, c=C, a=A)
    spec = Spec.on(solver, SIGMAS, afs=afs, model_family="toy")
    fitted = load(save(tmp_path / "ab2.safetensors", Fitted(spec, constants, SIGMAS)))
    assert fitted.spec == spec and fitted.spec.sampler == "amed_ab2" and fitted.nfe == 8 - afs
    counter = Counter(toy)
    end = SAMPLERS["amed_ab2"](counter, noise * 40, SIGMAS, disable=True, predictor=fitted)
    assert counter.evaluations == 8 - afs
    assert torch.equal(
        end, sample(toy, noise * 40, SIGMAS, solver, disable=True, predictor=constants, afs=afs)
    )
    table = as_multistep(solver, SIGMAS, afs, constants)
    same = sample(toy, noise * 40, table.sigmas, Solver("multistep"), disable=True, predictor=table, afs=afs)
    assert torch.allclose(same, end, rtol=1e-10, atol=1e-10)
    choice = choose(Library([tmp_path]), Request(Identity("toy", ""), nfe=8 - afs))
    assert choice.sampler == "amed_ab2" and choice.fitted.name == "ab2.safetensors"


def test_a_solver_is_trained(solver, target, noise, tmp_path):
    """One batch of Algorithm 1, its plan and its file."""
    how = plan("amed_ab2", 5)
    assert (how.solver, how.num_steps, how.afs, how.teacher.solver) == (solver, 4, True, solver)
    times = how.teacher.times("time_uniform", how.num_steps, 0.01, 40.0, 1.0)
    torch.manual_seed(0)
    network = BottleneckPredictor(0.01, 0.1)
    start = {k: v.clone() for k, v in network.state_dict().items()}

    def states(generator, count):
        x, args = draw(generator, count)
        return x * 40, args

    settings = Training(images=8, batch=8, held_out=8, every=1)
    training = train(target.model, solver, network, times, states, how.teacher, settings,
                     afs=True, evaluate=target.evaluate)  # fmt: skip
    progress = next(training)
    assert progress.images == 8 and len(progress.losses) == 3 and min(progress.losses) > 0
    trained = progress.state()["predictor"]
    assert not any(torch.equal(trained[k], start[k]) for k in ("fc_r.weight", "fc_scale_dir.bias"))
    assert list(training) == [] and progress.best <= progress.held_out
    base = times[::2]
    more = {"afs": True, "features": "bottleneck", "scale_dir": 0.01, "scale_time": 0.1}
    spec = target.spec(solver, base, 1.0, **more)
    path = save(tmp_path / "mlp.safetensors", Fitted(spec, network, base))
    counter = Counter(target.model)
    end = SAMPLERS["amed_ab2"](
        counter, noise * 40, base, disable=True, predictor=load(path), evaluate=target.evaluate
    )
    assert counter.evaluations == 5 and end.isfinite().all() and requires(path) == "[]"


def test_a_solver_is_calibrated(solver, target):
    settings = Settings(5, "amed_ab2", smallest_budget(5))
    calibration = Calibration(target, settings)
    list(calibration.run())
    fits = [fit for fit in calibration.fits if fit.best is not None]
    assert fits and all(fit.parametrisation.solver == solver for fit in fits)
    result = calibration.result()
    assert result.fitted.nfe == 5 and result.fitted.spec.sampler in ("amed_ab2", "amed_multistep")


# --- a constant


@pytest.fixture
def constant(follow) -> Parameter:
    traits = dataclasses.replace(RECIPES["amed"], step=None, constants=())
    assert follow("Add a constant") == ["amed/parameters", "amed/recipes"]
    assert dataclasses.replace(RECIPES["amed"], step=None, constants=()) == traits
    return PARAMETERS["b"]


NAMES = ("r", "c", "a", "b")


def test_a_constant_runs(constant, toy, noise):
    times, b = SIGMAS.tolist(), [0.1, -0.2, 0.3, 0.05]
    constants = Constants(SIGMAS, names=NAMES, r=R, c=C, a=A, b=b)
    x = noise * 40
    for n, (t, t_next) in enumerate(zip(times, times[1:])):
        s = t_next ** R[n] * t ** (1 - R[n])
        d = (x - toy(x, x.new_full((5,), t))) / t
        mid = x + (s - t) * d
        d_mid = (mid - toy(mid, x.new_full((5,), A[n] * s))) / s
        x = x + C[n] * (t_next - t) * ((1 - b[n]) * d_mid + b[n] * d)

    def end(predictor):
        return sample(toy, noise * 40, SIGMAS, Solver("amed"), disable=True, predictor=predictor)

    assert torch.allclose(end(constants), x, rtol=1e-10, atol=1e-10)
    table = as_multistep(Solver("amed"), SIGMAS, False, constants)
    same = sample(toy, noise * 40, table.sigmas, Solver("multistep"), disable=True, predictor=table)
    assert torch.allclose(same, x, rtol=1e-10, atol=1e-10)
    plain = Constants(SIGMAS, r=R, c=C, a=A)  # an older predictor: the default
    assert torch.equal(end(plain), end(Constants(SIGMAS, names=NAMES, r=R, c=C, a=A)))
    assert not torch.allclose(end(plain), x)
    network = sample(toy, noise * 40, SIGMAS, Solver("amed"), disable=True, predictor=BottleneckPredictor(),
                     evaluate=FromModule(toy.middle_block))  # fmt: skip
    assert network.isfinite().all()  # the paper's network still has only r, c, a


def test_a_constant_may_differ_for_each_sample(constant, toy, noise):
    class PerSample:
        wants_bottleneck = False

        def __call__(self, t, t_next, bottleneck=None):
            ones = torch.ones(5, dtype=torch.float64)
            return 0.4 * ones, ones, ones, torch.linspace(-0.2, 0.2, 5, dtype=torch.float64)

    def end(x, predictor):
        return sample(toy, x, SIGMAS, Solver("amed"), disable=True, predictor=predictor)

    batch_end = end(noise * 40, PerSample())
    for i, b in ((0, -0.2), (3, 0.1)):
        alone = Constants(SIGMAS, names=NAMES, r=[0.4] * 4, b=[b] * 4)
        assert torch.allclose(batch_end[i : i + 1], end(noise[i : i + 1] * 40, alone), atol=1e-9)


def test_a_constant_is_in_files(constant, toy, noise, tmp_path, capsys, monkeypatch):
    """A constant is saved, loaded and inspected; files without it have its default, readers without it
    refuse."""
    b = [0.1, -0.2, 0.3, 0.05]
    constants = Constants(SIGMAS, names=NAMES, r=R, c=C, a=A, b=b)
    path = save(tmp_path / "b.safetensors", Fitted(Spec.on(Solver("amed"), SIGMAS), constants, SIGMAS))
    fitted = load(path)
    assert requires(path) == '["constant:b"]' and constants_of(fitted)["b"].tolist() == b
    ends = [SAMPLERS["amed"](toy, noise * 40, SIGMAS, disable=True, predictor=p) for p in (fitted, constants)]
    assert torch.equal(*ends)
    assert "r, c, a, b" in describe(fitted) and re.search(
        r"0\.3000, 0\.9000, 1\.0100, 0\.1000", describe(fitted)
    )
    assert main(["inspect", str(path)]) == 0 and "r, c, a, b" in capsys.readouterr().out
    with pytest.raises(PredictorError, match=r"b is not finite|b must lie between -1 and 1"):
        save(path, Fitted(fitted.spec, broken(constants), SIGMAS))
    assert untrained("amed", SIGMAS).predictor.values["b"].tolist() == [0.0] * 4
    with monkeypatch.context() as before:
        before.setitem(RECIPES, "amed", dataclasses.replace(RECIPES["amed"], constants=("r", "c", "a")))
        before.delitem(parameters.PARAMETERS, "b")
        with pytest.raises(PredictorError, match=r"b\.safetensors.*requires.*constant:b.*update"):
            load(path)
        old = save(tmp_path / "old.safetensors", Fitted(Spec.on(Solver("amed"), SIGMAS), plain(), SIGMAS))
        theirs = SAMPLERS["amed"](toy, noise * 40, SIGMAS, disable=True, predictor=load(old))
    assert requires(old) == "[]" and load(old).predictor.values["b"].tolist() == [0.0] * 4
    mine = SAMPLERS["amed"](toy, noise * 40, SIGMAS, disable=True, predictor=load(old))
    assert torch.allclose(mine, theirs, rtol=1e-12)


def plain() -> Constants:
    return Constants(SIGMAS, r=R, c=C, a=A)


def broken(constants: Constants) -> Constants:
    constants.values["b"] = torch.full((4,), 2.0, dtype=torch.float64)
    return constants


def test_a_constant_is_fitted(constant, target):
    """Its finite differences and bounds come from its description alone."""
    calibration = Calibration(target, Settings(4, "amed", smallest_budget(4) + 1500))
    list(calibration.run())
    fit = calibration.best
    kinds = [c.kind for c in fit.parametrisation.constants]
    assert kinds.count("b") == 2 and {c.step for c in fit.parametrisation.constants if c.kind == "b"} == {
        constant.step
    }
    assert fit.iterations and (fit.parametrisation.build(fit.values).values["b"] != 0).all()
    moved = fit.parametrisation.bounded(fit.parametrisation.vector(), fit.parametrisation.vector() + 9)
    assert all(v == pytest.approx(0.2) for v, k in zip(moved.tolist(), kinds) if k == "b")  # its bounds
    assert calibration.result().fitted.nfe == 4


# --- a part of a slope


def low_of(v):
    return F.interpolate(F.avg_pool2d(v, 2), scale_factor=2)


@pytest.fixture
def low(follow) -> str:
    assert follow("Add a slope part") == ["amed/parts"]
    return "low"


class Banded(torch.nn.Module):
    """The exact denoiser of a Gaussian whose low and high bands have different variances.

    Each band moves along its own line, so one weight per step can be exact for only one of them."""

    LOW, HIGH = 1.0, 0.01

    def forward(self, x, sigma):
        square, low = sigma.view(-1, 1, 1, 1) ** 2, low_of(x)
        return low * self.LOW / (self.LOW + square) + (x - low) * self.HIGH / (self.HIGH + square)

    def at(self, x, t, start):
        """Return where x at `start` is at time t."""
        scale = [((v + t**2) / (v + start**2)) ** 0.5 for v in (self.LOW, self.HIGH)]
        return low_of(x) * scale[0] + (x - low_of(x)) * scale[1]


@pytest.mark.parametrize("afs", [False, True])
def test_equal_weights_in_both_parts_equal_the_unsplit_slope(low, toy, noise, afs):
    table = as_multistep(Solver("dpmpp", 2, True), SIGMAS, afs)
    both = Multistep(SIGMAS, table.weights.expand(-1, -1, 2), table.a, low)
    unsplit, split = (
        sample(toy, noise * 40, SIGMAS, Solver("multistep"), disable=True, predictor=p, afs=afs)
        for p in (table, both)
    )
    assert torch.allclose(unsplit, split, rtol=1e-10, atol=1e-10)


def test_parts_have_weights_of_their_own(low, toy, noise, tmp_path):
    """A table with parts runs, is saved and loaded; a reader that cannot split refuses the file and says
    why."""
    generator = torch.Generator().manual_seed(4)
    weights = as_multistep(Solver("ipndm", 2), SIGMAS).weights.expand(-1, -1, 2)
    weights = weights + 0.1 * torch.randn(weights.shape, generator=generator).double() * (weights != 0)
    table = Multistep(SIGMAS, weights, parts=low)
    path = save(
        tmp_path / "low.safetensors", Fitted(Spec.on(Solver("multistep"), SIGMAS, parts=low), table, SIGMAS)
    )
    fitted = load(path)
    assert requires(path) == '["parts:low"]' and torch.equal(fitted.predictor.weights, weights)
    x, slopes, times = noise * 40, [], SIGMAS.tolist()
    for n, (t, s) in enumerate(zip(times, times[1:])):
        slopes.insert(0, (x - toy(x, x.new_full((5,), t))) / t)
        for k, d in enumerate(slopes[: weights.shape[1]]):
            x = x + (s - t) * (weights[n, k, 0] * low_of(d) + weights[n, k, 1] * (d - low_of(d)))
    counter = Counter(toy)
    end = SAMPLERS["amed_multistep"](counter, noise * 40, SIGMAS, disable=True, predictor=fitted)
    assert counter.evaluations == 4 == fitted.nfe
    assert torch.allclose(end, x, rtol=1e-10, atol=1e-10)
    below = torch.tensor([9.0, 1.0, 0.2, 0.0]).double()  # another list too
    assert SAMPLERS["amed_multistep"](toy, noise * 9, below, disable=True, predictor=fitted).isfinite().all()
    assert "weights" in describe(fitted) and 'parts: "low"' in describe(fitted)
    with pytest.MonkeyPatch.context() as before:
        before.delitem(parts.PARTS, "low")
        with pytest.raises(PredictorError, match=r"low\.safetensors.*requires.*parts:low.*update"):
            load(path)


def test_parts_are_fitted_in_closed_form(low, noise):
    """One weight per step and part makes each band exact; one weight per step cannot."""
    model = Banded()
    start = noise * 40
    path = Path(SIGMAS, tuple(model.at(start, float(t), 40.0) for t in SIGMAS))
    samples = Samples(noise, {}, path.states[-1])
    ends = []
    for name in ("", low):
        counter = Counter(model)
        run = VariableProjection(counter, samples, path, lags=1).run(SIGMAS, False, Shape(name))
        assert counter.evaluations == 4 and run.table.parts == name
        other = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 40
        end = sample(model, other, SIGMAS, Solver("multistep"), disable=True, predictor=run.table)
        ends.append(rmse(end, model.at(other, 0.01, 40.0)))
    assert ends[1] < 1e-4 < 0.05 < ends[0]


def test_parts_are_polished(low, toy):
    """The joint fit has a constant for each part, and reuses a run's prefix for them."""
    table = as_multistep(Solver("ipndm", 2), SIGMAS)
    form = Parametrisation(
        Solver("multistep"), Multistep(SIGMAS, table.weights.expand(-1, -1, 2), None, low), False, 2
    )
    weights = [c for c in form.constants if c.kind == "w"]
    assert len(weights) == 2 * 7 and {c.s for c in weights} == {0, 1}
    runner, values = Runner(toy, form), form.vector()
    noise, _ = draw(torch.Generator().manual_seed(1), 3)
    states = runner.states(values, noise, {})
    for i, c in enumerate(form.constants):
        moved = values.clone()
        moved[i] += c.step
        again, end = runner.rerun(moved, noise, {}, states, c), runner.end(moved, noise, {})
        assert torch.allclose(again, end, atol=1e-9) and not torch.equal(end, states[-1].x)
