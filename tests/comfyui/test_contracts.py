"""What a host and other packs expect of a sampler: changing masks, wrapped denoisers, latents of every form.

With DETAIL_DAEMON_PATH=/where/ComfyUI-Detail-Daemon that pack's own wrappers are tested too."""

import json
import os
from pathlib import Path

import pytest
import torch
from comfyui.conftest import copy_test_nodes, write_user_predictors
from comfyui.page_messages import PageMessages
from comfyui.predictor_kinds import Small
from safetensors.torch import load

from demo import comfyui

WAYS = ("closure", "named", "default", "partial", "method", "module", "twice")
HIDDEN = "does not show the model"


def sampled(server, g, *latents):
    """Run the graph and return each LATENT's samples."""
    shown = [g.add("SaveLatent", samples=latent, filename_prefix="contracts") for latent in latents]
    result = server.run(g.nodes)
    samples = [load(server.view(result.files("latents", node)[0]))["latent_tensor"] for node in shown]
    return samples[0] if len(samples) == 1 else samples


def rms_distance(first, other):
    return float((first - other).square().mean().sqrt())


def scene(graph, mask=None):
    """A graph whose `start` has a mask: the right half, or a uniform grey."""
    g = graph()
    g.start = g.ksampler("dpmpp_2m", "karras", 12, seed=11)
    if mask is None:
        g.latent = g.right_half_masked(g.start)
    else:
        level = [g.add("SolidMask", value=mask, width=32, height=32), 0]
        g.latent = [g.add("SetLatentNoiseMask", samples=g.start, mask=level), 0]
    return g


def ours(g):
    """Return a SAMPLER of this pack, and SIGMAS for it."""
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="plain")
    return sampler, g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=5, denoise=1.0)


@pytest.mark.parametrize("how", WAYS)
def test_a_neutral_wrapper_around_our_sampler_changes_nothing(server, graph, how):
    """With a mask, and with a predictor that the library has for the wrapped model."""
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
    start, result = sampled(server, g, g.start, [around, 0])
    assert torch.equal(start[..., :16], result[..., :16]) and rms_distance(start, result) > 0.05


def test_sampling_works_where_the_model_is_hidden(server, graph):
    """No predictor is looked up, and one remark says so; the mask keeps its part.

    With a predictor linked, as the remark advises, that predictor runs and the remark disappears."""
    g = scene(graph)
    sampler, sigmas = ours(g)
    wrapped = g.add("WrapSampler", sampler=[sampler, 0], how="hidden")
    latent = g.custom(wrapped, sigmas)
    messages = PageMessages(latent[0])
    shown = [g.add("SaveLatent", samples=v, filename_prefix="contracts") for v in (g.start, latent)]
    result = server.run(g.nodes, messages)
    start, sampled_latents = (
        load(server.view(result.files("latents", n)[0]))["latent_tensor"] for n in shown
    )
    assert (
        torch.equal(start[..., :16], sampled_latents[..., :16])
        and rms_distance(start, sampled_latents) > 0.05
    )
    assert HIDDEN in messages.texts[-1] and len(messages.texts[-1].splitlines()) == 2

    name = "emoji32-multistep-nfe5-cfg1.safetensors"
    loaded = [g.add("AMEDLoadPredictor", name=name), 0]
    linked = g.add("AMEDSampler", sampler="auto", if_missing="plain", predictor=loaded)
    wrapped = g.add("WrapSampler", sampler=[linked, 0], how="hidden")
    latent, bare = g.custom(wrapped, sigmas), g.custom(linked, sigmas)
    messages = PageMessages(latent[0])
    shown = [g.add("SaveLatent", samples=v, filename_prefix="contracts") for v in (latent, bare)]
    result = server.run(g.nodes, messages)
    sampled_latents, bare = (load(server.view(result.files("latents", n)[0]))["latent_tensor"] for n in shown)
    assert torch.equal(sampled_latents, bare)
    assert HIDDEN not in messages.texts[-1] and name in messages.texts[-1]


@pytest.mark.parametrize("rule", ("", "DifferentialDiffusion", "by_step", "by_model", "halved"))
def test_a_grey_mask_ends_as_the_hosts_does(server, graph, rule):
    """Compare a run that ends above noise level 0 with one that the host continues to 0.

    The host's denoiser blends in the original by the mask of that level."""
    for mask in (0.6, 0.9):
        g = scene(graph, mask)
        if rule == "DifferentialDiffusion":
            g.model = [g.add(rule, model=g.model, strength=1.0), 0]
        elif rule:
            g.model = [g.add("MaskRule", model=g.model, rule=rule), 0]
        levels = g.add("KarrasScheduler", steps=12, sigma_max=80.0, sigma_min=0.002, rho=7.0)
        above = g.add("SplitSigmas", sigmas=[levels, 0], step=11)
        sampler = g.add("AMEDSampler", sampler="amed_deis", if_missing="plain")
        ended_at_zero, ended_above, start = sampled(
            server, g, g.custom(sampler, levels), g.custom(sampler, above), g.start
        )
        assert mask < 0.9 or rule == "halved" or rms_distance(ended_at_zero, start) > 0.01, (
            "the mask must keep the original"
        )
        assert rms_distance(ended_at_zero, ended_above) < 0.01


def test_an_empty_latent_gets_the_models_size(server, graph):
    """256 x 128 at 16 pixels per latent gives 16 x 8 with every form of the host's function.

    The tag of an empty latent is dropped, as in the host's KSampler."""
    g = Small(width=256, height=128)
    shapes = json.loads(server.run({**g.nodes, "t": {"class_type": "TaggedLatent", "inputs": {
        "model": g.model, "positive": g.positive, "negative": g.negative, "latent_image": g.latent,
    }}}).text("t"))  # fmt: skip
    for form in ("newer", "renamed", "loose"):
        assert shapes[form] == [[1, 4, 8, 16], ["samples"]], form


def test_an_image_picked_from_a_batch_is_unchanged(server, graph):
    """An image picked from a batch by LatentFromBatch equals that image of the whole batch."""
    g = graph(batch=4)
    whole_batch = g.amed(5, "auto", seed=9)
    picked = g.add("LatentFromBatch", samples=g.latent, batch_index=2, length=1)
    single = g.amed(5, "auto", seed=9, latent_image=[picked, 0])
    batch, alone = sampled(server, g, whole_batch, single)
    torch.testing.assert_close(batch[2:3], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("DETAIL_DAEMON_PATH" not in os.environ, reason="DETAIL_DAEMON_PATH is not set")
def test_detail_daemons_own_wrapper(tmp_path_factory, graph):
    base = tmp_path_factory.mktemp("detail")
    write_user_predictors(base / "models" / "amed_predictors")
    copy_test_nodes(base)
    pack_folder = Path(os.environ["DETAIL_DAEMON_PATH"]).resolve()
    (base / "custom_nodes" / "DetailDaemon").symlink_to(pack_folder, target_is_directory=True)
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
        assert rms_distance(bare, other) > 0.01 and torch.equal(start[..., :16], other[..., :16])
