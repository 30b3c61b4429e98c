"""What is fitted to: a model, and how to draw samples for it."""

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..files import Spec
from ..fingerprint import Identity
from ..loop import Denoiser, Evaluate
from ..recipes import Solver

DEMO = "demo.target:target"
Draw = Callable[[torch.Generator, int], tuple[Tensor, dict[str, Any]]]
Rival = Callable[[Denoiser, Tensor, dict[str, Any]], Tensor]


class CachedError(ValueError):
    """An evaluation that the model itself did not answer: what was measured is not the model's, and nothing
    of it is kept. The message says what answers in its place, and what to do."""


def seeded(seed: int) -> torch.Generator:
    """A generator for any whole number: torch takes 64 bits, which seeds of hosts fill by themselves."""
    return torch.Generator().manual_seed(seed % 2**64)


@dataclass(frozen=True)
class Target:
    """model(x, sigma, **args) -> denoised, guidance applied. draw(generator, count) -> (unit noise `[count,
    ...]`, args). sigma_min, sigma_max: its noise levels. prediction_type ("flow": other schedules are
    searched, and no first step is analytic), family, fingerprint, name, signature: for the file. evaluate:
    how it gives its bottleneck, to train the paper's network, and guidance's halves. features(images) ->
    `[n, F]`: for Fréchet distances. rivals(nfe): solvers as the host ships them, by name; None for the usual
    ones of amed.fit."""

    model: Denoiser
    draw: Draw
    sigma_min: float
    sigma_max: float
    prediction_type: str = "eps"
    family: str = ""
    fingerprint: str = ""
    name: str = ""
    evaluate: Evaluate | None = None
    features: Callable[[Tensor], Tensor] | None = None
    rivals: Callable[[int], dict[str, Rival]] | None = None
    signature: str = ""

    @property
    def identity(self) -> Identity:
        """The checkpoint, as a run asks for it."""
        return Identity(self.family, self.fingerprint, self.signature)

    @property
    def flow(self) -> bool:
        return self.prediction_type == "flow"

    def spec(self, solver: Solver | str, times: Tensor, guidance: float, **more: Any) -> Spec:
        """A file's description of something fitted to this."""
        own = {"model_family": self.family, "model_fingerprint": self.fingerprint, "model_name": self.name}
        own["model_signature"] = self.signature
        kind = {"prediction_type": self.prediction_type, "guidance": guidance}
        return Spec.on(solver, times, **own, **kind, **more)


def load(factory: str, guidance: float) -> Target:
    """Call `module:function` with the guidance scale. Raises ValueError saying what is wrong with it."""
    module, _, function = factory.partition(":")
    if not module or not function:
        raise ValueError(f"--model is {factory!r}: give module:function, as {DEMO}")
    try:
        made: Any = getattr(importlib.import_module(module), function)(guidance)
    except TypeError as error:
        raise ValueError(f"--model {factory}: {function}(guidance) could not be called: {error}") from error
    except Exception as error:  # whatever a user's module raises, with its place
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"({last.filename}, line {last.lineno})"
        raise ValueError(f"--model {factory}: {type(error).__name__}: {error} {where}") from error
    if not isinstance(made, Target):
        raise ValueError(
            f"--model {factory}: it gives a {type(made).__name__}, not an amed.fit.target.Target"
        )
    return made
