"""What nodes/host/evaluate.py gets of one call of a real ComfyUI: the halves of guidance, the bottleneck, and
nothing that stays."""

import json

import pytest
import torch
from safetensors.torch import load


def looked(server, g, cfg, **around):
    """(denoised, cond, uncond, what is None) of the node that looks."""
    look = g.add("TestHalves", cfg=cfg, **g.around() | around)
    nodes = [g.add("SaveLatent", samples=[look, i], filename_prefix="halves") for i in range(3)]
    result = server.run(g.nodes)
    said = json.loads(result.text(look))
    assert said["options kept"] and said["same image"]
    files = [load(server.view(result.files("latents", node)[0]))["latent_tensor"] for node in nodes]
    return *files, said["none"]


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_the_halves_make_the_image_by_the_cfg_formula(server, graph):
    denoised, cond, uncond, none = looked(server, graph(batch=3), 4.0)
    assert not none and not torch.allclose(cond, uncond, atol=1e-2)
    close(uncond + 4.0 * (cond - uncond), denoised)


def test_each_half_is_its_own_prompts(server, graph):
    _, cond, uncond, _ = looked(server, graph(batch=2), 4.0)
    g = graph(batch=2)
    alone, *_ = looked(server, g, 1.0)
    close(cond, alone)
    g = graph(batch=2)
    alone, *_ = looked(server, g, 1.0, positive=g.negative)
    close(uncond, alone)


def test_without_guidance_there_is_no_unconditional_half(server, graph):
    denoised, cond, _, none = looked(server, graph(batch=2), 1.0)
    assert none == ["uncond"]
    close(cond, denoised)


@pytest.mark.parametrize(("which", "factor"), [("halved", lambda c, u: (u + 4 * (c - u)) / 2),
                                              ("bent", lambda c, u: u + 4 * (3 * c - u))])  # fmt: skip
def test_patches_on_what_is_made_of_them_leave_them_alone(server, graph, which, factor):
    _, cond, uncond, _ = looked(server, graph(batch=2), 4.0)
    g = graph(batch=2)
    patched = [g.add("TestModel", model=g.model, which=which), 0]
    denoised, also_cond, also_uncond, none = looked(server, g, 4.0, model=patched)
    assert not none
    close(also_cond, cond)
    close(also_uncond, uncond)
    close(factor(cond, uncond), denoised)


def test_in_two_calls_too(server, graph):
    """Prompts of too different lengths are not batched."""
    together = looked(server, graph(batch=2), 4.0)
    g = graph(batch=2)
    negative = g.negative
    for _ in range(6):
        negative = [g.add("ConditioningConcat", conditioning_to=negative, conditioning_from=g.negative), 0]
    for one, two in zip(together[:3], looked(server, g, 4.0, negative=negative)):
        close(one, two)


def test_a_mask_keeps_its_part_in_both(server, graph):
    g = graph(batch=2)
    start = g.ksampler("euler", "karras", 4)
    masked = g.right_half_masked(start)
    denoised, cond, uncond, none = looked(server, g, 4.0, latent_image=masked)
    assert not none and not torch.allclose(cond, uncond, atol=1e-2)
    close(cond[..., :16], uncond[..., :16])
    close(uncond + 4.0 * (cond - uncond), denoised)
