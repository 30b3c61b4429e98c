"""A Stable Diffusion 1.5 MODEL, loaded by the host's own loader into its own U-Net (small, random
weights)."""

import numpy as np
import pytest
import torch
from safetensors.torch import load

from demo.comfyui import RunError


class SD:
    """A graph on that MODEL; `latent` of 8 x 12, a batch of `batch`."""

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
        """(latents, report)"""
        self.g.add("SaveLatent", samples=latent, filename_prefix="sd")
        result = server.run(self.g.nodes)
        latents = load(server.view(result.files("latents")[0]))["latent_tensor"]
        assert latents.isfinite().all() and latents.std() > 0.1
        return latents, result.text(latent[0])


def test_published_values_are_found(server, graph):
    sd = SD(graph)
    made, report = sd.run(server, sd.amed(10, 7.5))
    assert made.shape == (2, 4, 8, 12)
    assert "predictor: sd15-dpmpp-2m-nfe10.safetensors" in report
    assert "evaluations counted: 10, 20 network passes" in report and "note:" not in report


def test_nfe_that_nobody_published(server, graph):
    sd = SD(graph)
    sd.g.add("SaveLatent", samples=sd.amed(9, 7.5), filename_prefix="sd")
    with pytest.raises(RunError, match=r"NFE 9[\s\S]*For this model, NFE can be 6, 10"):
        server.run(sd.g.nodes)


def test_halves_in_one_call_or_two(server, graph):
    """Seven times the same tokens mean the same to attention, but the host cannot batch them with the
    others."""

    def make(repeats):
        sd = SD(graph, repeats=repeats)
        made, report = sd.run(server, sd.amed(6, 2.0, "test_sd.safetensors"))
        assert "no bottleneck could be captured" not in report
        return made

    together, apart = make(1), make(7)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3 * float(together.std()))


def test_first_capture_counts(server, graph):
    """Perturbed-attention guidance runs the U-Net once more an evaluation, with another middle block: with
    next to no weight on it, the image is as without, so the predictor did not see that one. And the MODEL
    stays as it is."""

    def make(scale):
        sd = SD(graph)
        guided = (
            [sd.g.add("PerturbedAttentionGuidance", model=sd.model, scale=scale), 0] if scale else sd.model
        )
        made, report = sd.run(server, sd.amed(6, 2.0, "test_sd.safetensors", model=guided))
        assert f"{18 if scale else 12} network passes" in report
        return made

    before, faint, strong, after = make(0), make(1e-6), make(3.0), make(0)
    assert torch.equal(before, after)
    torch.testing.assert_close(before, faint, rtol=1e-3, atol=1e-3 * float(before.std()))
    assert not torch.allclose(before, strong, atol=0.1 * float(before.std()))


@pytest.mark.parametrize("sampler", ["amed", "amed_ipndm", "amed_dpmpp_2m"])
def test_ordinary_ksampler_with_an_applied_predictor(server, graph, sampler):
    file = {"amed": "test_sd.safetensors", "amed_dpmpp_2m": "sd15-dpmpp-2m-nfe10.safetensors"}.get(sampler)
    sd = SD(graph)
    if file is None:
        sd.g.show(sd.g.ksampler(sampler, "amed", 4, cfg=7.5, model=sd.model, positive=sd.positive,
                                negative=sd.negative, latent_image=sd.latent))  # fmt: skip
        with pytest.raises(RunError, match="no predictor for 4 noise levels"):
            server.run(sd.g.nodes)
        return
    loaded = [sd.g.add("AMEDLoadPredictor", name=file), 0]
    applied = [sd.g.add("AMEDApplyPredictor", model=sd.model, predictor=loaded), 0]
    steps, cfg = (3, 2.0) if sampler == "amed" else (5, 7.5)
    ordinary = sd.g.ksampler(sampler, "amed", steps, cfg=cfg, seed=3, model=applied, positive=sd.positive,
                             negative=sd.negative, latent_image=sd.latent)  # fmt: skip
    own = sd.amed(2 * steps, cfg, file)
    first, second = (sd.g.add("SaveLatent", samples=s, filename_prefix="sd") for s in (ordinary, own))
    result = server.run(sd.g.nodes)
    one, two = (load(server.view(result.files("latents", n)[0]))["latent_tensor"] for n in (first, second))
    assert np.array_equal(one.numpy(), two.numpy())
