"""The avatar model in ComfyUI: a flow MODEL whose prompts come from AMED Demo Prompt."""

import numpy as np
import pytest
import torch
from safetensors.torch import load

from amed.evaluate import Guided
from demo.avatars.attributes import encode, parse
from demo.avatars.model import SHIFT, load_denoiser
from demo.comfyui import RunError


class Avatars:
    """A graph on the avatar model, made from conftest's Graph; `prompt(text)` returns a CONDITIONING."""

    def __init__(self, graph, batch=1, width=32, height=32):
        self.graph = graph(batch=batch, width=width, height=height)
        self.graph.nodes[self.graph.demo]["inputs"]["model"] = "avatars32"

    def prompt(self, text):
        return [self.graph.add("AMEDDemoPrompt", text=text), 0]

    def ordinary(self, positive, negative="", cfg=2.0, steps=6, **other):
        return self.graph.ksampler(
            "euler",
            "simple",
            steps,
            cfg,
            positive=self.prompt(positive),
            negative=self.prompt(negative),
            **other,
        )


@pytest.fixture
def avatars(graph):
    return lambda **options: Avatars(graph, **options)


def test_comfyui_samples_it_as_a_flow_model_with_its_shift(server, avatars):
    """KSampler with euler and simple gives the latent of Euler's method here, on levels from 1 to 0."""
    a, steps, cfg, words = avatars(), 4, 3.0, "big smile, pink hair"
    sampled = a.ordinary(words, "sad", cfg, steps)
    a.graph.add("SaveLatent", samples=sampled, filename_prefix="avatar")
    (file,) = server.run(a.graph.nodes).files("latents")
    latent = load(server.view(file))["latent_tensor"]

    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    levels = (SHIFT * t / (1 + (SHIFT - 1) * t)).float()
    guided = Guided(load_denoiser(), cfg)
    args = {
        k: {"attributes": encode(parse(text).values)[None]}
        for k, text in (("cond", words), ("uncond", "sad"))
    }
    x = torch.randn(1, 3, 32, 32, generator=torch.manual_seed(3))
    for now, then in zip(levels, levels[1:]):
        x = x + (then - now) * (x - guided(x, now[None], **args)) / now
    assert (latent - x).abs().max() < 2e-3


def test_the_image_follows_positive_and_negative(images, avatars):
    a = avatars()
    words = "pixel art, blue background"
    ways = [
        a.ordinary(words),
        a.ordinary("blue background; PIXEL ART"),
        a.ordinary("pixel art, red background"),
        a.ordinary(words, "sad, thumbs"),
        a.ordinary(""),
    ]
    first, same, other, against, anything = images(a.graph, *ways)
    assert np.array_equal(first, same)
    corner = other[0, :4, :4].astype(float).mean((0, 1)) - first[0, :4, :4].astype(float).mean((0, 1))
    assert corner[0] > 30 and corner[2] < -30, "the corner is redder and less blue"
    assert not np.array_equal(first, against) and not np.array_equal(first, anything)


def test_an_image_of_a_batch_equals_it_alone(images, avatars):
    """The first of three images has the noise of a batch of one."""
    one = images(*(lambda a: (a.graph, a.ordinary("lorelei, green hair")))(avatars()))
    three = images(*(lambda a: (a.graph, a.ordinary("lorelei, green hair")))(avatars(batch=3)))
    assert len(three) == 3 and np.abs(three[0].astype(int) - one[0]).max() <= 2


def test_our_sampler_runs_at_its_number_of_evaluations(server, avatars):
    a = avatars()
    around = {"positive": a.prompt("toon head, beard"), "negative": a.prompt("")}
    sampled = a.graph.amed(6, "auto", guidance=4.0, if_missing="plain", **around)
    a.graph.show(sampled)
    assert "evaluations counted: 6" in server.run(a.graph.nodes).text(sampled[0])


def test_prompts_can_be_mixed(images, avatars):
    """Conditioning (Average) and (Concat) of two prompts, and a prompt that is zeroed out."""
    a = avatars()
    red, blue = a.prompt("red background"), a.prompt("blue background")
    mixed = [
        [a.graph.add("ConditioningAverage", conditioning_to=red, conditioning_from=blue,
                     conditioning_to_strength=0.5), 0],
        [a.graph.add("ConditioningConcat", conditioning_to=red, conditioning_from=a.prompt("beard")), 0],
        [a.graph.add("ConditioningZeroOut", conditioning=red), 0],
        a.prompt(""),
    ]  # fmt: skip
    negative = a.prompt("")
    shots = images(
        a.graph, *(a.graph.ksampler("euler", "simple", 4, 2.0, positive=p, negative=negative) for p in mixed)
    )
    assert all(shot.std() > 10 for shot in shots)
    assert np.array_equal(shots[2], shots[3]), "zeroed out is unconditional"


@pytest.mark.parametrize("text", ["红头发", "masterpiece, 4k", "x" * 20_000])
def test_unknown_words_are_named_on_the_node(server, avatars, text):
    a = avatars()
    node = a.graph.add("AMEDDemoPrompt", text=f"thumbs, {text}")
    a.graph.show(a.graph.ksampler("euler", "simple", 2, 2.0, positive=[node, 0]))
    lines = server.run(a.graph.nodes).text(node).splitlines()
    assert lines[0] == "thumbs" and lines[1].startswith("unknown to the avatar model: ")
    assert text.split(",")[0][:30] in lines[1] and len(lines[1]) < 400


@pytest.mark.parametrize(("width", "height"), [(64, 32), (16, 64)])
def test_other_sizes_give_an_image(images, avatars, width, height):
    a = avatars(width=width, height=height)
    assert images(a.graph, a.ordinary("pixel art")).shape == (1, height, width, 3)


def test_a_size_between_is_a_clear_error(server, avatars):
    a = avatars(width=36)
    a.graph.show(a.ordinary("pixel art"))
    with pytest.raises(RunError, match="sides are multiples of 8, got a LATENT of 36x32"):
        server.run(a.graph.nodes)


def test_prompts_of_the_other_model_are_clear_errors(server, avatars, graph):
    a, emoji = avatars(), graph()
    category = [a.graph.add("AMEDDemoModel", category="Flags", width=32, height=32, batch_size=1), 1]
    a.graph.show(a.graph.ksampler("euler", positive=category))
    with pytest.raises(RunError, match="of avatars takes its prompts from AMED Demo Prompt"):
        server.run(a.graph.nodes)
    text = [emoji.add("AMEDDemoPrompt", text="thumbs"), 0]
    emoji.show(emoji.ksampler("euler", positive=text))
    with pytest.raises(RunError, match="of emoji knows no prompts"):
        server.run(emoji.nodes)
