"""The fake WebUIs on a device without float64 (tests/no_float64.py): the schedule, the samplers, fits."""

import copy
from types import SimpleNamespace

import fake_webui
import no_float64
import pytest
import torch

from amed import load
from amed.fit import smallest_budget

MLP = "emoji32-amed-nfe5-cfg2.safetensors"


def images(webui, args=("auto", 0, "as in settings"), **settings):
    p = webui.Processing(**{"cfg_scale": 2.0, "prompt": "3", "width": 16, "height": 16} | settings)
    return webui.generate(p, webui.script, args).cpu(), p


@pytest.fixture
def move(webui, monkeypatch):
    """`move()`: from now on the host samples on that device, its lists of noise levels too."""
    webui.host.read_identity = webui.read_identity
    webui.host.FAMILIES["is_sd1"] = "emoji32"

    def moved():
        device, launch = no_float64.device(), fake_webui.KDiffusionSampler.launch
        network = copy.deepcopy(webui.checkpoint.network).to(device)

        def enter(module, args, kwargs):
            assert args[0].device.type == no_float64.NAME
            return args, kwargs | {"context": kwargs["context"].to(device)}

        network.register_forward_pre_hook(enter, with_kwargs=True)
        checkpoint = webui.checkpoint
        checkpoint.network = network
        holder = (
            checkpoint.forge_objects.unet.model if hasattr(checkpoint, "forge_objects") else checkpoint.model
        )
        holder.diffusion_model = network
        wrapper = fake_webui.external.CompVisDenoiser
        own = SimpleNamespace(CompVisDenoiser=lambda model: wrapper(model).to(device))
        monkeypatch.setattr(fake_webui, "external", own)

        def on_device(self, p, steps, x, sigmas, prompts, negative):
            return launch(self, p, steps, x.to(device), sigmas.to(device), prompts, negative)

        monkeypatch.setattr(fake_webui.KDiffusionSampler, "launch", on_device)

    return moved


def every(webui):
    """Images by what made them."""
    made = {}
    for line in webui.samplers.ENTRIES:
        for name in ("Automatic", "Karras"):
            made[line.label, name] = images(webui, sampler_name=line.label, steps=4, scheduler=name)[0]
        made[line.label, "below"] = images(
            webui, sampler_name=line.label, steps=6, image=torch.zeros(1, 3, 16, 16), denoising_strength=0.6
        )[0]
        made[line.label, "untrained"] = images(webui, ("untrained", 0), sampler_name=line.label, steps=4)[0]
    made["network"] = images(webui, (MLP,), sampler_name="AMED")[0]
    made["theirs on ours"] = images(webui, sampler_name="Euler", steps=5, scheduler="AMED")[0]
    made["by nfe"] = images(webui, ("auto", 6), sampler_name="AMED Multistep")[0]
    return made


def test_every_sampler_and_the_schedule(webui, move):
    here = every(webui)
    move()
    there = every(webui)
    for name, image in here.items():
        assert image.std() > 0.01 and (image - there[name]).abs().max() < 2e-4, name


@pytest.mark.parametrize(
    ("webui", "sampler"),
    [("a1111", "AMED Multistep"), ("forge", "AMED"), ("a1111", "DPM++ 2M")],
    indirect=["webui"],
)
def test_fits(webui, move, small_latents, sampler):
    """Fitted in the tab; then run."""
    told = {"prompts": "3\n5", "width": 64, "height": 64, "guidance": 2.0, "nfe": "2"}
    told["budget"], errors = smallest_budget(2), []
    for step in (lambda: None, move):
        step()
        outcome = webui.calibrate.calibrate_in_queue(webui.calibrate.Form.of(told | {"sampler": sampler}))
        (file,) = outcome.saved
        path = webui.host.user_folder() / file
        spec = load(path).spec
        errors.append(spec.metrics["error"])
        label = (
            sampler if spec.of else webui.samplers.label_of(spec.sampler)
        )  # a plain one may have been kept
        image, p = images(webui, (file, 0), sampler_name=label)
        assert p.extra_generation_params["AMED predictor"] == file and image.isfinite().all()
        path.unlink()
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
