"""What a host and other packs ask of a sampler: masks that change on the way, denoisers that are wrapped,
latents of every form.

With DETAIL_DAEMON_PATH=/where/ComfyUI-Detail-Daemon the wrappers are that pack's own too."""

import json
import os
from pathlib import Path

import pytest
import torch
from comfyui.conftest import put_test_nodes, write_user_predictors
from comfyui.page_messages import Heard
from comfyui.predictor_kinds import Small
from safetensors.torch import load

from demo import comfyui

WAYS = ("closure", "named", "default", "partial", "method", "module", "twice")
HIDDEN = "does not show the model"


def sampled(server, g, *latents):
    """Each LATENT's samples."""
    shown = [g.add("SaveLatent", samples=latent, filename_prefix="contracts") for latent in latents]
    result = server.run(g.nodes)
    made = [load(server.view(result.files("latents", node)[0]))["latent_tensor"] for node in shown]
    return made[0] if len(made) == 1 else made


def away(one, other):
    return float((one - other).square().mean().sqrt())


def scene(graph, mask=None):
    """A graph on whose `start` a mask lies: the right half, or a level of grey."""
    g = graph()
    g.start = g.ksampler("dpmpp_2m", "karras", 12, seed=11)
    if mask is None:
        g.latent = g.right_half_masked(g.start)
    else:
        level = [g.add("SolidMask", value=mask, width=32, height=32), 0]
        g.latent = [g.add("SetLatentNoiseMask", samples=g.start, mask=level), 0]
    return g


def ours(g):
    """A SAMPLER of ours, and SIGMAS for it."""
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="plain")
    return sampler, g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=5, denoise=1.0)


@pytest.mark.parametrize("how", WAYS)
def test_a_sampler_that_wraps_ours_and_changes_nothing(server, graph, how):
    """With a mask, and a predictor that the library has for the model behind it."""
    g = scene(graph)
    sampler, sigmas = ours(g)
    wrapped = g.add("WrapSampler", sampler=[sampler, 0], how=how)
    bare, around = sampled(server, g, g.custom(sampler, sigmas), g.custom(wrapped, sigmas))
    assert torch.equal(bare, around)


@pytest.mark.parametrize("how", ("closure", "hidden"))
def test_a_wrapped_plain_solver_keeps_the_masked_part(server, graph, how):
    g = scene(graph)
    plain = g.add("AMEDPlainSolver", model=g.model, solver="iPNDM-2", nfe=5, schedule="time_uniform",
                  rho=1.0, afs=False)  # fmt: skip
    wrapped = g.add("WrapSampler", sampler=[plain, 0], how=how)
    around = g.add("SamplerCustom", add_noise=True, noise_seed=3, cfg=1.0, sampler=[wrapped, 0],
                   sigmas=[plain, 1], **g.around())  # fmt: skip
    start, made = sampled(server, g, g.start, [around, 0])
    assert torch.equal(start[..., :16], made[..., :16]) and away(start, made) > 0.05


def test_a_hidden_model_is_done_without(server, graph):
    """No predictor is looked up, which one remark says; the mask keeps its part; and with a predictor linked,
    as the remark advises, that runs and the remark is gone."""
    g = scene(graph)
    sampler, sigmas = ours(g)
    wrapped = g.add("WrapSampler", sampler=[sampler, 0], how="hidden")
    latent = g.custom(wrapped, sigmas)
    heard = Heard(latent[0])
    shown = [g.add("SaveLatent", samples=v, filename_prefix="contracts") for v in (g.start, latent)]
    result = server.run(g.nodes, heard)
    start, made = (load(server.view(result.files("latents", n)[0]))["latent_tensor"] for n in shown)
    assert torch.equal(start[..., :16], made[..., :16]) and away(start, made) > 0.05
    assert HIDDEN in heard.texts[-1] and len(heard.texts[-1].splitlines()) == 2

    name = "emoji32-multistep-nfe5-cfg1.safetensors"
    loaded = [g.add("AMEDLoadPredictor", name=name), 0]
    linked = g.add("AMEDSampler", sampler="auto", if_missing="plain", predictor=loaded)
    wrapped = g.add("WrapSampler", sampler=[linked, 0], how="hidden")
    latent, bare = g.custom(wrapped, sigmas), g.custom(linked, sigmas)
    heard = Heard(latent[0])
    shown = [g.add("SaveLatent", samples=v, filename_prefix="contracts") for v in (latent, bare)]
    result = server.run(g.nodes, heard)
    made, bare = (load(server.view(result.files("latents", n)[0]))["latent_tensor"] for n in shown)
    assert torch.equal(made, bare)
    assert HIDDEN not in heard.texts[-1] and name in heard.texts[-1]


@pytest.mark.parametrize("rule", ("", "DifferentialDiffusion", "by_step", "by_model", "halved"))
def test_a_grey_mask_ends_as_the_hosts_does(server, graph, rule):
    """A run that ends above noise level 0 beside one that the host's denoiser takes on to 0, which blends the
    original in by the mask of that level."""
    for mask in (0.6, 0.9):
        g = scene(graph, mask)
        if rule == "DifferentialDiffusion":
            g.model = [g.add(rule, model=g.model, strength=1.0), 0]
        elif rule:
            g.model = [g.add("MaskRule", model=g.model, rule=rule), 0]
        levels = g.add("KarrasScheduler", steps=12, sigma_max=80.0, sigma_min=0.002, rho=7.0)
        above = g.add("SplitSigmas", sigmas=[levels, 0], step=11)
        sampler = g.add("AMEDSampler", sampler="amed_deis", if_missing="plain")
        whole, made, start = sampled(server, g, g.custom(sampler, levels), g.custom(sampler, above), g.start)
        assert mask < 0.9 or rule == "halved" or away(whole, start) > 0.01, "nothing was to change"
        assert away(whole, made) < 0.01


def test_an_empty_latent_is_made_for_the_model(server, graph):
    """256 x 128 on 16 pixels per latent: 16 x 8, by every form of the host's function; the tag is not kept,
    as the host's KSampler drops it."""
    g = Small(width=256, height=128)
    told = json.loads(server.run({**g.nodes, "t": {"class_type": "TaggedLatent", "inputs": {
        "model": g.model, "positive": g.positive, "negative": g.negative, "latent_image": g.latent,
    }}}).text("t"))  # fmt: skip
    for form in ("newer", "renamed", "loose"):
        assert told[form] == [[1, 4, 8, 16], ["samples"]], form


def test_batch_index_is_the_hosts(server, graph):
    """One image of a batch, picked out by LatentFromBatch, is that of the whole batch."""
    g = graph(batch=4)
    whole = g.amed(5, "auto", seed=9)
    picked = g.add("LatentFromBatch", samples=g.latent, batch_index=2, length=1)
    one = g.amed(5, "auto", seed=9, latent_image=[picked, 0])
    batch, alone = sampled(server, g, whole, one)
    torch.testing.assert_close(batch[2:3], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("DETAIL_DAEMON_PATH" not in os.environ, reason="DETAIL_DAEMON_PATH is not set")
def test_detail_daemon_itself(tmp_path_factory, graph):
    base = tmp_path_factory.mktemp("detail")
    write_user_predictors(base / "models" / "amed_predictors")
    put_test_nodes(base)
    there = Path(os.environ["DETAIL_DAEMON_PATH"]).resolve()
    (base / "custom_nodes" / "DetailDaemon").symlink_to(there, target_is_directory=True)
    with comfyui.Server(base) as server:
        g = scene(graph)
        sampler, sigmas = ours(g)
        daemon = {"start": 0.2, "end": 0.8, "bias": 0.5, "exponent": 1.0, "start_offset": 0.0,
                  "end_offset": 0.0, "fade": 0.0, "smooth": True, "cfg_scale_override": 0.0}  # fmt: skip
        wraps = [g.add("DetailDaemonSamplerNode", sampler=[sampler, 0], detail_amount=amount, **daemon)
                 for amount in (0.0, 0.5)]  # fmt: skip
        lying = g.add("LyingSigmaSampler", sampler=[sampler, 0], dishonesty_factor=0.0)
        start, bare, same, other, honest = sampled(
            server, g, g.start, *(g.custom(s, sigmas) for s in (sampler, *wraps, lying))
        )
        assert torch.equal(bare, same) and torch.equal(bare, honest)
        assert away(bare, other) > 0.01 and torch.equal(start[..., :16], other[..., :16])
