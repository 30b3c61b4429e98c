"""What nodes/host/evaluate.py gets from one call of a real ComfyUI: the halves of guidance and the
bottleneck, without leaving anything behind."""

import json

import pytest
import torch
from safetensors.torch import load


def inspected_halves(server, g, cfg, **around):
    """Run the inspecting node; return (denoised, cond, uncond, which of them are None)."""
    look = g.add("TestHalves", cfg=cfg, **g.around() | around)
    nodes = [g.add("SaveLatent", samples=[look, i], filename_prefix="halves") for i in range(3)]
    result = server.run(g.nodes)
    state = json.loads(result.text(look))
    assert state["options kept"] and state["same image"]
    files = [load(server.view(result.files("latents", node)[0]))["latent_tensor"] for node in nodes]
    return *files, state["none"]


def assert_close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_the_halves_give_the_image_by_the_cfg_formula(server, graph):
    denoised, cond, uncond, none = inspected_halves(server, graph(batch=3), 4.0)
    assert not none and not torch.allclose(cond, uncond, atol=1e-2)
    assert_close(uncond + 4.0 * (cond - uncond), denoised)


def test_each_half_belongs_to_its_prompt(server, graph):
    _, cond, uncond, _ = inspected_halves(server, graph(batch=2), 4.0)
    g = graph(batch=2)
    alone, *_ = inspected_halves(server, g, 1.0)
    assert_close(cond, alone)
    g = graph(batch=2)
    alone, *_ = inspected_halves(server, g, 1.0, positive=g.negative)
    assert_close(uncond, alone)


def test_without_guidance_there_is_no_unconditional_half(server, graph):
    denoised, cond, _, none = inspected_halves(server, graph(batch=2), 1.0)
    assert none == ["uncond"]
    assert_close(cond, denoised)


@pytest.mark.parametrize(("which", "factor"), [("halved", lambda c, u: (u + 4 * (c - u)) / 2),
                                               ("bent", lambda c, u: u + 4 * (3 * c - u))])  # fmt: skip
def test_patches_on_the_combined_result_do_not_change_the_halves(server, graph, which, factor):
    _, cond, uncond, _ = inspected_halves(server, graph(batch=2), 4.0)
    g = graph(batch=2)
    patched = [g.add("TestModel", model=g.model, which=which), 0]
    denoised, also_cond, also_uncond, none = inspected_halves(server, g, 4.0, model=patched)
    assert not none
    assert_close(also_cond, cond)
    assert_close(also_uncond, uncond)
    assert_close(factor(cond, uncond), denoised)


def test_halves_from_two_calls(server, graph):
    """Prompts of too different lengths are not batched."""
    together = inspected_halves(server, graph(batch=2), 4.0)
    g = graph(batch=2)
    negative = g.negative
    for _ in range(6):
        negative = [g.add("ConditioningConcat", conditioning_to=negative, conditioning_from=g.negative), 0]
    for in_one_call, in_two_calls in zip(together[:3], inspected_halves(server, g, 4.0, negative=negative)):
        assert_close(in_one_call, in_two_calls)


def test_a_mask_keeps_its_part_in_both_halves(server, graph):
    g = graph(batch=2)
    start = g.ksampler("euler", "karras", 4)
    masked = g.right_half_masked(start)
    denoised, cond, uncond, none = inspected_halves(server, g, 4.0, latent_image=masked)
    assert not none and not torch.allclose(cond, uncond, atol=1e-2)
    assert_close(cond[..., :16], uncond[..., :16])
    assert_close(uncond + 4.0 * (cond - uncond), denoised)
