"""`amed_webui` as scripts/amed_webui.py loads it, in a fake WebUI of either kind."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_webui
import pytest
import torch

from amed.choose import Identity
from demo import model as demo

ROOT = Path(__file__).parents[2]


def load_package(name: str, folder: str) -> None:
    """Load a folder of the repository as the package `name`, as scripts/amed_webui.py does."""
    path = ROOT / folder
    spec = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


load_package("amed_pictures", "pictures")
if "amed_webui" not in sys.modules:
    load_package("amed_webui", "webui")


@pytest.fixture(scope="session")
def denoiser() -> demo.Denoiser:
    torch.set_num_threads(1)
    return demo.load_denoiser()


@pytest.fixture(params=["a1111", "forge"])
def webui(request, tmp_path, denoiser):
    """A fake WebUI with AMED installed.

    Its checkpoint counts as a Stable Diffusion 1.5 for which no predictor was fitted.

    `.script` is AMED's script; `.ui`, `.run` and so on are the modules of webui/."""
    made = fake_webui.install(request.param, tmp_path, denoiser)
    load_package("amed_webui", "webui")
    extension = importlib.import_module("amed_webui.extension")
    script = extension.install()()
    script.is_img2img = False
    read_identity = sys.modules["amed_webui.host"].read_identity
    unknown = Identity("sd15", "0123456789abcdef")
    sys.modules["amed_webui.host"].read_identity = lambda model: unknown
    names = ("ui", "tab", "run", "calibrate", "host", "samplers", "evaluate")
    modules = {name: importlib.import_module(f"amed_webui.{name}") for name in names}
    yield SimpleNamespace(**vars(made), **modules, script=script, webui=made, generate=fake_webui.generate,
                          fake_webui=fake_webui, sampler_base=fake_webui.KDiffusionSampler,
                          Processing=fake_webui.Processing, read_identity=read_identity)  # fmt: skip
    fake_webui.remove()
    load_package("amed_webui", "webui")


@pytest.fixture
def emoji(webui):
    """`webui`, whose checkpoint is recognised as the demo model, which has bundled predictors."""
    webui.host.read_identity = webui.read_identity
    webui.host.FAMILIES["is_sd1"] = "emoji32"
    return webui


@pytest.fixture
def small_latents(webui, monkeypatch):
    """Gives images of 64 pixels samples of 8 x 8, like latents; otherwise both have the same size here."""
    make = webui.generate.__globals__["torch"].randn

    def latents(count, channels, *size, generator):
        return make(count, channels, *(s // 8 if s == 64 else s for s in size), generator=generator)

    monkeypatch.setattr(webui.fake_webui, "torch", SimpleNamespace(**{**vars(torch), "randn": latents}))
