"""The demo model as a Target: something to fit to and to measure, for `python -m amed`, demo and bench."""

from pathlib import Path

import torch
from torch import Tensor

from amed.evaluate import FromModule, Guided
from amed.fingerprint import identity_of
from amed.fit.target import Draw, Target

from . import model as demo
from .features import Features, TrainedFeatures

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


def target_of(
    name: str, title: str, guided: Guided, draw: Draw, features: TrainedFeatures, kind: str
) -> Target:
    """Return a demo model as a Target.

    Args:
        name: its family, e.g. "emoji32".
        title: its name for people.
        guided: the model at a guidance scale, around a denoiser with `sigma_min` and `sigma_max`.
        draw: draws noises and arguments of the model.
        features: the features of its Fréchet distance.
        kind: what the network predicts: "edm" or "flow"."""
    identity, denoiser = identity_of(name, guided.named_parameters()), guided.model
    return Target(
        guided,
        draw,
        denoiser.sigma_min,
        denoiser.sigma_max,
        kind,
        identity.family,
        identity.fingerprint,
        title,
        evaluate=FromModule(denoiser.inner_model.middle_block),
        features=features,
        signature=identity.signature,
    )


def target(guidance: float, weights: Path = demo.WEIGHTS, dtype: torch.dtype = torch.float32) -> Target:
    """Return emoji32 at a guidance scale as a Target (a model that can be fitted to and measured)."""
    guided = Guided(demo.load_denoiser(weights, dtype), guidance)
    return target_of(NAME, "AMED demo model", guided, draw_at(guidance), Features(), "edm")
