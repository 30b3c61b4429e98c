"""The target of a fit: a model, and a function that draws samples for it."""

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
Draw = Callable[[torch.Generator, int], tuple[Tensor, dict[str, Any]]]  # (generator, n) -> (noise, args)
Rival = Callable[[Denoiser, Tensor, dict[str, Any]], Tensor]  # (model, noise [n, ...], args) -> end states


class CachedError(ValueError):
    """Raised when a cache answers in place of the model, e.g. that of a node which skips steps.

    Errors measured on its answers say nothing about the model, so `fit` does not save the current fit. The
    message names the cause and says what to do."""


def seeded(seed: int) -> torch.Generator:
    """Return a random generator for any whole number as seed, of which the low 64 bits count."""
    return torch.Generator().manual_seed(seed % 2**64)


@dataclass(frozen=True)
class Target:
    """A model to fit a sampler to: how to call it, how to draw noise for it, and what identifies it."""

    model: Denoiser  # (x, sigma, **args) -> denoised, with guidance applied
    draw: Draw  # (generator, n) -> (unit noise `[n, ...]`, the model's args)
    sigma_min: float  # lowest noise level
    sigma_max: float  # highest noise level
    prediction_type: str = "eps"  # "flow": other schedules are searched, and no first step is analytic
    family: str = ""  # kind of model, for the file, e.g. "sd15"
    fingerprint: str = ""  # of the checkpoint, for the file
    name: str = ""  # of the checkpoint, for people
    evaluate: Evaluate | None = None  # gives the bottleneck and guidance's halves; None: denoised only
    features: Callable[[Tensor], Tensor] | None = None  # end states -> `[n, F]`, for Fréchet distances
    # nfe -> the host's solvers by name, to compare with. None: compare.usual_rivals.
    rivals: Callable[[int], dict[str, Rival]] | None = None
    signature: str = ""  # of the checkpoint, for the file; survives quantisation

    @property
    def identity(self) -> Identity:
        """What predictors for the checkpoint are found by.

        It is the kind of model (family), a hash of the weights (fingerprint), and a signature of the weights
        that quantisation does not change."""
        return Identity(self.family, self.fingerprint, self.signature)

    @property
    def flow(self) -> bool:
        """Whether this is a flow-matching model."""
        return self.prediction_type == "flow"

    def spec(self, solver: Solver | str, times: Tensor, guidance: float, **fields: Any) -> Spec:
        """Return the header (Spec) of a predictor file for this model; `fields`: further fields of it."""
        return Spec.on(
            solver,
            times,
            model_family=self.family,
            model_fingerprint=self.fingerprint,
            model_name=self.name,
            model_signature=self.signature,
            prediction_type=self.prediction_type,
            guidance=guidance,
            **fields,
        )


def load(factory: str, guidance: float) -> Target:
    """Return the Target that a user's function makes.

    Args:
        factory: "module:function", as given to `--model`.
        guidance: guidance scale; the only argument of the function.

    Raises:
        ValueError: the function is missing, fails, or returns something else; the message says which.
    """
    module, _, function = factory.partition(":")
    if not module or not function:
        raise ValueError(f"--model is {factory!r}: give module:function, e.g. {DEMO}")
    try:
        target: Any = getattr(importlib.import_module(module), function)(guidance)
    except TypeError as error:
        raise ValueError(
            f"--model {factory}: {function}(guidance) could not be called ({error}): define it with one "
            "argument, the guidance scale"
        ) from error
    except Exception as error:  # whatever a user's module raises, with its place
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"--model {factory} failed with {type(error).__name__}: {error} ({last.filename}, line "
            f"{last.lineno}); correct the function"
        ) from error
    if not isinstance(target, Target):
        raise ValueError(
            f"--model {factory} returns a {type(target).__name__}: return an amed.fit.target.Target"
        )
    return target
