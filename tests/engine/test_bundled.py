"""The predictors of the pack and of the benchmark have the current format and give the same images as when
they were made (the paper's students: before the engine was rebuilt)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import amed
from amed.evaluate import FromModule, Guided
from amed.files.fitted import tensors_of
from demo.model import UNCONDITIONAL, load_denoiser

ROOT = Path(__file__).parents[2]
BUNDLED = sorted((ROOT / "predictors").glob("*.safetensors"))
BENCH = sorted((ROOT / "bench" / "predictors").glob("*.safetensors"))
BEFORE = load_file(ROOT / "tests" / "golden_data" / "bundled.safetensors")
TABLES = [f"emoji32-multistep-nfe5-cfg{guidance}" for guidance in (1, 2, 4)]
BELOW = torch.tensor([9.0, 3.1, 1.2, 0.4, 0.1, 0.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def denoiser():
    """The demo model with its time embedding in float64.

    One float32 ulp there, where processors round differently, changes images by 1e-6."""
    model = load_denoiser(dtype=torch.float64)
    model.inner_model.freqs = torch.linspace(0, 6, 32, dtype=torch.float64).exp()
    return model


def test_no_file_and_no_image_is_missing():
    expected = {file.stem for file in BUNDLED if "multistep" not in file.stem or file.stem in TABLES}
    assert set(BEFORE) == expected | {f"{stem}.below" for stem in expected} and len(expected) == 22
    assert len(BUNDLED) == 53 and len(BENCH) >= 60


@pytest.mark.parametrize("file", [f for f in BUNDLED if f.stem in BEFORE], ids=lambda f: f.stem)
def test_the_images_are_the_same(file, denoiser):
    """Images agree to 1e-6, on the file's own noise levels and on another list."""
    fitted = amed.load(file)
    if fitted.wants_bottleneck:
        fitted.predictor.double()
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    none = torch.tensor([UNCONDITIONAL])
    label = none if fitted.spec.guidance == 1 else torch.tensor([0])
    args = {"cond": {"label": label}, "uncond": {"label": none}}
    for name, sigmas in ((file.stem, fitted.sigmas()), (f"{file.stem}.below", BELOW)):
        end = amed.SAMPLERS[fitted.spec.sampler](
            Guided(denoiser, fitted.spec.guidance), noise * sigmas[0], sigmas, extra_args=args, disable=True,
            predictor=fitted, evaluate=FromModule(denoiser.inner_model.middle_block))  # fmt: skip
        assert (end[0] - BEFORE[name]).abs().max() < 1e-6, name


@pytest.mark.parametrize("file", BUNDLED + BENCH, ids=lambda f: f.stem)
def test_every_file_has_format_2_and_complete_fields(file):
    fitted = amed.load(file)
    with safe_open(file, framework="pt") as opened:
        header, names = opened.metadata(), set(opened.keys())
    able = {f"parts:{fitted.spec.parts}", "offset", "plain"}
    assert header["amed_format"] == "2" and set(json.loads(header["requires"])) <= able
    assert names == set(tensors_of(fitted)) and fitted.spec.unknown == {}
