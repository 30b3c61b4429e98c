"""Cost: the sampling loop over the bare model, memory, imports, fits, and how they grow. One thread, this
process."""

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
SHAPES, BATCHES = ((4, 64, 64), (4, 128, 128), (16, 128, 128)), (1, 4, 16)
NFE = 9


def free(x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
    """A model of no cost."""
    return x


def free_evaluate(model: Callable, x: Tensor, sigma: Tensor, args: dict, wants: frozenset[str]) -> Evaluation:
    """Its bottleneck costs nothing either."""
    return Evaluation(model(x, sigma), x.new_zeros(len(x), 8, 8, 8) if "bottleneck" in wants else None)


def k_diffusion_sampling() -> ModuleType:
    """PyPI's k-diffusion, without what it imports for training."""
    spec = importlib.util.spec_from_file_location("kdiffusion", ROOT / "tests" / "kdiffusion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.sampling()


def samplers(channels: int = 4) -> dict[str, tuple[str, Callable[..., Tensor]]]:
    """Name -> (whom it is compared with, run(model, x)); all of them take NFE evaluations. channels: of the
    latent."""
    sampling = k_diffusion_sampling()

    def theirs(function: Callable, steps: int) -> Callable[..., Tensor]:
        sigmas = sampling.get_sigmas_karras(steps, 0.002, 80.0)
        return lambda model, x: function(model, x, sigmas, disable=True)

    ipndm, times = Solver("ipndm", 3), amed.schedules.make("polynomial", NFE + 1, 0.002, 80.0)
    whole = as_multistep(ipndm, times)
    shares = whole.weights * torch.linspace(0.9, 1.1, PARTS["bands"].count, dtype=torch.float64)
    bands = Multistep(times, shares, parts="bands", offset=torch.full((NFE, channels), 0.01))
    base = amed.schedules.make("polynomial", 6, 0.002, 80.0)
    rough = Constants(base, r=torch.full((5,), 0.4))
    network = BottleneckPredictor(0.01, 0.2).requires_grad_(False)

    def ours(solver: Solver, predictor: Any, sigmas: Tensor, afs: bool) -> Callable[..., Tensor]:
        return lambda model, x: sample(
            model, x, sigmas, solver, disable=True, predictor=predictor, afs=afs, evaluate=free_evaluate
        )

    multistep, dpmpp_2 = Solver(MULTISTEP), Solver("dpmpp", 2, predict_x0=True)
    dpmpp, heun = "dpmpp_2m", "heun"
    return {
        dpmpp: ("", theirs(sampling.sample_dpmpp_2m, NFE)),
        heun: ("", theirs(sampling.sample_heun, 5)),
        "AMED multistep, table": (dpmpp, ours(multistep, whole, times, False)),
        "AMED multistep, bands": (dpmpp, ours(multistep, bands, times, False)),
        "AMED-Plugin on iPNDM-3, table": (dpmpp, ours(ipndm, rough, base, True)),
        "AMED-Plugin on iPNDM-3, MLP": (dpmpp, ours(ipndm, network, base, True)),
        "AMED-Plugin on DPM++-2, table": (dpmpp, ours(dpmpp_2, rough, base, True)),
        "AMED-Plugin on DPM++-2, MLP": (dpmpp, ours(dpmpp_2, network, base, True)),
        "AMED-Solver, table": (heun, ours(Solver("amed"), rough, base, True)),
        "AMED-Solver, MLP": (heun, ours(Solver("amed"), network, base, True)),
    }


def file_of(solver: str, nfe: int = NFE) -> Path:
    """The demo model's predictor of these evaluations, without guidance."""
    name = f"emoji32-{solver}-nfe{nfe}-cfg1.safetensors"
    return next(folder / name for folder in FOLDERS if (folder / name).is_file())


def seconds(calls: dict[str, Callable[[], Any]], least: float = 0.6) -> dict[str, float]:
    """Median processor seconds of each call, all of them in turn, for `least` seconds each or 5 rounds,
    whichever is more."""
    for call in calls.values():
        call()
    took: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    while time.perf_counter() - begin < least * len(calls) or len(next(iter(took.values()))) < 5:
        for name, call in calls.items():
            start = time.process_time()  # one thread: what others do on the machine does not count
            call()
            took[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in took.items()}


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive: `peak` over those there were at the start."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # an output may be a view of an input that was there before: only what is new counts
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.seen and key not in old:
                self.seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, key, size)
        return result


def peak_latents(call: Callable[..., Tensor], shape: tuple[int, ...] = (4, 4, 128, 128)) -> float:
    """The most memory of a run beyond its start noise, in latents, with a model that returns a new tensor."""
    x = torch.randn(shape)
    with Live() as live:
        call(lambda x, sigma, **kwargs: x * 0.5, x)
    return live.peak / x.nbytes


def overhead(shapes: tuple = SHAPES, batches: tuple[int, ...] = BATCHES) -> list[dict[str, Any]]:
    """Milliseconds a run of NFE evaluations of a model of no cost, and the ratio to k-diffusion's own."""
    rows = []
    for shape in shapes:
        compared = samplers(shape[0])
        for batch in batches:
            x = torch.randn(batch, *shape)
            took = seconds({name: partial(call, free, x) for name, (_, call) in compared.items()})
            for name, (rival, _) in compared.items():
                row = {"sampler": name, "latent": "x".join(map(str, shape)), "batch": batch}
                row |= {"ms": rounded(took[name] * 1e3), "rival": rival}
                rows.append(row | ({"ratio": rounded(took[name] / took[rival])} if rival else {}))
    return rows


def memory() -> dict[str, float]:
    """Peak memory of each sampler in latents."""
    return {name: rounded(peak_latents(call)) for name, (_, call) in samplers().items()}


def share() -> list[dict[str, Any]]:
    """What part of sampling the demo model is not the model, by batch."""
    denoiser, rows = demo.load_denoiser(), []
    for batch in BATCHES:
        x = torch.randn(batch, 3, 32, 32)
        sigma = torch.full((batch,), 3.0)
        calls = {name: partial(call, free, x) for name, (_, call) in samplers(3).items()}
        with torch.no_grad():
            took = seconds(calls | {"model": lambda: denoiser(x, sigma)})  # noqa: B023
        whole = took.pop("model") * NFE
        rows += [
            {"sampler": name, "batch": batch, "share": rounded(value / (value + whole))}
            for name, value in took.items()
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
    """Milliseconds of `import amed` after torch, and of the pack after ComfyUI: the median of fresh
    processes."""
    host = find()
    codes = {
        "amed": (IMPORT_ENGINE, ROOT),
        "pack in ComfyUI": (IMPORT_PACK.format(host=str(host), pack=str(ROOT)), host),
    }
    took: dict[str, float] = {}
    for name, (code, folder) in codes.items():
        values = []
        for _ in range(rounds):
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
            )
            values.append(float(done.stdout.split()[-1]))
        took[name] = rounded(statistics.median(values) * 1e3)
    return took


def growth(nfes: tuple[int, ...] = (3, 5, 7, 9)) -> dict[str, list[dict[str, Any]]]:
    """Seconds of sampling the demo model with a calibrated table by evaluations, batch and resolution, and of
    calibrating (quick) a model of no cost, with the evaluations it asks for."""
    denoiser, sampling, fitting = demo.load_denoiser(), [], []
    for nfe, batch, side in [(n, 4, 32) for n in nfes] + [(5, 1, 32), (5, 16, 32), (5, 4, 64), (5, 4, 128)]:
        fitted = amed.load(file_of("multistep", nfe))
        x = torch.randn(batch, 3, side, side) * 80
        call = partial(
            amed.sample_amed_multistep, denoiser, x, fitted.sigmas(), predictor=fitted, disable=True
        )
        took = seconds({"": call}, 0.5)[""]
        sampling.append({"nfe": nfe, "batch": batch, "side": side, "seconds": rounded(took)})

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
        took = time.perf_counter() - begin
        latent = "x".join(map(str, shape))
        fitting.append(
            {"nfe": nfe, "latent": latent, "evaluations": last.evaluations, "seconds": rounded(took)}
        )
    return {"sampling": sampling, "calibration of a model of no cost": fitting}


@dataclass(frozen=True)
class Learned:
    """What a fit gave, and the passes it cost: one is a sample through the network, a gradient two more."""

    predictor: Any
    sigmas: Tensor
    solver: Solver
    afs: bool
    passes: int

    def ends(self, problem: Problem) -> Tensor:
        """On the noises of a problem."""
        how = {"predictor": self.predictor, "afs": self.afs, "evaluate": problem.target.evaluate}
        return run(problem.guided, problem.noise, self.sigmas, self.solver, problem.args, **how)[0]


def calibrated(target: Target, nfe: int, budget: int) -> Learned:
    """A calibration without guidance."""
    counter = Counter(target.model)
    calibration = Calibration(replace(target, model=counter, features=None), Settings(nfe, budget=budget))
    for _ in calibration.run():
        pass
    fitted = calibration.result().fitted
    return Learned(fitted.predictor, fitted.sigmas(), fitted.spec.student, fitted.spec.afs, counter.rows)


def trained(target: Target, nfe: int, images: int) -> Learned:
    """AMED-Solver's network by Algorithm 1 without guidance."""
    student = paper.plan("amed", nfe)
    times = student.teacher.times("time_uniform", student.num_steps, demo.SIGMA_MIN, demo.SIGMA_MAX, 1.0)
    predictor, base = BottleneckPredictor(0.01, 0.0), times[:: student.teacher.extra + 1]

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict]:
        noise, args = target.draw(generator, count)
        return noise * demo.SIGMA_MAX, args

    counter, settings = Counter(target.model), paper.Settings(images, 16, held_out=16, every=5)
    how = {"afs": student.afs, "evaluate": target.evaluate}
    *_, last = paper.train(counter, student.solver, predictor, times, draw, student.teacher, settings, **how)
    passes = counter.rows + 2 * last.images * (student.num_steps - 1)
    return Learned(predictor.eval(), base, student.solver, student.afs, passes)


def fits(nfe: int = 5, images: int = 128, noises: int = 64) -> list[dict[str, Any]]:
    """Calibration (quick) and Algorithm 1 on the same model without guidance: passes, seconds, error."""
    whole, plan, rows = Problem(1.0, noises, 9), reference_plan(60), []
    reference = run(whole.guided, whole.noise, plan.sigmas(), plan.solver, whole.args)[0]
    for name, fit in (
        ("calibration, quick", lambda: calibrated(whole.target, nfe, budget_of("quick", nfe))),
        (f"Algorithm 1, AMED-Solver, {images} images", lambda: trained(whole.target, nfe, images)),
    ):
        begin = time.perf_counter()
        learned = fit()
        took = time.perf_counter() - begin
        line = {"fit": name, "passes": learned.passes, "seconds": rounded(took)}
        rows.append(line | {"rmse_ref": rounded(rmse(learned.ends(whole), reference)), "nfe": nfe})
    return rows


def cost(quick: bool = False) -> dict[str, Any]:
    """Everything, as one dict; `quick` leaves out large latents and the fits."""
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
