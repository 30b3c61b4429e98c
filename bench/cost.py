"""Measure cost: the sampling loop without a model, memory, imports, fits, and how they grow.

Runs in this process, on one thread."""

import importlib.util
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import amed
from amed import BottleneckPredictor, Constants, Evaluation, Solver, sample
from amed.constants import Multistep, as_multistep
from amed.fit import Calibration, Settings, Target, budget_of
from amed.fit import algorithm1 as paper
from amed.fit.measures import Counter, rmse, run
from amed.parts import PARTS
from amed.recipes import MULTISTEP
from demo import model as demo
from demo.comfyui import find

from .plan import FOLDERS, rounded
from .problem import Problem
from .search import reference_plan

ROOT = Path(__file__).parent.parent
SHAPES, BATCHES = ((4, 64, 64), (4, 128, 128), (16, 128, 128)), (1, 4, 16)  # latents [C, H, W]; batch sizes
NFE = 9  # evaluations of every run


def free_model(x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
    """A denoiser that returns its input unchanged, to time a sampler without a network."""
    return x


def free_evaluate(model: Callable, x: Tensor, sigma: Tensor, args: dict, wants: frozenset[str]) -> Evaluation:
    """Call `model` for a sampler; add zeros as U-Net bottleneck features if `wants` contains "bottleneck".

    They stand in for the features that AMED's predictor network takes as its input."""
    return Evaluation(model(x, sigma), x.new_zeros(len(x), 8, 8, 8) if "bottleneck" in wants else None)


def k_diffusion_sampling() -> ModuleType:
    """Import the sampling module of PyPI's k-diffusion, without the packages that only training needs."""
    spec = importlib.util.spec_from_file_location("kdiffusion", ROOT / "tests" / "kdiffusion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.sampling()


def samplers(channels: int = 4) -> dict[str, tuple[str, Callable[..., Tensor]]]:
    """Return the samplers to time, {name: (baseline, run)}.

    `baseline` is the name of the sampler to compare the time with, "" for none; run(model, x) samples in
    NFE = 9 evaluations. `channels` is the number of channels of the latent."""
    sampling = k_diffusion_sampling()

    def k_diffusion_run(function: Callable, steps: int) -> Callable[..., Tensor]:
        sigmas = sampling.get_sigmas_karras(steps, 0.002, 80.0)
        return lambda model, x: function(model, x, sigmas, disable=True)

    ipndm, sigmas = Solver("ipndm", 3), amed.schedules.make("polynomial", NFE + 1, 0.002, 80.0)
    table = as_multistep(ipndm, sigmas)
    shares = table.weights * torch.linspace(0.9, 1.1, PARTS["bands"].count, dtype=torch.float64)
    bands = Multistep(sigmas, shares, parts="bands", offset=torch.full((NFE, channels), 0.01))
    base = amed.schedules.make("polynomial", 6, 0.002, 80.0)
    rough = Constants(base, r=torch.full((5,), 0.4))
    network = BottleneckPredictor(0.01, 0.2).requires_grad_(False)

    def amed_run(solver: Solver, predictor: Any, sigmas: Tensor, afs: bool) -> Callable[..., Tensor]:
        return lambda model, x: sample(
            model, x, sigmas, solver, disable=True, predictor=predictor, afs=afs, evaluate=free_evaluate
        )

    multistep, dpmpp_2 = Solver(MULTISTEP), Solver("dpmpp", 2, predict_x0=True)
    dpmpp, heun = "dpmpp_2m", "heun"
    return {
        dpmpp: ("", k_diffusion_run(sampling.sample_dpmpp_2m, NFE)),
        heun: ("", k_diffusion_run(sampling.sample_heun, 5)),
        "AMED multistep, table": (dpmpp, amed_run(multistep, table, sigmas, False)),
        "AMED multistep, bands": (dpmpp, amed_run(multistep, bands, sigmas, False)),
        "AMED-Plugin on iPNDM-3, table": (dpmpp, amed_run(ipndm, rough, base, True)),
        "AMED-Plugin on iPNDM-3, MLP": (dpmpp, amed_run(ipndm, network, base, True)),
        "AMED-Plugin on DPM++-2, table": (dpmpp, amed_run(dpmpp_2, rough, base, True)),
        "AMED-Plugin on DPM++-2, MLP": (dpmpp, amed_run(dpmpp_2, network, base, True)),
        "AMED-Solver, table": (heun, amed_run(Solver("amed"), rough, base, True)),
        "AMED-Solver, MLP": (heun, amed_run(Solver("amed"), network, base, True)),
    }


def file_of(solver: str, nfe: int = NFE) -> Path:
    """Return the path of the predictor that was fitted to this repository's demo model, without guidance, for
    a solver and an NFE."""
    name = f"emoji32-{solver}-nfe{nfe}-cfg1.safetensors"
    return next(folder / name for folder in FOLDERS if (folder / name).is_file())


def seconds(calls: dict[str, Callable[[], Any]], min_seconds: float = 0.6) -> dict[str, float]:
    """Time the functions in `calls`, {name: function}; return the median processor seconds of each.

    They are called in turn, for `min_seconds` each or 5 rounds, whichever takes longer."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    while time.perf_counter() - begin < min_seconds * len(calls) or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            start = time.process_time()  # of this thread, so that other programs do not count
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class Live(TorchDispatchMode):
    """A context that counts the bytes of the tensors created in it: those alive (`now`), and their `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def forget(self, key: int, size: int) -> None:
        """Stop counting the memory of a tensor that was freed, `size` bytes."""
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # an output may be a view of an input, so only new storages are counted
        input_storages = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.seen and key not in input_storages:
                self.seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, key, size)
        return result


def peak_latents(call: Callable[..., Tensor], shape: tuple[int, ...] = (4, 4, 128, 128)) -> float:
    """Return the peak memory of a sampling run beyond its start noise, as a multiple of that noise's size.

    The denoiser only halves x, so that almost all of the memory is the sampler's."""
    x = torch.randn(shape)
    with Live() as live:
        call(lambda x, sigma, **kwargs: x * 0.5, x)
    return live.peak / x.nbytes


def overhead(shapes: tuple = SHAPES, batches: tuple[int, ...] = BATCHES) -> list[dict[str, Any]]:
    """Measure each sampler's milliseconds per run with a model that does nothing.

    Also returns the ratio to the time of the k-diffusion sampler that it is compared with."""
    rows = []
    for shape in shapes:
        compared = samplers(shape[0])
        for batch in batches:
            x = torch.randn(batch, *shape)
            times = seconds({name: partial(call, free_model, x) for name, (_, call) in compared.items()})
            for name, (baseline, _) in compared.items():
                row = {"sampler": name, "latent": "x".join(map(str, shape)), "batch": batch}
                row |= {"ms": rounded(times[name] * 1e3), "rival": baseline}
                rows.append(row | ({"ratio": rounded(times[name] / times[baseline])} if baseline else {}))
    return rows


def memory() -> dict[str, float]:
    """Measure the peak memory of each sampler, as a multiple of the size of the latent."""
    return {name: rounded(peak_latents(call)) for name, (_, call) in samplers().items()}


def share() -> list[dict[str, Any]]:
    """Measure which share of the time to sample the demo model is the sampler's own, not the network's.

    Returns the share for each sampler and batch size."""
    denoiser, rows = demo.load_denoiser(), []
    for batch in BATCHES:
        x = torch.randn(batch, 3, 32, 32)
        sigma = torch.full((batch,), 3.0)
        calls = {name: partial(call, free_model, x) for name, (_, call) in samplers(3).items()}
        with torch.no_grad():
            times = seconds(calls | {"model": lambda: denoiser(x, sigma)})  # noqa: B023
        network_time = times.pop("model") * NFE
        rows += [
            {"sampler": name, "batch": batch, "share": rounded(value / (value + network_time))}
            for name, value in times.items()
        ]
    return rows


IMPORT_ENGINE = "import time, torch; t = time.perf_counter(); import amed; print(time.perf_counter() - t)"
IMPORT_PACK = """
import asyncio, importlib.util, sys, time
sys.path.insert(0, {host!r})
from comfy.cli_args import args
args.cpu = True
import utils.extra_config
import nodes, server, comfy.samplers, comfy.model_base, comfy.sd, folder_paths, node_helpers, latent_preview
import comfy_extras.nodes_custom_sampler, comfy_api.latest
t = time.perf_counter()
spec = importlib.util.spec_from_file_location('amed_pack', {pack!r} + '/__init__.py',
                                              submodule_search_locations=[{pack!r}])
module = importlib.util.module_from_spec(spec)
sys.modules['amed_pack'] = module
spec.loader.exec_module(module)
extension = asyncio.run(module.comfy_entrypoint())
assert asyncio.run(extension.get_node_list())
print(time.perf_counter() - t)
"""


def imports(rounds: int = 5) -> dict[str, float]:
    """Measure the milliseconds of `import amed` after torch, and of importing this node pack after ComfyUI.

    Each is the median over fresh processes."""
    host = find()
    codes = {
        "amed": (IMPORT_ENGINE, ROOT),
        "pack in ComfyUI": (IMPORT_PACK.format(host=str(host), pack=str(ROOT)), host),
    }
    times: dict[str, float] = {}
    for name, (code, folder) in codes.items():
        values = []
        for _ in range(rounds):
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
            )
            values.append(float(done.stdout.split()[-1]))
        times[name] = rounded(statistics.median(values) * 1e3)
    return times


def growth(nfes: tuple[int, ...] = (3, 5, 7, 9)) -> dict[str, list[dict[str, Any]]]:
    """Measure how the times of sampling and calibration grow with evaluations, batch size and resolution.

    Returns the seconds that calibrated AMED solvers take to sample the demo model, and the seconds and model
    evaluations of a quick calibration to an analytic model, which itself costs next to nothing."""
    denoiser, sampling, fitting = demo.load_denoiser(), [], []
    for nfe, batch, side in [(n, 4, 32) for n in nfes] + [(5, 1, 32), (5, 16, 32), (5, 4, 64), (5, 4, 128)]:
        fitted = amed.load(file_of("multistep", nfe))
        x = torch.randn(batch, 3, side, side) * 80
        call = partial(
            amed.sample_amed_multistep, denoiser, x, fitted.sigmas(), predictor=fitted, disable=True
        )
        elapsed = seconds({"": call}, 0.5)[""]
        sampling.append({"nfe": nfe, "batch": batch, "side": side, "seconds": rounded(elapsed)})

    def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
        return x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)) + 0.1 * torch.tanh(
            x / (1 + sigma.view(-1, 1, 1, 1))
        )

    for nfe, shape in [(n, (3, 32, 32)) for n in nfes] + [(5, (4, 64, 64)), (5, (4, 128, 128))]:
        target = Target(
            gaussian, lambda g, n, shape=shape: (torch.randn(n, *shape, generator=g), {}), 0.002, 80.0
        )
        begin = time.perf_counter()
        *_, last = Calibration(target, Settings(nfe, budget=budget_of("quick", nfe))).run()
        elapsed = time.perf_counter() - begin
        latent = "x".join(map(str, shape))
        fitting.append(
            {"nfe": nfe, "latent": latent, "evaluations": last.evaluations, "seconds": rounded(elapsed)}
        )
    return {"sampling": sampling, "calibration of a model of no cost": fitting}


@dataclass(frozen=True)
class Learned:
    """Fitted AMED parameters (constants or a network), how to sample with them, and what the fit cost."""

    predictor: Any
    sigmas: Tensor
    solver: Solver
    afs: bool
    passes: int  # cost of the fit: 1 for each sample through the network, 2 more for its gradient

    def ends(self, problem: Problem) -> Tensor:
        """Sample the noises of `problem` with the fitted AMED parameters; return the images."""
        options = {"predictor": self.predictor, "afs": self.afs, "evaluate": problem.target.evaluate}
        return run(problem.guided, problem.noise, self.sigmas, self.solver, problem.args, **options)[0]


def calibrated(target: Target, nfe: int, budget: int) -> Learned:
    """Calibrate the constants of an AMED solver without guidance, within `budget` model evaluations."""
    counter = Counter(target.model)
    calibration = Calibration(replace(target, model=counter, features=None), Settings(nfe, budget=budget))
    for _ in calibration.run():
        pass
    fitted = calibration.result().fitted
    return Learned(fitted.predictor, fitted.sigmas(), fitted.spec.student, fitted.spec.afs, counter.rows)


def trained(target: Target, nfe: int, images: int) -> Learned:
    """Train AMED-Solver's network by Algorithm 1 of the AMED paper on `images` images, without guidance."""
    student = paper.plan("amed", nfe)
    times = student.teacher.times("time_uniform", student.num_steps, demo.SIGMA_MIN, demo.SIGMA_MAX, 1.0)
    predictor, base = BottleneckPredictor(0.01, 0.0), times[:: student.teacher.extra + 1]

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict]:
        noise, args = target.draw(generator, count)
        return noise * demo.SIGMA_MAX, args

    counter, settings = Counter(target.model), paper.Settings(images, 16, held_out=16, every=5)
    options = {"afs": student.afs, "evaluate": target.evaluate}
    *_, last = paper.train(
        counter, student.solver, predictor, times, draw, student.teacher, settings, **options
    )
    passes = counter.rows + 2 * last.images * (student.num_steps - 1)
    return Learned(predictor.eval(), base, student.solver, student.afs, passes)


def fits(nfe: int = 5, images: int = 128, noises: int = 64) -> list[dict[str, Any]]:
    """Compare a quick calibration with Algorithm 1 of the AMED paper on the demo model without guidance.

    Returns each fit's network passes (one per sample, two more for its gradient), its seconds, and its error
    on noises that neither fit saw."""
    problem, plan, rows = Problem(1.0, noises, 9), reference_plan(60), []
    reference = run(problem.guided, problem.noise, plan.sigmas(), plan.solver, problem.args)[0]
    for name, fit in (
        ("calibration, quick", lambda: calibrated(problem.target, nfe, budget_of("quick", nfe))),
        (f"Algorithm 1, AMED-Solver, {images} images", lambda: trained(problem.target, nfe, images)),
    ):
        begin = time.perf_counter()
        learned = fit()
        elapsed = time.perf_counter() - begin
        line = {"fit": name, "passes": learned.passes, "seconds": rounded(elapsed)}
        rows.append(line | {"rmse_ref": rounded(rmse(learned.ends(problem), reference)), "nfe": nfe})
    return rows


def cost(quick: bool = False) -> dict[str, Any]:
    """Measure time and memory of the sampling loop, import times, and the cost of fitting a solver.

    `quick` leaves out the fits, large latents and large batches."""
    torch.set_num_threads(1)
    print("  overhead, memory, imports", flush=True)
    costs = {
        "nfe": NFE,
        "overhead": overhead(SHAPES[:1] if quick else SHAPES, (1, 4) if quick else BATCHES),
        "memory": memory(),
        "share": share(),
        "imports": imports(3 if quick else 5),
    }
    if not quick:
        print("  fits and growth", flush=True)
        costs |= {"fits": fits(), "growth": growth()}
    return costs
