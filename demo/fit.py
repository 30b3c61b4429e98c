"""Fit the bundled predictors of the demo model by Algorithm 1, and keep those that beat their own plain solver.

    python -m demo.fit                      # everything: 3 solvers x NFE 3 5 7 9 x guidance 1 and 2
    python -m demo.fit --solver amed --nfe 5 --guidance 1

For each NFE and guidance, every plain solver is measured on 256 noises at each of its settings (amed.plain). A
plugin starts as its plain solver at that solver's best schedule with AFS, AMED-Solver from geometric midpoints.
What is kept is the state with the least error to the converged reference on noises of its own (not those of the
training, not those of the final test). All rows go to predictors/measured.json; a file is written only if its
error and Fréchet distance are below those of its own plain solver at that solver's best setting.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from amed import plain, schedules, store
from amed.bottleneck import ModuleCapture
from amed.evaluation import Statistics, cut, frechet, rmse, run
from amed.guidance import Guided
from amed.plain import Setting
from amed.predictor import BottleneckPredictor
from amed.sampling import Solver
from amed.training import Settings, Teacher, start_from, train

from . import model as demo
from .features import Features

FOLDER = Path(__file__).parent.parent / "predictors"
NAME = "emoji32"
STUDENTS = {
    "amed": (Solver("amed"),),
    "ipndm": (Solver("ipndm", 3), Solver("ipndm", 4), Solver("ipndm", 2)),
    "dpmpp": (Solver("dpmpp", 2, predict_x0=True),),
}
SCALE_TIME = {"amed": 0.0, "ipndm": 0.2, "dpmpp": 0.2}
REFERENCE = Setting(Solver("ipndm", 4), "polynomial", 7.0, 61, False, demo.SIGMA_MIN, demo.SIGMA_MAX)
TEST, HELD_OUT = 256, 64


@dataclass(frozen=True)
class Row:
    """One measured line, as demo.json has them."""

    solver: str
    schedule: str
    nfe: int
    guidance: float
    rmse_ref: float
    fd_ref: float
    fd_data: float
    seconds: float


class Bench:
    """The demo model at one guidance scale, noises, their converged reference, and its features."""

    def __init__(self, guidance: float, weights: Path, count: int = TEST, seed: int = 7):
        self.guidance = guidance
        self.exact, self.fast = (Guided(demo.load_denoiser(weights, dtype), guidance)
                                 for dtype in (torch.float32, torch.bfloat16))
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(count, 3, 32, 32, generator=generator)
        self.args = self.labels(torch.randint(demo.CLASSES, (count,), generator=generator))
        self.features = Features()
        self.reference = self.run(REFERENCE)[0]
        self.reference_statistics = Statistics.of(self.features(self.reference))

    def labels(self, label: Tensor) -> dict[str, dict[str, Tensor]]:
        """Unconditional at guidance 1, else a category guided away from none."""
        none = torch.full_like(label, demo.UNCONDITIONAL)
        return {"cond": {"label": none if self.guidance == 1 else label}, "uncond": {"label": none}}

    def draw(self, batch: int):
        """Noise at sigma_max and its labels, for training."""
        def draw(generator: torch.Generator) -> tuple[Tensor, dict]:
            noise = torch.randn(batch, 3, 32, 32, generator=generator)
            label = torch.randint(demo.CLASSES, (batch,), generator=generator)
            return noise * demo.SIGMA_MAX, self.labels(label)
        return draw

    def capture(self, guided: Guided) -> ModuleCapture:
        return ModuleCapture(guided.model.inner_model.middle_block)

    def run(self, setting: Setting) -> tuple[Tensor, int]:
        return run(self.exact, self.noise, setting.sigmas(), setting.solver, self.args, afs=setting.afs)

    def row(self, solver: str, schedule: str, result: tuple[Tensor, int], seconds: float) -> Row:
        images, nfe = result
        told = Statistics.of(self.features(images))
        return Row(solver, schedule, nfe, self.guidance, rmse(images, self.reference),
                   frechet(told, self.reference_statistics), frechet(told, self.features.data), seconds)

    def measure(self, setting: Setting) -> Row:
        begin = time.perf_counter()
        return self.row(setting.name, setting.schedule, self.run(setting), time.perf_counter() - begin)

    def measure_fitted(self, fitted: store.Fitted) -> Row:
        begin = time.perf_counter()
        spec = fitted.spec
        result = run(self.exact, self.noise, fitted.sigmas(), spec.settings, self.args, predictor=fitted,
                     afs=spec.afs, capture=self.capture(self.exact))
        schedule = f"{spec.schedule} {spec.rho:g}{' + AFS' if spec.afs else ''}"
        title = "AMED-Solver" if spec.solver == "amed" else \
            f"AMED-Plugin on {'iPNDM' if spec.solver == 'ipndm' else 'DPM++'}-{spec.max_order}"
        return self.row(title, schedule, result, time.perf_counter() - begin)


def search(bench: Bench, nfe: int, keep: int = 16) -> list[Setting]:
    """All plain settings, best first: 16 noises for all of them, 64 for the best `keep`, by error to the reference
    (in bfloat16: this only ranks)."""
    def rank(settings: list[Setting], part: slice) -> list[Setting]:
        def error(setting: Setting) -> float:
            images, _ = run(bench.fast, bench.noise[part], setting.sigmas(), setting.solver, cut(bench.args, part),
                            afs=setting.afs)
            return rmse(images, bench.reference[part])
        return sorted(settings, key=error)

    first = rank(plain.candidates(nfe, demo.SIGMA_MIN, demo.SIGMA_MAX), slice(0, 16))
    return rank(first[:keep], slice(0, 64)) + first[keep:]


def fit(bench: Bench, solver: Solver, start: Setting, settings: Settings, batch: int) -> store.Fitted:
    """Algorithm 1 from a start: a plugin from its plain solver's times, AMED-Solver from midpoints."""
    predictor = BottleneckPredictor(0.01, SCALE_TIME[solver.name])
    if solver.name == "amed":
        base, teacher = start.sigmas(), Teacher(Solver("heun"), 1)
        start_from(predictor, base, torch.full((len(base) - 1,), 0.5))
    else:
        base, r = plain.mid_times(start)
        start_from(predictor, base, r)
        teacher = Teacher(solver, 2)
    times = teacher.times(start.kind, len(base), demo.SIGMA_MIN, demo.SIGMA_MAX, start.rho)

    def reference(x: Tensor, args: dict) -> Tensor:
        return run(bench.exact, x / demo.SIGMA_MAX, REFERENCE.sigmas(), REFERENCE.solver, args)[0]

    for step in train(bench.fast, solver, predictor, times, bench.draw(batch), teacher, settings, afs=True,
                      capture=bench.capture(bench.fast), reference=reference):
        if step.images % (settings.every * batch) == 0:
            print(f"    {step.images:5d} images, loss {step.loss:8.3f}, held out {step.held_out:.4f}, "
                  f"best {step.best:.4f}", flush=True)
    spec = store.Spec(
        solver=solver.name, max_order=solver.max_order, predict_x0=solver.predict_x0, num_steps=len(base),
        schedule=start.kind, rho=start.rho, sigma_min=demo.SIGMA_MIN, sigma_max=demo.SIGMA_MAX, afs=True,
        prediction_type="edm", guidance=bench.guidance, model_family=NAME, model_name="AMED demo model",
        features="bottleneck", scale_dir=predictor.scale_dir, scale_time=predictor.scale_time,
        how=f"Algorithm 1, {settings.images} images in batches of {batch}, {teacher.solver.name} teacher, "
            f"M={teacher.extra}, seed {settings.seed}; the state of least held-out error to the reference kept")
    return store.Fitted(spec, predictor.eval(), base)
