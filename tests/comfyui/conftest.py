"""One real ComfyUI for all tests of this folder, with its own folder of models, and helpers that build
graphs."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amed import SAMPLERS, BottleneckPredictor, Constants, Fitted, Solver, Spec, save, schedules
from amed.constants import as_multistep
from amed.fingerprint import fingerprint
from amed.kdiffusion import solver_of
from demo import comfyui
from demo.model import SIGMA_MAX, SIGMA_MIN, load_unet

SMALL_NFE = 4  # evaluations of the user's predictors below; no bundled predictor takes as many
MLP = "test_mlp.safetensors"  # takes 6, wants the bottleneck


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running comfyui.Server; without a ComfyUI the tests are skipped, with the reason."""
    if comfyui.find() is None:
        pytest.skip("no ComfyUI: run `make test`, or set COMFYUI_PATH")
    base = tmp_path_factory.mktemp("comfyui")
    write_user_predictors(base / "models" / "amed_predictors")
    write_tiny_models(base)
    with comfyui.Server(base) as running:
        yield running


def write_tiny_models(base: Path) -> None:
    """Write small networks of the host's own U-Net class, and copy the nodes for tests."""
    folder = base / "models" / "checkpoints"
    folder.mkdir(parents=True)
    script = Path(__file__).with_name("tiny_sd.py")
    subprocess.run([sys.executable, str(script), str(comfyui.find()), str(folder)], check=True)
    copy_test_nodes(base)


def copy_test_nodes(base: Path) -> None:
    """Copy test_nodes/, the nodes that the tests use, into the custom_nodes of a ComfyUI."""
    source, ignored = Path(__file__).with_name("test_nodes"), shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, base / "custom_nodes" / "amed_tests", ignore=ignored)


def demo_spec(**changes):
    """Return the Spec of a file for the demo model, for any of its checkpoints unless a fingerprint is
    given."""
    usual = {
        "schedule": "time_uniform", "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "prediction_type": "edm",
        "model_family": "emoji32", "how": "for a test",
    }  # fmt: skip
    return Spec(**usual | changes)


@pytest.fixture(name="demo_spec")
def _demo_spec():
    return demo_spec


def write_user_predictors(folder: Path) -> None:
    """Write the user's predictors: a small table per solver, a network, and a broken file.

    A table has 3 base times and no AFS, and its values differ slightly from the untrained ones."""
    times = schedules.make("time_uniform", 3, SIGMA_MIN, SIGMA_MAX)
    for name in SAMPLERS:
        s = solver_of(name)
        if s.name == "multistep":
            continue
        spec = demo_spec(solver=s.name, num_steps=3, max_order=s.max_order, predict_x0=s.predict_x0)
        r, c = torch.tensor([0.45, 0.55]), torch.tensor([1.01, 0.99])
        save(folder / f"test_{name}.safetensors", Fitted(spec, Constants(times, r=r, c=c), times))
    five = schedules.make("time_uniform", 5, SIGMA_MIN, SIGMA_MAX)
    table = as_multistep(Solver("ipndm", 3), five)
    spec = demo_spec(solver="multistep", num_steps=5)
    save(folder / "test_amed_multistep.safetensors", Fitted(spec, table, five))
    spec = demo_spec(
        solver="amed",
        num_steps=4,
        guidance=2.0,
        features="bottleneck",
        scale_dir=0.2,
        scale_time=0.1,
        how="for a test: random weights",
        model_fingerprint=fingerprint(load_unet().named_parameters()),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BottleneckPredictor(spec.scale_dir, spec.scale_time)
        network.enc_layer0.weight.data *= 5  # so that a different bottleneck changes the image
    base = schedules.make("time_uniform", 4, SIGMA_MIN, SIGMA_MAX)
    save(folder / MLP, Fitted(spec, network, base))
    other = replace(spec, model_fingerprint="0" * 16, solver="dpm_2")
    save(folder / "test_other_checkpoint.safetensors", Fitted(other, network, base))
    low, high = 0.029167158151720367, 14.614641229333639
    sd15 = replace(
        spec,
        schedule="discrete",
        sigma_min=low,
        sigma_max=high,
        prediction_type="eps",
        model_family="sd15",
        model_fingerprint="",
    )
    base = schedules.make("discrete", 4, low, high)
    save(folder / "test_sd.safetensors", Fitted(sd15, network, base))
    (folder / "test_broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not a header")
    (folder / "notes.txt").write_text("no predictor")


class Graph:
    """An API-format graph on the demo model; `model` and its outputs come first.

    `add` returns the new node's id; `[id, n]` is its output n."""

    def __init__(self, batch=1, category="Smileys & Emotion", width=32, height=32):
        self.nodes = {}
        self.demo = self.add("AMEDDemoModel", category=category, width=width, height=height, batch_size=batch)
        self.model, self.positive, self.negative, self.latent = ([self.demo, i] for i in range(4))

    def add(self, kind, **inputs):
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return name

    def show(self, latent, enlarge=1):
        image = self.add("AMEDDemoDecode", samples=latent, enlarge=enlarge)
        return self.add("PreviewImage", images=[image, 0])

    def ksampler(self, sampler_name, scheduler="karras", steps=4, cfg=1.0, seed=3, denoise=1.0, **other):
        node = self.add(
            "KSampler",
            sampler_name=sampler_name,
            scheduler=scheduler,
            steps=steps,
            cfg=cfg,
            seed=seed,
            denoise=denoise,
            **self.around() | other,
        )
        return [node, 0]

    def right_half_masked(self, samples):
        """Return a LATENT of 32x32 of which only the columns from 16 on are sampled."""
        mask = self.add("SolidMask", value=1.0, width=16, height=32)
        nothing = self.add("SolidMask", value=0.0, width=32, height=32)
        half = self.add(
            "MaskComposite", destination=[nothing, 0], source=[mask, 0], x=16, y=0, operation="add"
        )
        return [self.add("SetLatentNoiseMask", samples=samples, mask=[half, 0]), 0]

    def amed(
        self,
        nfe=SMALL_NFE,
        sampler="amed",
        guidance=1.0,
        seed=3,
        denoise=1.0,
        predictor="auto",
        if_missing="error",
        **other,
    ):
        node = self.add(
            "AMEDKSampler",
            nfe=nfe,
            sampler=sampler,
            guidance=guidance,
            seed=seed,
            denoise=denoise,
            predictor=predictor,
            if_missing=if_missing,
            **self.around() | other,
        )
        return [node, 0]

    def custom(self, sampler, sigmas, cfg=1.0, seed=3):
        node = self.add(
            "SamplerCustom",
            add_noise=True,
            noise_seed=seed,
            cfg=cfg,
            sampler=[sampler, 0],
            sigmas=[sigmas, 0],
            **self.around(),
        )
        return [node, 0]

    def around(self):
        return {
            "model": self.model,
            "positive": self.positive,
            "negative": self.negative,
            "latent_image": self.latent,
        }


@pytest.fixture(autouse=True)
def remove_new_predictors(server):
    """Remove the predictors that a test fits, so that the next test does not find them."""
    folder = server.base / "models" / "amed_predictors"
    before = set(folder.iterdir())
    yield
    for file in set(folder.iterdir()) - before:
        file.unlink()


@pytest.fixture(scope="session")
def graph():
    """The class Graph, to be called with batch, category, width, height."""
    return Graph


@pytest.fixture
def images(server):
    """`images(graph, latent, ...)` runs a graph and returns each latent's images as a uint8 array `[B, H, W,
    3]`."""
    import numpy as np

    def run(graph, *latents):
        shown = [graph.show(latent) for latent in latents]
        result = server.run(graph.nodes)
        shots = [np.stack(result.images(node)) for node in shown]
        return shots[0] if len(shots) == 1 else shots

    return run
