"""The demo model as a Target: something to fit to and to measure, for `python -m amed`, demo and bench."""

from pathlib import Path

import torch
from torch import Tensor

from amed.evaluate import FromModule, Guided
from amed.fingerprint import identity_of
from amed.fit.target import Draw, Target

from . import model as demo
from .features import Features

NAME = "emoji32"
Args = dict[str, dict[str, Tensor]]  # arguments of both halves of the guided model, "cond" and "uncond"


def categories(label: Tensor) -> Args:
    """Return the demo model's arguments for category labels `[n]`: the labels, and "none" for guidance's
    unconditional pass."""
    return {"cond": {"label": label}, "uncond": {"label": torch.full_like(label, demo.UNCONDITIONAL)}}


def draw_at(guidance: float) -> Draw:
    """Return a function that draws noises and emoji categories to run the demo model with.

    It maps (generator, count) to (noises `[count, 3, 32, 32]` of unit variance, the model's arguments). The
    categories are random; at guidance 1, none."""

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, Args]:
        noise = torch.randn(count, 3, 32, 32, generator=generator)
        label = torch.randint(demo.CLASSES, (count,), generator=generator)
        return noise, categories(torch.full_like(label, demo.UNCONDITIONAL) if guidance == 1 else label)

    return draw


def target(guidance: float, weights: Path = demo.WEIGHTS, dtype: torch.dtype = torch.float32) -> Target:
    """Return the demo model at a guidance scale as a Target (a model that can be fitted to and measured)."""
    guided = Guided(demo.load_denoiser(weights, dtype), guidance)
    identity = identity_of(NAME, guided.named_parameters())
    return Target(
        guided,
        draw_at(guidance),
        demo.SIGMA_MIN,
        demo.SIGMA_MAX,
        "edm",
        identity.family,
        identity.fingerprint,
        "AMED demo model",
        evaluate=FromModule(guided.model.inner_model.middle_block),
        features=Features(),
        signature=identity.signature,
    )
