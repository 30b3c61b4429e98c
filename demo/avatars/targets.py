"""The avatar model as a Target: something to fit to and to measure, for `python -m amed`, demo and bench."""

import random
from pathlib import Path

import torch
from torch import Tensor

from amed.evaluate import Guided
from amed.fit.target import Target

from ..target import target_of
from .attributes import STYLES, encode
from .drawing import drawn
from .features import Features
from .model import WEIGHTS, load_denoiser

NAME = "avatars32"
ASKED = 0.6  # probability that a drawn prompt names an attribute


def arguments(attributes: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return the model's arguments for attribute vectors `[n, SIZE]`: them, and zeros for guidance's
    unconditional pass."""
    return {"cond": {"attributes": attributes}, "uncond": {"attributes": torch.zeros_like(attributes)}}


def prompts(generator: torch.Generator, count: int) -> list[list[str]]:
    """Draw `count` prompts: attribute values of a style, in turn, and of some attributes that it shows."""
    draw = random.Random(int(torch.randint(2**62, (), generator=generator)))
    result = []
    for i in range(count):
        values = drawn(draw, STYLES[i % len(STYLES)])
        result.append([v for a, v in values.items() if a == "style" or draw.random() < ASKED])
    return result


def draw_prompts(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Draw noises `[count, 3, 32, 32]` of unit variance, and the model's arguments for as many prompts."""
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return noise, arguments(torch.stack([encode(values) for values in prompts(generator, count)]))


def target(guidance: float, weights: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> Target:
    """Return the avatar model at a guidance scale as a Target (something to fit to and to measure)."""
    guided = Guided(load_denoiser(weights, dtype), guidance)
    return target_of(NAME, "AMED avatar model", guided, draw_prompts, Features(), "flow")
