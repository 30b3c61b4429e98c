"""The engine on a device without float64 (tests/no_float64.py): each sampler, fit and measure gives the same
result there as on the CPU."""

import math
import os
import subprocess
import sys
from pathlib import Path

import kdiffusion
import no_float64
import pytest
import torch
from golden import Toy, error
from torch import nn

from amed import (
    SAMPLERS,
    BottleneckPredictor,
    Constants,
    Fitted,
    Multistep,
    Solver,
    Spec,
    load,
    save,
    schedules,
)
from amed.choose import PLAIN, UNTRAINED, Identity, Request, choose
from amed.constants import as_multistep, same_times
from amed.double import as_double, as_like
from amed.evaluate import FromModule, Guided, dynamic_threshold, evaluate_guided
from amed.files import Library
from amed.fit import Calibration, HostSampler, Settings, Target, algorithm1
from amed.fit.algorithm1 import Teacher
from amed.fit.compare import usual_rivals
from amed.fit.greedy import greedy_table
from amed.fit.host_calibration import HostCalibration
from amed.fit.measures import Statistics, frechet, rmse, run
from amed.fit.samples import in_batches, joined, per_sample
from amed.geometry import Plane, trajectory_pca, walk
from amed.kdiffusion import ENTRIES, sample
from amed.loop import Problem
from amed.outside import BoundDenoiser, Outside, ScaledDenoiser
from pictures import grid, report

DEVICE = no_float64.device()
PREDICTORS = Path(__file__).parents[2] / "predictors"
TIMES = schedules.make("polynomial", 5, 0.02, 40.0)
SHAPE = (3, 8, 8)
NEAR = 2e-6  # tolerance between two runs of the same float32 arithmetic


class Model(nn.Module):
    """golden.Toy in float32, shifted by a condition."""

    def __init__(self, device="cpu"):
        super().__init__()
        mu = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
        self.toy, self.shift = Toy(mu.to(device)), nn.Parameter(torch.zeros(1, device=device), False)

    @property
    def middle_block(self):
        return self.toy.middle_block

    def forward(self, x, sigma, shift=None):
        shift = self.shift if shift is None else shift
        return self.toy(x - shift.view(-1, 1, 1, 1), sigma) + shift.view(-1, 1, 1, 1)


def noise(device="cpu", count=3):
    x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2)) * 40.0
    return x.to(device)


def halves(device, count=3):
    """Return guidance's arguments."""
    return {
        "cond": {"shift": torch.full((count,), 0.2, device=device)},
        "uncond": {"shift": torch.zeros(count, device=device)},
    }


def on_both_devices(work):
    """Return the results of `work(device)` on the CPU and on the device without float64."""
    on_cpu, on_device = work(torch.device("cpu")), work(DEVICE)
    assert on_device.device.type == no_float64.NAME and on_device.dtype == torch.float32
    return on_cpu, on_device.cpu()


def assert_same(work, tolerance=NEAR):
    on_cpu, on_device = on_both_devices(work)
    assert on_cpu.isfinite().all() and on_cpu.std() > 0.1
    assert error(on_device, on_cpu) < tolerance


# --- the device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        lambda x: x.double(),
        lambda x: x.to(torch.float64),
        lambda x: x.to("cpu", torch.float64),
        lambda x: torch.zeros(3, dtype=torch.float64).copy_(x),
        lambda x: torch.as_tensor(x, dtype=torch.float64),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: x.new_zeros(3, dtype=torch.float64),
        lambda x: torch.zeros(3, dtype=torch.float64, device=x.device),
        lambda x: torch.tensor([1.0], dtype=torch.float64, device=x.device),
        lambda x: torch.tensor([1.0], dtype=torch.float64).to(x.device),
    ],
)
def test_the_device_refuses_float64(way):
    """The simulated device must refuse float64, or these tests could not fail."""
    with pytest.raises(TypeError, match="float64"):
        way(torch.ones(3, device=DEVICE))


def test_the_device_differs_from_the_cpu():
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()
    assert (x * torch.tensor(2.0, dtype=torch.float64)).cpu().tolist() == [2.0, 2.0, 2.0]
    assert torch.tensor([1.0], dtype=torch.float64).to(x).device.type == no_float64.NAME


def test_the_float64_helpers():
    x = torch.tensor([0.1, 2.0], device=DEVICE, requires_grad=True)
    wide = as_double(x)
    assert wide.dtype == torch.float64 and wide.device.type == "cpu" and not wide.requires_grad
    assert wide.tolist() == torch.tensor([0.1, 2.0]).tolist()
    assert as_double(0.1).item() == 0.1 and as_double([0.1, 1]).tolist() == [0.1, 1.0]
    assert as_like(x, wide).dtype == torch.float64 and as_like(x, wide).grad_fn is not None
    assert as_like(wide, x).device == x.device and as_like(wide, x).dtype == x.dtype


# --- sampling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_untrained(name, zero):
    """The list of noise levels is on the device, as in hosts."""
    times = torch.cat([TIMES, TIMES.new_zeros(zero)]).float()

    def work(device):
        states = []
        end = SAMPLERS[name](
            Model(device),
            noise(device),
            times.to(device),
            callback=lambda told: states.append(told["denoised"]),
        )
        assert len(states) == 4 + zero and all(v.device.type == device.type for v in states)
        return end

    assert_same(work)


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "amed_multistep"])
def test_each_sampler_with_constants(name, afs):
    r, c, a = torch.tensor([[0.4, 0.5, 0.6, 0.45], [1.0, 0.97, 1.02, 1.0], [1.0, 1.03, 0.98, 1.0]])
    wide = torch.float64

    def work(device):
        own = [v.to(device) for v in (r, c, a)]  # constants given on a device are moved to the CPU
        constants = Constants(TIMES.float().to(device), r=own[0], c=own[1], a=own[2])
        assert constants.sigmas.dtype == wide and constants.sigmas.device.type == "cpu"
        return SAMPLERS[name](Model(device), noise(device), TIMES.to(device, torch.float32),
                              predictor=constants, afs=afs)  # fmt: skip

    assert_same(work)


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "amed_multistep"])
def test_each_sampler_with_a_network(name, kind, afs, tmp_path):
    """A network loaded from a file moves to the device, in float32 whatever the file's dtype, or stays on the
    CPU."""
    torch.manual_seed(3)
    network = BottleneckPredictor(0.01, 0.05).to(kind)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    solver, base = ENTRIES[name].solver, TIMES[:4]
    spec = Spec.on(solver, base, afs=afs, features="bottleneck", scale_dir=0.01, scale_time=0.05)
    path = tmp_path / "network.safetensors"
    save(path, Fitted(spec, network.requires_grad_(False), base))

    def work(device, move=True):
        fitted, model = load(path), Model(device)
        fitted = fitted.to(device) if move else fitted
        return SAMPLERS[name](model, noise(device), TIMES[:4].to(device, torch.float32), predictor=fitted,
                              evaluate=FromModule(model.middle_block))  # fmt: skip

    assert_same(work, 2e-5)
    assert_same(lambda device: work(device, move=False), 2e-5)


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("parts", ["", "guidance", "halves", "bands", "halves+bands"])
def test_tables_of_every_kind(parts, offset, afs):
    table, count = (
        as_multistep(Solver("ipndm", 2), TIMES, afs),
        {"": 1, "guidance": 2, "halves": 2, "bands": 4},
    )
    weights = table.weights.expand(-1, -1, count.get(parts, 8))
    shift = torch.full((4, 3), 0.01) if offset else None
    table = Multistep(TIMES, weights, table.a, parts, shift, (2,) if parts.startswith("halves") else ())

    def work(device):
        guided, times = Guided(Model(device), 2.0), TIMES.to(device, torch.float32)
        return sample(guided, noise(device), times, Solver("multistep"), halves(device), predictor=table,
                      afs=afs, evaluate=evaluate_guided)  # fmt: skip

    assert_same(work)


@pytest.mark.parametrize("name", sorted(p.stem for p in PREDICTORS.glob("emoji32-*-nfe5-cfg*.safetensors")))
def test_bundled_files(name):
    """Run bundled files on their own noise levels and on others."""
    fitted = load(PREDICTORS / f"{name}.safetensors")
    lists = (fitted.sigmas(), schedules.make("polynomial", 6, 0.01, 60.0), fitted.sigmas()[1:])
    for times in lists:

        def work(device, times=times):
            guided = Guided(Model(device), 2.0)
            network = FromModule(guided.model.middle_block)
            evaluate = network if fitted.wants_bottleneck else evaluate_guided
            return SAMPLERS[fitted.spec.sampler](
                guided, noise(device), times.to(device=device, dtype=torch.float32), halves(device),
                predictor=fitted.to(device), evaluate=evaluate,
            )  # fmt: skip

        assert_same(work, 2e-5)


@pytest.mark.parametrize(
    "solver",
    [Solver("euler"), Solver("heun"), Solver("dpm_2"), *(Solver("ipndm", n) for n in (2, 4)),
     *(Solver("dpmpp", 3, data) for data in (False, True)), Solver("unipc", 3),
     Solver("unipc", 3, variant="bh2"),
     *(Solver("deis", n) for n in (2, 4))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_plain_solvers(solver, kind):
    """The plain solvers of Compare, the teachers and the references, also in half precision."""
    on_cpu, on_device = (
        sample(Model(device), noise(device).to(kind), TIMES.float().to(device), solver).cpu().float()
        for device in (torch.device("cpu"), DEVICE)
    )
    assert error(on_device, on_cpu) < (1e-2 if kind == torch.float16 else NEAR)


def test_thresholding():
    x = noise()
    bound = torch.quantile(x.abs().flatten(1), 0.995, dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(dynamic_threshold(x), x.clamp(-bound, bound) / bound, rtol=1e-6)
    assert torch.allclose(dynamic_threshold(x.to(DEVICE)).cpu(), dynamic_threshold(x), rtol=1e-6)
    big = torch.rand(1, 3, 2400, 2400)  # more values than torch.quantile accepts
    assert dynamic_threshold(big).shape == big.shape

    def work(device):
        spec = Spec.on(Solver("amed"), TIMES, thresholding=True)
        fitted = Fitted(spec, Constants(TIMES), TIMES)
        return SAMPLERS["amed"](Model(device), noise(device), TIMES.float().to(device), predictor=fitted)

    assert_same(work)


# --- samplers of a host ------------------------------------------------------------------------------------


def host_sampler(name):
    function = getattr(kdiffusion.sampling(), f"sample_{name}")

    def run(model, x, sigmas, args):
        return function(BoundDenoiser(model, args, model), x, sigmas.to(x), disable=True)

    return HostSampler(name, run)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "lms", "dpmpp_2m"])
def test_a_predictor_around_a_hosts_sampler(name):
    sampler = host_sampler(name)
    count = len(sampler.call_levels(noise(DEVICE)[:1], torch.cat([TIMES, TIMES.new_zeros(1)]), Model(DEVICE)))
    levels = torch.linspace(math.log(30.0), math.log(0.03), count).exp()
    outside = Outside(TIMES.float().to(DEVICE), levels.to(DEVICE), torch.full((count,), 0.98, device=DEVICE))

    def work(device):
        model = ScaledDenoiser(Model(device), outside.at)
        return sampler.run(model, noise(device), torch.cat([TIMES, TIMES.new_zeros(1)]), {})

    assert_same(work)


# --- choosing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["auto", *SAMPLERS])
@pytest.mark.parametrize("fallback", [PLAIN, UNTRAINED])
def test_choosing_by_a_list_on_the_device(sampler, fallback, tmp_path):
    """Choose without a file, and with files of the list's length and of one level more."""
    times = TIMES.float().to(DEVICE)
    identity = Identity("toy", "f" * 16)
    request = Request(identity, sampler, times=times, if_missing=fallback)
    choice = choose(Library([tmp_path]), request)
    assert choice.sigmas.device.type == "cpu" and choice.sigmas.dtype == torch.float64
    file_sampler = "amed_multistep" if sampler == "auto" else sampler
    constants = (
        as_multistep(Solver("ipndm", 2), TIMES) if file_sampler == "amed_multistep" else Constants(TIMES)
    )
    for name, base in (("mine", TIMES), ("other", schedules.make("logsnr", 5, 0.02, 40.0))):
        described = Spec.on(
            ENTRIES[file_sampler].solver, base, model_family="toy", model_fingerprint="f" * 16
        )
        moved = (
            type(constants)(base, constants.weights) if isinstance(constants, Multistep) else Constants(base)
        )
        save(tmp_path / f"{name}.safetensors", Fitted(described, moved, base))
    choice = choose(Library([tmp_path]), request)
    assert choice.fitted.name == "mine.safetensors" and choice.grid == "own"
    assert same_times(times, TIMES) and not same_times(times.cpu() * 2, TIMES)


def test_schedules_of_a_table_on_the_device():
    table = schedules.sd_sigmas()
    here = schedules.make("discrete", 6, float(table[0]), float(table[-1]), table=table)
    on_device = schedules.make(
        "discrete", 6, float(table[0]), float(table[-1]), table=table.float().to(DEVICE)
    )
    assert torch.allclose(here, on_device, rtol=1e-5) and on_device.dtype == torch.float64
    cut = schedules.from_start(TIMES.float().to(DEVICE), 3.0)
    assert torch.allclose(as_double(cut), schedules.from_start(TIMES, 3.0), rtol=1e-6)
    assert torch.equal(schedules.checked(TIMES.float().to(DEVICE)), TIMES.float().double())


# --- measuring ---------------------------------------------------------------------------------------------


def test_measures():
    a, b = noise(count=8), noise(count=8).flip(0)
    assert rmse(a.to(DEVICE), b.to(DEVICE)) == rmse(a, b)
    assert torch.equal(per_sample(a.to(DEVICE), b.to(DEVICE)), per_sample(a, b))
    first, second = (Statistics.of(v.flatten(1)[:, :6].to(DEVICE)) for v in (a, b + 1))
    here = frechet(*(Statistics.of(v.flatten(1)[:, :6]) for v in (a, b + 1)))
    assert frechet(first, second) == pytest.approx(here) and first.cov.device.type == "cpu"
    assert trajectory_pca(a[:, None].to(DEVICE))[0].dtype == torch.float64
    plane = Plane.of(a.to(DEVICE))
    assert torch.allclose(plane.project(a.to(DEVICE)), Plane.of(a).project(a))
    assert torch.allclose(plane.lost(a.to(DEVICE)), Plane.of(a).lost(a))
    x, args = noise(DEVICE) / 40, joined([halves(DEVICE, 2), halves(DEVICE, 1)])
    end, count = run(Guided(Model(DEVICE), 2.0), x, TIMES, Solver("euler"), args, batch=2)
    assert count == 4 and end.device.type == no_float64.NAME
    pictures = {"fit": end, "reference": end}
    assert report.sample_rows(pictures).width and report.first_samples(pictures).width
    tile = ((end.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
    assert grid.picture("A", "b", ["1"], [grid.SamplerRow("amed", pictures=tile)]).width


@pytest.mark.parametrize("solver", [Solver("ipndm", 3), Solver("deis", 3), Solver("amed")], ids=str)
def test_a_walk_along_a_trajectory(solver):
    torch.manual_seed(3)
    network = BottleneckPredictor(0.01).requires_grad_(False)
    for predictor in (None, network):
        walks = []
        for device in (torch.device("cpu"), DEVICE):
            model = Model(device)
            fitted = None if predictor is None else Fitted(Spec.on(solver, TIMES), network, TIMES).to(device)
            fitted = fitted and fitted.predictor
            problem = Problem(model, evaluate=FromModule(model.middle_block))
            walks.append(walk(problem, solver, noise(device)[:1], TIMES, fitted))
        on_cpu, on_device = walks
        assert on_device.states.device.type == "cpu" and error(on_device.states, on_cpu.states) < 2e-5
        assert torch.allclose(on_device.shares(), on_cpu.shares(), atol=1e-3)


# --- fitting -----------------------------------------------------------------------------------------------


def features(images):
    return images.mean(dim=(2, 3))


def target_on(device, guidance=1.0, flow=False):
    def draw(generator, count):
        x = torch.randn(count, *SHAPE, generator=generator)
        return x.to(device), halves(device, count) if guidance != 1 else {}

    model = Model(device)
    model = Guided(model, guidance) if guidance != 1 else model
    kind, evaluate = "flow" if flow else "eps", evaluate_guided if guidance != 1 else None
    return Target(model, draw, 0.02, 40.0, prediction_type=kind, evaluate=evaluate, features=features)


@pytest.mark.parametrize(
    "asked_for",
    [
        {"nfe": 3},
        {"nfe": 4, "guidance": 2.0},
        {"nfe": 4, "guidance": 2.0, "passes": 6},
        {"nfe": 4, "sampler": "amed"},
        {"nfe": 3, "sampler": "amed_uni_pc"},
        {"nfe": 3, "flow": True},
    ],
    ids=str,
)
def test_calibration(asked_for):
    flow = asked_for.pop("flow", False)
    settings = Settings(**asked_for, budget=2000)
    results = []
    for device in (torch.device("cpu"), DEVICE):
        calibration = Calibration(target_on(device, settings.guidance, flow), settings)
        for progress in calibration.run():
            look = progress.preview()
        results.append(calibration.result())
        assert report.live(progress, look, look.images).width
        assert report.calibration(results[-1], results[-1].images).width
    on_cpu, on_device = (result.fitted.spec.metrics for result in results)
    assert on_device["evaluations"] == on_cpu["evaluations"]
    assert on_device["error"] == pytest.approx(on_cpu["error"], rel=1e-3)
    assert on_device["fd_ref"] == pytest.approx(on_cpu["fd_ref"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
def test_a_calibration_of_a_hosts_sampler(name):
    results = []
    for device in (torch.device("cpu"), DEVICE):

        def listed(steps, device=device):
            return {"theirs": schedules.make("logsnr", steps, 0.02, 40.0).float().to(device)}

        sampler = HostSampler(name, host_sampler(name).run, listed)
        calibration = HostCalibration(target_on(device), Settings(4, budget=2000), sampler)
        list(calibration.run())
        results.append(calibration.result().fitted.spec.metrics)
    on_cpu, on_device = results
    assert on_device["error"] == pytest.approx(on_cpu["error"], rel=1e-3)


def test_greedy_tables_and_rivals():
    for solver in (Solver("amed"), Solver("dpm_2"), Solver("ipndm", 3)):
        tables = [
            greedy_table(Model(device), solver, TIMES, noise(device) / 40, {}, True)
            for device in (torch.device("cpu"), DEVICE)
        ]
        on_cpu, on_device = (torch.stack(list(table.values.values())) for table in tables)
        assert torch.allclose(on_cpu, on_device, atol=1e-3)
    for name, rival in usual_rivals(target_on(DEVICE), 4).items():
        end = rival(Model(DEVICE), noise(DEVICE) / 40, {})
        assert end.cpu().isfinite().all(), name
    evaluate = in_batches(2)
    assert (
        evaluate(
            Model(DEVICE), noise(DEVICE), noise(DEVICE).new_full((3,), 2.0), {}, frozenset()
        ).denoised.shape[0]
        == 3
    )


def trained():
    """Run Algorithm 1 on both devices; print the best held-out errors and the initial ones."""

    for name, checkpointing in (("amed", True), ("amed_deis", False), ("amed_uni_pc", False)):
        for device in (torch.device("cpu"), DEVICE):
            torch.manual_seed(0)
            model, network = Model(device), BottleneckPredictor(0.01, 0.01).to(device)
            teacher, solver = Teacher(Solver("heun"), 1), ENTRIES[name].solver

            def draw(generator, count, device=device):
                return (torch.randn(count, *SHAPE, generator=generator) * 40).to(device), {}

            times = teacher.times("polynomial", 4, 0.02, 40.0, 7.0)
            settings = algorithm1.Settings(images=16, batch=8, held_out=4, checkpointing=checkpointing)
            *_, last = algorithm1.train(model, solver, network, times, draw, teacher, settings, afs=True,
                                        evaluate=FromModule(model.middle_block))  # fmt: skip
            last.state()
            print(name, device.type, last.best, flush=True)


def test_algorithm_1():
    """Runs in a separate process, because torch's gradient thread for this device aborts at exit."""
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))}
    process = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=300, env=environment
    )
    assert process.returncode == 0, process.stderr[-2000:]
    lines = [line.split() for line in process.stdout.splitlines()]
    assert len(lines) == 6
    for on_cpu, on_device in zip(lines[::2], lines[1::2]):
        assert float(on_device[2]) == pytest.approx(float(on_cpu[2]), rel=1e-3)


if __name__ == "__main__":
    trained()
    os._exit(0)
