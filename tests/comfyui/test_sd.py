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
    said = r"nfe 9, guidance 7.5 and this sd15[\s\S]*The nearest is sd15-dpmpp-2m-nfe10"
    with pytest.raises(RunError, match=said):
        server.run(sd.g.nodes)


def test_first_click(server, graph):
    """A checkpoint that nobody fitted anything to, the node's own nfe and guidance: an image, and one line
    that says what ran, what there is, and what calibrating would give."""
    sd = SD(graph)
    made, report = sd.run(server, sd.amed(8, 5.0, "auto", if_missing="plain"))
    assert made.isfinite().all() and made.std() > 0.1
    assert "predictor: plain (ipndm-2, 8 evaluations; nothing fitted)" in report
    assert "evaluations counted: 8, 16 network passes an image" in report and report.count("note: ") == 1
    assert "The nearest is sd15-dpmpp-2m-nfe10" in report and "Calibrating once gave" in report


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
        around = {
            "model": sd.model,
            "positive": sd.positive,
            "negative": sd.negative,
            "latent_image": sd.latent,
        }
        runs = [sd.g.ksampler(name, "amed", 4, cfg=7.5, **around) for name in (sampler, "amed_deis", "euler")]
        saved = [sd.g.add("SaveLatent", samples=run, filename_prefix="sd") for run in runs]
        result = server.run(sd.g.nodes)
        made = [load(server.view(result.files("latents", n)[0]))["latent_tensor"] for n in saved]
        assert torch.equal(made[0], made[1]) and not torch.allclose(made[0], made[2])  # both the plain solver
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
