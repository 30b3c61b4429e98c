"""The demo model for `python -m amed`."""

import torch

from amed.bottleneck import ModuleCapture
from amed.fingerprint import fingerprint
from amed.guidance import Guided, guide
from amed.target import Target

from . import model as demo
from .features import Features


def target(guidance: float) -> Target:
    """Unconditional at guidance 1, else all categories guided away from none."""
    guided = Guided(demo.load_denoiser(), guidance)

    def draw(generator: torch.Generator, count: int) -> tuple[torch.Tensor, dict]:
        noise = torch.randn(count, 3, 32, 32, generator=generator)
        label = torch.randint(demo.CLASSES, (count,), generator=generator)
        none = torch.full_like(label, demo.UNCONDITIONAL)
        return noise, {"cond": {"label": none if guidance == 1 else label}, "uncond": {"label": none}}

    return Target(
        guided,
        draw,
        demo.SIGMA_MIN,
        demo.SIGMA_MAX,
        "edm",
        "emoji32",
        fingerprint(guided.named_parameters()),
        "AMED demo model",
        capture=ModuleCapture(guided.model.inner_model.middle_block),
        guide=guide,
        features=Features(),
    )
