"""A Stable Diffusion 1.5 MODEL with small random weights, loaded by the host's loader into its U-Net."""

import numpy as np
import pytest
import torch
from safetensors.torch import load

from demo.comfyui import RunError


class SD:
    """A graph on that MODEL; `latent` is a batch of `batch` of 8 x 12."""

    def __init__(self, graph, batch=2, repeats=1):
        self.g = graph()
        loaded = self.g.add("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
        self.model = [loaded, 0]
        self.positive = [self.g.add("TestPrompt", seed=1, repeats=1), 0]
        self.negative = [self.g.add("TestPrompt", seed=2, repeats=repeats), 0]
        self.latent = [self.g.add("EmptyLatentImage", width=96, height=64, batch_size=batch), 0]

    def amed(self, nfe, guidance, predictor="auto", model=None, **other):
        around = {"model": model or self.model, "positive": self.positive, "negative": self.negative,
                  "latent_image": self.latent}  # fmt: skip
        return self.g.amed(nfe, "auto", guidance, predictor=predictor, **around | other)

    def run(self, server, latent):
        """Run the graph; return (latents, report)."""
        self.g.add("SaveLatent", samples=latent, filename_prefix="sd")
        result = server.run(self.g.nodes)
        latents = load(server.view(result.files("latents")[0]))["latent_tensor"]
        assert latents.isfinite().all() and latents.std() > 0.1
        return latents, result.text(latent[0])


def test_published_values_are_found(server, graph):
    sd = SD(graph)
    latents, report = sd.run(server, sd.amed(10, 7.5))
    assert latents.shape == (2, 4, 8, 12)
    assert "predictor: sd15-dpmpp-2m-nfe10.safetensors" in report
    assert "evaluations counted: 10, 20 network passes" in report and "note:" not in report


def test_an_unpublished_nfe(server, graph):
    sd = SD(graph)
    sd.g.add("SaveLatent", samples=sd.amed(9, 7.5), filename_prefix="sd")
    expected = r"nfe 9, guidance 7.5 and this sd15[\s\S]*The nearest is sd15-dpmpp-2m-nfe10"
    with pytest.raises(RunError, match=expected):
        server.run(sd.g.nodes)


def test_default_settings_give_an_image_and_one_line(server, graph):
    """With the node's defaults, a checkpoint without a predictor gives an image and one line.

    The line says what ran, which predictors exist, and what calibrating would improve."""
    sd = SD(graph)
    latents, report = sd.run(server, sd.amed(8, 5.0, "auto", if_missing="plain"))
    assert latents.isfinite().all() and latents.std() > 0.1
    assert "predictor: plain (ipndm-2, 8 evaluations; nothing fitted)" in report
    assert "evaluations counted: 8, 16 network passes per image" in report and report.count("note: ") == 1
    assert "The nearest is sd15-dpmpp-2m-nfe10" in report and "Calibrating once gave" in report


def test_halves_in_one_call_or_two(server, graph):
    """Repeating the tokens seven times changes nothing for attention, but prevents the host's batching."""

    def make(repeats):
        sd = SD(graph, repeats=repeats)
        latents, report = sd.run(server, sd.amed(6, 2.0, "test_sd.safetensors"))
        assert "no bottleneck could be captured" not in report
        return latents

    together, apart = make(1), make(7)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3 * float(together.std()))


def test_the_first_captured_bottleneck_is_used(server, graph):
    """Perturbed-attention guidance runs the U-Net once more per evaluation, with another middle block.

    With almost no weight on it, the image stays the same, so the predictor did not get that bottleneck. The
    MODEL is not changed."""

    def make(scale):
        sd = SD(graph)
        guided = (
            [sd.g.add("PerturbedAttentionGuidance", model=sd.model, scale=scale), 0] if scale else sd.model
        )
        latents, report = sd.run(server, sd.amed(6, 2.0, "test_sd.safetensors", model=guided))
        assert f"{18 if scale else 12} network passes" in report
        return latents

    before, faint, strong, after = make(0), make(1e-6), make(3.0), make(0)
    assert torch.equal(before, after)
    torch.testing.assert_close(before, faint, rtol=1e-3, atol=1e-3 * float(before.std()))
    assert not torch.allclose(before, strong, atol=0.1 * float(before.std()))


@pytest.mark.parametrize("sampler", ["amed", "amed_ipndm", "amed_dpmpp_2m"])
def test_the_ordinary_ksampler_with_an_applied_predictor(server, graph, sampler):
    file = {"amed": "test_sd.safetensors", "amed_dpmpp_2m": "sd15-dpmpp-2m-nfe10.safetensors"}.get(sampler)
    sd = SD(graph)
    if file is None:
        around = {
            "model": sd.model,
            "positive": sd.positive,
            "negative": sd.negative,
            "latent_image": sd.latent,
        }
        runs = [sd.g.ksampler(name, "amed", 4, cfg=7.5, **around) for name in (sampler, "amed_deis", "euler")]
        saved = [sd.g.add("SaveLatent", samples=run, filename_prefix="sd") for run in runs]
        result = server.run(sd.g.nodes)
        latents = [load(server.view(result.files("latents", n)[0]))["latent_tensor"] for n in saved]
        assert torch.equal(latents[0], latents[1]) and not torch.allclose(
            latents[0], latents[2]
        )  # both run the plain solver
        return
    loaded = [sd.g.add("AMEDLoadPredictor", name=file), 0]
    applied = [sd.g.add("AMEDApplyPredictor", model=sd.model, predictor=loaded), 0]
    steps, cfg = (3, 2.0) if sampler == "amed" else (5, 7.5)
    ordinary = sd.g.ksampler(sampler, "amed", steps, cfg=cfg, seed=3, model=applied, positive=sd.positive,
                             negative=sd.negative, latent_image=sd.latent)  # fmt: skip
    by_amed_ksampler = sd.amed(2 * steps, cfg, file)
    first, second = (
        sd.g.add("SaveLatent", samples=s, filename_prefix="sd") for s in (ordinary, by_amed_ksampler)
    )
    result = server.run(sd.g.nodes)
    first_image, two = (
        load(server.view(result.files("latents", n)[0]))["latent_tensor"] for n in (first, second)
    )
    assert np.array_equal(first_image.numpy(), two.numpy())
