"""AMED-Plugin around a black-box sampler: wrapping it, fitting it, and its file."""

import dataclasses
import math

import pytest
import torch

from amed import Fitted, Spec, load, save, schedules
from amed.choose import Identity, Request, choose
from amed.files import Library, PredictorError
from amed.files.description import describe
from amed.fit import HostSampler, Job, Settings, Target, fit
from amed.fit.host_calibration import HostCalibration
from amed.fit.host_sampler import host_schedules, with_zero
from amed.fit.measures import Counter
from amed.fit.samples import Samples
from amed.outside import BoundDenoiser, Memo, Outside, ScaledDenoiser

TIMES = torch.tensor([40.0, 6.0, 1.0, 0.2], dtype=torch.float64)


def euler(model, x, sigmas, args):
    for t, t_next in zip(sigmas, sigmas[1:]):
        x = x + (t_next - t) * (x - model(x, t.expand(len(x)), **args)) / t
    return x


def heun(model, x, sigmas, args):
    """A Heun sampler: two evaluations per step, the second at the next level; one in the last step."""
    for t, t_next in zip(sigmas, sigmas[1:]):
        d = (x - model(x, t.expand(len(x)), **args)) / t
        ahead = x + (t_next - t) * d
        if t_next > 0:
            d = (d + (ahead - model(ahead, t_next.expand(len(x)), **args)) / t_next) / 2
        x = x + (t_next - t) * d
    return x


def midpoint(model, x, sigmas, args):
    """A sampler that evaluates at levels that are not in its list."""
    for t, t_next in zip(sigmas, sigmas[1:]):
        d = (x - model(x, t.expand(len(x)), **args)) / t
        if t_next > 0:
            mid = (t * t_next).sqrt()
            ahead = x + (mid - t) * d
            d = (ahead - model(ahead, mid.expand(len(x)), **args)) / mid
        x = x + (t_next - t) * d
    return x


def ancestral(model, x, sigmas, args):
    for t, t_next in zip(sigmas, sigmas[1:]):
        denoised = model(x, t.expand(len(x)), **args)
        x = denoised + t_next * torch.randn_like(x)
    return x


def seeded(model, x, sigmas, args):
    """A sampler that draws the same noise in every run."""
    generator = torch.Generator().manual_seed(1)
    for t, t_next in zip(sigmas, sigmas[1:]):
        denoised = model(x, t.expand(len(x)), **args)
        x = denoised + t_next * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def down_to(low):
    """Return a sampler that ends at its last level, which it replaces by `low` if it differs.

    On a list that ends in `low` it makes one evaluation fewer."""

    def run(model, x, sigmas, args):
        times = sigmas[:-1].tolist()
        times += [low] * (abs(times[-1] - low) > 1e-4)
        return euler(model, x, torch.tensor(times, dtype=x.dtype), args)

    return HostSampler("down_to", run)


SAMPLERS = {f.__name__: HostSampler(f.__name__, f) for f in (euler, heun, midpoint)}


def draw(generator, count):
    return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), {}


@pytest.fixture
def target(toy):
    return Target(toy, draw, 0.01, 40.0, family="toy", fingerprint="f" * 16, name="a toy")


def calibrated(target, name, nfe, budget=2500):
    calibration = HostCalibration(target, Settings(nfe, budget=budget), SAMPLERS[name])
    for _ in calibration.run():
        pass
    return calibration


def test_ones_change_nothing(toy, noise):
    """With constants of 1 the images are equal to the last bit, and the denoiser's attributes are visible."""
    sigmas, x = with_zero(TIMES), noise * 40
    toy.answer = 42
    for sampler in SAMPLERS.values():
        levels = torch.tensor(sampler.call_levels(noise, sigmas, toy), dtype=torch.float64)
        outside = Outside(TIMES, levels)
        wrapped = ScaledDenoiser(toy, outside.at)
        assert torch.equal(sampler.run(wrapped, x, sigmas, {}), sampler.run(toy, x, sigmas, {}))
        assert wrapped.answer == 42 and wrapped.levels == outside.levels.tolist()


def test_a_scales_the_models_noise_level_and_c_the_direction(toy, noise):
    """Compare with Euler steps computed by hand."""
    sigmas, x = with_zero(TIMES), noise * 40
    c, a = torch.tensor([1.1, 0.9, 1.0, 0.95]), torch.tensor([0.9, 1.0, 1.2, 1.05])
    wanted = x
    for n, (t, t_next) in enumerate(zip(sigmas.tolist(), sigmas[1:].tolist())):
        level = torch.full((len(x),), t * float(a.double()[n]), dtype=torch.float64)
        wanted = wanted + (t_next - t) * float(c.double()[n]) * (wanted - toy(wanted, level)) / t
    ends = euler(ScaledDenoiser(toy, Outside(TIMES, TIMES, c, a).at), x, sigmas, {})
    assert (ends - wanted).abs().max() < 1e-9


def test_on_another_list_constants_are_found_by_noise_level():
    outside = Outside(TIMES, TIMES, torch.tensor([1.0, 1.2, 0.8, 0.9]), torch.ones(4))
    assert outside.at(1, 6.0 * 1.001)[0] == pytest.approx(1.2)  # rounding does not make another level
    assert outside.at(0, 6.0)[0] == pytest.approx(1.2)  # img2img: the first call, lower down
    assert outside.at(0, 6.0**0.5)[0] == pytest.approx(1.0)  # halfway to 1.0 in log sigma
    assert outside.at(9, 1e-3)[0] == pytest.approx(0.9) and outside.at(3, 0.0) == (1.0, 1.0)


def test_two_calls_at_one_level_have_separate_constants():
    levels = torch.tensor([40.0, 6.0, 6.0, 1.0])
    outside = Outside(TIMES, levels, torch.tensor([1.0, 1.1, 0.9, 1.0]))
    assert [outside.at(n, 6.0)[0] for n in (1, 2)] == pytest.approx([1.1, 0.9])
    assert outside.at(0, 6.0)[0] == pytest.approx(1.0)  # on another list: between the two


def test_memory_answers_repeated_calls(toy, noise):
    counter = Counter(toy)
    memo, sigmas, x = Memo(counter), with_zero(TIMES), noise * 40
    first = euler(memo.run(keep=True), x, sigmas, {})
    assert counter.rows == 4 * len(x)
    assert torch.equal(euler(memo.run(), x, sigmas, {}), first) and counter.rows == 4 * len(x)
    moved = sigmas.clone()
    moved[2] = 0.9
    assert torch.equal(euler(memo.run(), x, moved, {}), euler(toy, x, moved, {}))
    assert counter.rows == (4 + 2) * len(x)  # the first two calls are unchanged


@pytest.mark.parametrize(("name", "nfe", "expected"), [("euler", 5, 5), ("heun", 5, 5), ("heun", 8, 7),
                                                       ("midpoint", 6, 5)])  # fmt: skip
def test_each_sampler_takes_the_nearest_possible_evaluations(target, noise, name, nfe, expected):
    lists = host_schedules(SAMPLERS[name], target, nfe, noise[:1])
    assert {candidate.nfe for candidate in lists} == {expected} and len(
        {candidate.schedule for candidate in lists}
    ) == len(lists)


def test_impossible_numbers_of_evaluations_are_errors(target, noise):
    """One level alone is not a list; the error names possible numbers."""
    with pytest.raises(
        ValueError, match=r"heun cannot run with 2 evaluations or a few less \(but with 3\): choose another"
    ):
        host_schedules(SAMPLERS["heun"], target, 2, noise)


@pytest.mark.parametrize("sampler", [ancestral, seeded])
def test_a_sampler_that_draws_noise_is_refused(target, sampler):
    calibration = HostCalibration(target, Settings(5, budget=2500), HostSampler("its", sampler))
    with pytest.raises(ValueError, match="its draws noise .* choose one without .*eta 0"):
        list(calibration.run())


def test_a_wrapped_denoiser_has_exactly_the_hosts_attributes(toy):
    toy.answer = 42
    asking = BoundDenoiser(toy, {}, toy)
    assert asking.answer == 42
    for name in ("model", "args", "real", "inner"):
        assert not hasattr(asking, name)


def test_a_sampler_that_skips_its_last_level(target, noise):
    """It is compared with karras at as many evaluations; lists of another number are refused."""
    calibration = HostCalibration(target, Settings(5, budget=2500), sampler := down_to(0.01))
    for _ in calibration.run():
        pass
    plain, karras = calibration.plain.fit, with_zero(schedules.make("polynomial", 6, 0.01, 40.0))
    held_out = calibration.judge.held_out
    assert len(sampler.call_levels(noise, karras, target.model)) == plain.start.nfe == 5
    end = sampler.run(target.model, held_out.noise * 40, karras, {})
    assert torch.allclose(calibration.rivals["down_to, karras"], end)
    assert calibration.result().improved and calibration.result().fitted.nfe == 5

    lower = plain.vector()
    lower[len(plain.start.sigmas) - 2] = math.log(0.01)
    assert len(plain.levels(lower, noise)) == 4
    plain.bounded = lambda values, moved: lower
    stages = plain.iterate(plain.vector(), Samples(held_out.noise[:4], {}, held_out.end[:4]), 1.0)
    with pytest.raises(StopIteration) as stop:
        while True:
            next(stages)
    assert torch.equal(stop.value.value[1], plain.vector())


def test_the_hosts_own_schedules_are_tried(target, noise):
    """Host schedules of as many evaluations are tried unless they equal one of ours."""

    def lists_of(steps):
        return {
            "good": with_zero(torch.logspace(1.5, -1, steps).double()),
            "no 0": torch.logspace(1.4, -1, steps),
            "karras": with_zero(schedules.make("polynomial", steps, 0.01, 40.0)),
            "twice": torch.tensor([40.0, *[3.0] * (steps - 1), 0.0]),
            "rising": torch.tensor([*range(1, steps + 1), 0.0]),
            "none": torch.zeros(1),
        }

    ours = host_schedules(SAMPLERS["heun"], target, 5, noise[:1])
    lists = host_schedules(dataclasses.replace(SAMPLERS["heun"], schedules=lists_of), target, 5, noise[:1])
    more = lists[len(ours) :]
    names = [candidate.schedule for candidate in more]
    assert names == ["good", "no 0", "good, no last level", "no 0, no last level"]
    assert all(candidate.nfe == 5 and len(candidate.sigmas) == 3 for candidate in more)
    assert torch.equal(more[0].sigmas, lists_of(3)["good"][:-1])
    assert torch.equal(more[2].sigmas, lists_of(4)["good"][:3])


def test_a_fit_begins_at_the_best_of_the_hosts_schedules(target):
    """The host's schedule is an exact sampler's list, far better than all of ours."""
    best = calibrated(target, "euler", 5).result().fitted.sigmas()
    sampler = dataclasses.replace(SAMPLERS["euler"], schedules=lambda steps: {"its own": with_zero(best)})
    calibration = HostCalibration(target, Settings(5, budget=2500), sampler)
    for _ in calibration.run():
        pass
    result = calibration.result()
    assert calibration.plain.name == "its own" and result.fitted.spec.metrics["plain_schedule"] == "its own"
    assert result.fitted.spec.metrics["error"] <= result.fitted.spec.metrics["plain_error"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_fit_improves_on_unseen_noise(target, name):
    calibration = calibrated(target, name, 5)
    result = calibration.result()
    assert calibration.evaluations <= 2500 and result.improved
    fitted, best, usual, *_ = result.rows
    assert fitted.error < 0.9 * best.error and best.error <= usual.error
    assert result.fitted.nfe == fitted.nfe == 5 and result.fitted.spec.of == name
    # the report equals what the file does on the same samples
    held_out, outside = calibration.judge.held_out, result.fitted.predictor
    model, sigmas = Counter(target.model), with_zero(result.fitted.sigmas())
    end = SAMPLERS[name].run(ScaledDenoiser(model, outside.at), held_out.noise * 40, sigmas, {})
    assert model.evaluations == 5
    assert calibration.judge.error(end) == pytest.approx(fitted.error, rel=1e-6)


def test_an_iteration_costs_what_is_stated(target):
    calibration = HostCalibration(target, Settings(5, budget=12000), SAMPLERS["heun"])
    for _ in calibration.run():
        pass
    form, counter = calibration.plain.fit, Counter(target.model)
    form.model, samples = counter, calibration.references.take(0, 4)
    for _ in form.iterate(form.vector(), samples, 1.0):
        pass
    assert counter.rows == form.cost() * 4


def test_fit_save_and_choose_through_the_driver(target, tmp_path):
    outcome = fit(target, Job((4,), host=SAMPLERS["euler"]), lambda nfe: tmp_path / "mine.safetensors",
                  lambda progress: None)  # fmt: skip
    assert "euler + AMED-Plugin" in outcome.text and "euler, karras" in outcome.text
    again = load(tmp_path / "mine.safetensors")
    assert again.label.startswith("mine.safetensors (AMED-Plugin on the host's euler, 4 evaluations")
    assert "sigma of the call: c, a" in describe(again) and again.spec.requires == ["outside"]
    library, identity = Library([tmp_path]), Identity("toy", "f" * 16)
    with pytest.raises(PredictorError, match="no predictor for"):
        choose(library, Request(identity, nfe=4))  # never for a sampler of this pack
    assert choose(library, Request(identity, nfe=4, of="euler")).fitted.name == again.name
    with pytest.raises(PredictorError, match="fitted for the host's sampler euler, not for an AMED sampler"):
        choose(library, Request(identity, nfe=4, fitted=again))


def test_one_sampler_never_replaces_another(target, tmp_path):
    place = lambda nfe: tmp_path / "mine.safetensors"  # noqa: E731
    for name in ("euler", "heun"):
        outcome = fit(target, Job((5,), host=SAMPLERS[name]), place, lambda progress: None)
    assert outcome.fits[0].path.name == "mine-2.safetensors" and "for another sampler" in outcome.text


def test_an_interrupted_fit_keeps_the_best_so_far(target, tmp_path):
    class Stop(BaseException):
        pass

    def tell(progress):
        if progress.stage == "fit":
            raise Stop

    with pytest.raises(Stop):
        fit(target, Job((5,), host=SAMPLERS["heun"]), lambda nfe: tmp_path / "mine.safetensors", tell)
    assert load(tmp_path / "mine.safetensors").spec.of == "heun"


def test_a_broken_files_error_says_what_is_wrong(tmp_path):
    spec = {"solver": "outside", "num_steps": 4, "schedule": "custom", "sigma_min": 0.2, "sigma_max": 40.0}
    spec |= {"of": "euler", "calls": 4}
    good = Fitted(Spec(**spec), Outside(TIMES, TIMES), TIMES)
    for wrong, named in (
        ({"calls": 3}, "calls"),
        ({"of": ""}, "of"),
        ({"features": "bottleneck"}, "features"),
    ):
        with pytest.raises((ValueError, PredictorError), match=named):
            save(tmp_path / "x.safetensors", dataclasses.replace(good, spec=Spec(**{**spec, **wrong})))
    with pytest.raises(ValueError, match="c must have one value per call"):
        Outside(TIMES, TIMES, torch.ones(3))
    with pytest.raises(ValueError, match="not for an AMED sampler"):
        _ = good.spec.student


def test_masked_pixels_stay_the_original(toy):
    """The host's denoiser returns the original there; c scales only the direction of the rest."""
    x, original = torch.randn(2, 3, 8, 8, dtype=torch.float64) * 80, torch.full((3, 8, 8), 0.5)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 4:] = 1.0

    def inpainting(x, sigma, **args):
        return toy(x, sigma, **args) * mask + original * (1 - mask)

    sigmas, c = torch.cat([TIMES, torch.zeros(1)]), torch.full((len(TIMES),), 0.9)
    outside = Outside(TIMES, TIMES, c, torch.ones(len(TIMES)))
    result = euler(ScaledDenoiser(inpainting, outside.at, lambda: mask), x, sigmas, {})
    free = euler(ScaledDenoiser(inpainting, outside.at), x, sigmas, {})
    assert torch.allclose(result[..., :4], original[..., :4].double().expand(2, 3, 8, 4), atol=1e-6)
    assert not torch.allclose(free[..., :4], result[..., :4], atol=1e-3)
