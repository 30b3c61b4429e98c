"""The kinds of predictor that the matrix runs: a small file of each, and the graph that samples with it."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from comfyui.conftest import Graph
from comfyui.page_messages import PageMessages
from safetensors.torch import load

from amed import BottleneckPredictor, Constants, Fitted, Multistep, Solver, Spec, save, schedules
from amed.constants import as_multistep
from amed.kdiffusion import solver_of
from amed.outside import Outside
from amed.parts import BANDS

CFG, NFE, WRAPPED = 2.0, 4, "dpmpp_2m"
FAMILIES = {"sd15": ("eps", 4), "wan21_t2v": ("flow", 16)}  # prediction, channels


@dataclass(frozen=True)
class Kind:
    """A column of the matrix."""

    name: str  # the column's heading
    file: str  # which predictor of write_files
    sampler: str = ""  # for an ordinary KSampler with the predictor applied to the MODEL; "": SamplerCustom
    steps: int = 0  # steps of that KSampler
    spared: int = 0  # passes spared under guidance

    @property
    def around(self) -> bool:
        return self.file == "around"

    @property
    def own_sampler(self) -> str:
        """The sampler that an ordinary KSampler needs for this kind; `own_steps` is its number of steps."""
        tables = {"bands": "amed_multistep", "halves": "amed_multistep", "network": "amed"}
        return self.sampler or tables.get(self.file, self.file)

    @property
    def own_steps(self) -> int:
        return self.steps or (4 if self.own_sampler == "amed_multistep" else 2)

    def passes(self, rows: int) -> int:
        return NFE * rows - (self.spared if rows > 1 else 0)


KINDS = (
    Kind("AMED-Solver", "amed"),
    Kind("AMED-Plugin", "amed_ipndm"),
    Kind("bands", "bands"),
    Kind("halves", "halves", spared=2),
    Kind("network", "network"),
    Kind("KSampler", "bands", "amed_multistep", 4),
    Kind(f"around {WRAPPED}", "around"),
    Kind(f"around {WRAPPED}, KSampler", "around", WRAPPED, 4),
)


def times_of(family: str, count: int) -> torch.Tensor:
    """Return the noise levels of a family of small_models.py, from its highest to its lowest."""
    if FAMILIES[family][0] == "eps":
        return schedules.make("discrete", count, 0.029167158151720367, 14.614641229333639)
    t = torch.linspace(1, 0.001, count, dtype=torch.float64)
    return 8 * t / (1 + 7 * t)


def tables(times: torch.Tensor, channels: int) -> dict[str, Multistep]:
    """Return two tables: bands with an offset, and halves that spare two evaluations.

    Both are iPNDM-2 with slightly different weights in each part."""
    bent = torch.zeros(4, 4, 1, dtype=torch.float64)
    bent[:, :2] = as_multistep(Solver("ipndm", 2), times).weights[..., :1]
    tilt = 1 + 0.05 * torch.linspace(-1, 1, 2 * BANDS, dtype=torch.float64)
    apart = bent * tilt
    apart[2:, :, BANDS:] = 0
    apart[2, 1, BANDS:] = apart[3, 2, BANDS:] = 1
    offset = torch.linspace(-0.02, 0.02, 4 * channels).view(4, channels)
    return {
        "bands": Multistep(times, bent * tilt[:BANDS], None, "bands", offset),
        "halves": Multistep(times, apart, None, "halves+bands", offset, (2, 3)),
    }


def write_files(folder: Path) -> None:
    """Write a predictor of each kind for each family; its numbers are made up, near the plain solver's."""
    for family, (prediction, channels) in FAMILIES.items():

        def keep(file, predictor, times, family=family, prediction=prediction, **changes):
            usual = {"sigma_min": float(times[-1]), "sigma_max": float(times[0]), "schedule": "custom",
                     "num_steps": len(times), "prediction_type": prediction, "guidance": CFG,
                     "model_family": family, "how": "for a test"}  # fmt: skip
            path = folder / f"small-{family}-{file}.safetensors"
            save(path, Fitted(Spec(**usual | changes), predictor, times))

        three, five = times_of(family, 3), times_of(family, 5)
        for name in ("amed", "amed_ipndm"):
            s = solver_of(name)
            r, c = torch.tensor([0.45, 0.55]), torch.tensor([1.01, 0.99])
            keep(name, Constants(three, r=r, c=c), three, solver=s.name, max_order=s.max_order)
        for name, table in tables(five, channels).items():
            keep(name, table, five, solver="multistep", parts=table.parts, channels=channels)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = BottleneckPredictor(0.2, 0.1)
        network.enc_layer0.weight.data *= 5  # so that a different bottleneck changes the image
        keep("network", network, three, solver="amed", features="bottleneck", scale_dir=0.2, scale_time=0.1)
        four = five[:4]
        c, a = torch.tensor([1.0, 1.02, 0.99, 1.01]), torch.tensor([1.0, 0.98, 1.01, 1.0])
        keep("around", Outside(four, four.clone(), c, a), four, solver="outside", of=WRAPPED, calls=4)


class Small(Graph):
    """A graph on a MODEL of small_models.py, with prompts and an empty LATENT.

    The LATENT has 8 x 12 pixels; for a video model 6 x 8 in 3 frames."""

    def __init__(self, which="sd15", batch=1, width=96, height=64, dtype="fp32", length=9):
        self.nodes = {}
        self.family = {"sd15": "sd15", "wan": "wan21_t2v"}[which]
        self.model = [self.add("SmallModel", which=which, dtype=dtype), 0]
        self.positive, self.negative, self.other = map(self.prompt, (1, 2, 3))
        if which == "wan":
            size = {"width": 64, "height": 48, "length": length, "batch_size": batch}
            self.latent = [self.add("EmptyHunyuanLatentVideo", **size), 0]
        else:
            size = {"width": width, "height": height, "batch_size": batch}
            self.latent = [self.add("EmptyLatentImage", **size), 0]

    def prompt(self, seed):
        return [self.add("TestPrompt", seed=seed, repeats=1, width=64), 0]

    def patch(self, kind, **inputs):
        """Insert one of the host's nodes from MODEL to MODEL."""
        self.model = [self.add(kind, model=self.model, **inputs), 0]
        return self

    def loaded(self, kind: Kind):
        return [self.add("AMEDLoadPredictor", name=f"small-{self.family}-{kind.file}.safetensors"), 0]

    def sampler(self, kind: Kind):
        node = self.add("AMEDSampler", sampler="auto", if_missing="error", predictor=self.loaded(kind))
        return [node, 0]

    def sigmas(self, kind: Kind, denoise=1.0):
        inputs = {"model": self.model, "sampler": "auto", "nfe": NFE, "denoise": denoise}
        return [self.add("AMEDScheduler", predictor=self.loaded(kind), **inputs), 0]

    def levels(self, *levels: float):
        return [self.add("SmallSigmas", levels=",".join(map(str, levels))), 0]

    def sample(self, kind: Kind, cfg=CFG, seed=3, denoise=1.0, sigmas=None, guider=None, **more):
        """Add the sampling nodes; return the sampled LATENT. `guider`: a GUIDER node instead of prompts and
        cfg."""
        if kind.sampler:
            around = self.around()
            applied = self.add("AMEDApplyPredictor", model=self.model, predictor=self.loaded(kind))
            return self.ksampler(kind.sampler, "amed", kind.steps, cfg, seed, denoise,
                                 **around | more | {"model": [applied, 0]})  # fmt: skip
        sampler = self.sampler(kind)
        sigmas = sigmas or self.sigmas(kind, denoise)
        if guider is None:
            return self.custom(sampler[0], sigmas[0], cfg, seed)
        noise = self.add("RandomNoise", noise_seed=seed)
        sampling = self.add("SamplerCustomAdvanced", noise=[noise, 0], guider=guider, sampler=sampler,
                            sigmas=sigmas, latent_image=self.latent)  # fmt: skip
        return [sampling, 0]


@dataclass(frozen=True)
class RunResult:
    """The result of a run: the latents, and the text on the node that sampled."""

    latents: torch.Tensor
    report: str

    @property
    def counted(self) -> tuple[int, int] | None:
        """Return the evaluations and the passes per image that the report states."""
        match = re.search(r"AMED: (\d+) evaluations, (\d+) passes per image", self.report)
        return None if match is None else (int(match[1]), int(match[2]))


def run(server, g: Small, latent) -> RunResult:
    """Run a graph up to a LATENT.

    Raises as Server.run does, and AssertionError for latents that are not finite."""
    shown = g.add("SaveLatent", samples=latent, filename_prefix="matrix")
    messages = PageMessages(latent[0])
    result = server.run(g.nodes, messages)
    latents = load(server.view(result.files("latents", shown)[0]))["latent_tensor"]
    assert latents.isfinite().all(), "the latents are not finite"
    assert latents.float().std() > 0.05, "the latents are blank"
    return RunResult(
        latents, "\n".join(t for t in messages.texts if "AMED" in t or "fitted" in t or "note" in t)
    )
