"""What the command line fits to: a model, and how to draw samples for it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .bottleneck import Capture, Denoiser
from .calibration import Draw
from .sampling import Guide

DEMO = "demo.target:target"


@dataclass(frozen=True)
class Target:
    """model(x, sigma, **args) -> denoised, guidance applied. draw(generator, count) -> (unit noise `[count,
    ...]`, args). sigma_min, sigma_max: its noise levels. prediction_type, family, fingerprint, name: for
    the file. afs: may the first step be analytic (not for flow models). capture: its bottleneck, to train
    the paper's network. guide: amed.sampling.Guide. features(images) -> `[n, F]`: for Fréchet distances."""

    model: Denoiser
    draw: Draw
    sigma_min: float
    sigma_max: float
    prediction_type: str = "eps"
    family: str = ""
    fingerprint: str = ""
    name: str = ""
    afs: bool = True
    capture: Capture | None = None
    guide: Guide | None = None
    features: Callable[[Tensor], Tensor] | None = None


def load(factory: str, guidance: float) -> Target:
    """Call `module:function` with the guidance scale. Raises ValueError saying what is wrong with it."""
    module, _, function = factory.partition(":")
    if not module or not function:
        raise ValueError(f"--model is {factory!r}: give module:function, as {DEMO}")
    try:
        made: Any = getattr(importlib.import_module(module), function)(guidance)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model {factory}: {error}") from None
    if not isinstance(made, Target):
        raise ValueError(f"--model {factory}: it gives a {type(made).__name__}, not an amed.target.Target")
    return made
