"""`amed_webui`, loaded as the extension's script loads it, in a fake WebUI of either kind."""

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


def load_package() -> None:
    """Import webui/ under the name that the extension gives it."""
    folders = [str(ROOT / "webui"), str(ROOT / "hosts")]
    spec = importlib.util.spec_from_file_location(
        "amed_webui", ROOT / "webui" / "__init__.py", submodule_search_locations=folders
    )
    sys.modules["amed_webui"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["amed_webui"])


if "amed_webui" not in sys.modules:
    load_package()


@pytest.fixture(scope="session")
def denoiser() -> demo.Denoiser:
    torch.set_num_threads(1)
    return demo.load_denoiser()


@pytest.fixture(params=["a1111", "forge"])
def webui(request, tmp_path, denoiser):
    """A fake host with AMED installed: `.script`, `.ui`, `.run`, `.calibrate` and `.host` are this pack's
    modules.

    Its checkpoint is taken for a Stable Diffusion 1.5 for which no predictor was fitted."""
    installed = fake_webui.install(request.param, tmp_path, denoiser)
    load_package()
    door = importlib.import_module("amed_webui.door")
    script = door.install()()
    script.is_img2img = False
    read_identity = sys.modules["amed_webui.host"].read_identity
    unknown = Identity("sd15", "0123456789abcdef")
    sys.modules["amed_webui.host"].read_identity = lambda model: unknown
    names = ("ui", "run", "calibrate", "host", "samplers", "evaluate")
    modules = {name: importlib.import_module(f"amed_webui.{name}") for name in names}
    yield SimpleNamespace(
        **vars(installed), **modules, script=script, webui=installed, fake_webui=fake_webui,
        generate=fake_webui.generate, sampler_base=fake_webui.KDiffusionSampler,
        Processing=fake_webui.Processing, read_identity=read_identity,
    )  # fmt: skip
    fake_webui.remove()
    load_package()


@pytest.fixture
def small_latents(webui, monkeypatch):
    """Samples of 8 x 8, the latent size of 64 pixels (in the fake host pixels are latents)."""
    make = webui.generate.__globals__["torch"].randn

    def latents(count, channels, *size, generator):
        return make(count, channels, *(s // 8 if s == 64 else s for s in size), generator=generator)

    monkeypatch.setattr(webui.fake_webui, "torch", SimpleNamespace(**{**vars(torch), "randn": latents}))
