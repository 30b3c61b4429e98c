"""The measure of the demo model's predictors and solvers: fixed noises, and the images they should give."""

import hashlib
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from amed import Fitted, Solver
from amed.fit.measures import Statistics, cut, frechet, rmse, run
from amed.fit.plain_solvers import Setting
from amed.fit.target import Target

from . import model as demo
from .rows import Row
from .target import Args, target

TITLES = {"amed": "AMED-Solver", "ipndm": "AMED-Plugin on iPNDM", "dpmpp": "AMED-Plugin on DPM++"}
CACHE = Path(__file__).parent / "data"  # folder of the reference images
REFERENCE = Setting(Solver("ipndm", 4), "polynomial", 7.0, 61, False, demo.SIGMA_MIN, demo.SIGMA_MAX)
TEST, TUNE = 256, 64  # numbers of noises to measure on, and to tune with


class Bench:
    """The demo model at one guidance scale, with fixed noises to start from and the images they should give.

    There are test noises, to measure solvers on, and tuning noises, to choose between solvers. The image that
    a noise should give is that of a run with 60 evaluations.

    Args:
        guidance: the guidance scale; 1 is none.
        weights: file of the demo model's weights.
        count: number of test noises.
        seed: random seed of the test noises; the tuning noises have `seed + 1`."""

    def __init__(self, guidance: float, weights: Path, count: int = TEST, seed: int = 7):
        self.guidance = guidance
        self.exact, self.fast = (
            target(guidance, weights, dtype) for dtype in (torch.float32, torch.bfloat16)
        )
        self.features, self.held_out = self.exact.features, None
        self.noise, self.args = self.drawn(count, seed)
        self.tune_noise, self.tune_args = self.drawn(TUNE, seed + 1)
        self.reference = self.converged("test", self.noise, self.args)
        self.tune_reference = self.converged("tune", self.tune_noise, self.tune_args)
        self.reference_statistics = Statistics.of(self.features(self.reference))

    def drawn(self, count: int, seed: int) -> tuple[Tensor, Args]:
        """Return `count` noises of unit variance and emoji categories (the demo model's arguments)."""
        return self.exact.draw(torch.Generator().manual_seed(seed), count)

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Args]:
        """Return training noise, scaled to sigma_max, and emoji categories (the demo model's arguments)."""
        noise, args = self.exact.draw(generator, batch)
        return noise * demo.SIGMA_MAX, args

    def run(
        self,
        demo_target: Target,
        solver: Solver,
        sigmas: Tensor,
        afs: bool,
        predictor=None,
        count: int | None = None,
    ) -> tuple[Tensor, int]:
        """Sample with a solver from fixed noises; return the images and the number of evaluations.

        The noises are those for testing or, with `count`, the first `count` of those for choosing solvers."""
        noise, args = self.noise, self.args
        if count is not None:
            noise, args = self.tune_noise[:count], cut(self.tune_args, slice(0, count))
        options = {"predictor": predictor, "afs": afs, "evaluate": demo_target.evaluate}
        return run(demo_target.model, noise, sigmas, solver, args, **options)

    def tried(
        self, solver: Solver, sigmas: Tensor, count: int, afs: bool, predictor=None
    ) -> tuple[Tensor, Tensor]:
        """Sample with a solver to rank it: from `count` fixed noises, in bfloat16.

        Returns the images, and those of a 60-evaluation run from the same noises."""
        images, _ = self.run(self.fast, solver, sigmas, afs, predictor, count)
        return images, self.tune_reference[:count]

    def converged(self, name: str, noise: Tensor, args: dict) -> Tensor:
        """Return the images of a 60-evaluation run from each noise; demo/data keeps them for later calls."""
        which = hashlib.sha256(noise.numpy().tobytes()).hexdigest()[:8]
        file = CACHE / f"{name}-{self.exact.fingerprint}-cfg{self.guidance:g}-{which}.safetensors"
        if not file.is_file():
            images = run(self.exact.model, noise, REFERENCE.sigmas(), REFERENCE.solver, args)[0]
            CACHE.mkdir(exist_ok=True)
            save_file({"images": images}, file)
        return load_file(file)["images"]

    def distance(self, images: Tensor, reference: Tensor) -> float:
        """Return RMSE times the root of the Fréchet distance of two sets of images, to rank solvers."""
        statistics = (Statistics.of(self.features(v)) for v in (images, reference))
        return rmse(images, reference) * max(frechet(*statistics), 0.0) ** 0.5

    def held_out_error(self, end: Tensor, x: Tensor, args: dict) -> float:
        """Return `distance` between images `end` and those of a 60-evaluation run from the same noise x.

        x is held out from training, which in the end takes the weights with the lowest value."""
        if self.held_out is None or not torch.equal(self.held_out[0], x):
            self.held_out = x, self.converged("held-out", x / demo.SIGMA_MAX, args)
        return self.distance(end, self.held_out[1])

    def row(self, solver: str, schedule: str, result: tuple[Tensor, int], seconds: float) -> Row:
        """Return the measured figures of a solver: its RMSE and Fréchet distances.

        `result` is (images sampled from the test noises, number of evaluations); `seconds`, their time."""
        images, nfe = result
        statistics = Statistics.of(self.features(images))
        return Row(
            solver,
            schedule,
            nfe,
            self.guidance,
            rmse(images, self.reference),
            frechet(statistics, self.reference_statistics),
            frechet(statistics, self.features.data),
            seconds,
        )

    def measure(self, setting: Setting) -> Row:
        """Measure a solver without a predictor on fixed test noises: error, Fréchet distances and time."""
        begin = time.perf_counter()
        result = self.run(self.exact, setting.solver, setting.sigmas(), setting.afs)
        return self.row(setting.name, setting.schedule, result, time.perf_counter() - begin)

    def measure_fitted(self, fitted: Fitted) -> Row:
        """Measure a fitted predictor on fixed test noises: error, Fréchet distances and time."""
        begin = time.perf_counter()
        spec = fitted.spec
        result = self.run(self.exact, spec.student, fitted.sigmas(), spec.afs, fitted.predictor)
        schedule = f"{spec.schedule} {spec.rho:g}{' + AFS' if spec.afs else ''}"
        order = f"-{spec.max_order}" if spec.max_order > 1 else ""
        return self.row(
            TITLES.get(spec.solver, spec.solver) + order, schedule, result, time.perf_counter() - begin
        )
