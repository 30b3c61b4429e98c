"""Measurements: a counter of evaluations around the model, RMSE and Fréchet distance."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..double import as_double
from ..kdiffusion import sample
from ..loop import Denoiser, Evaluate, denoised_only
from ..recipes import Predictor, Solver


class Counter(nn.Module):
    """A denoiser that counts its calls.

    Args:
        model: the denoiser.
        on_call: called after each call, with its number of samples.

    Attributes:
        evaluations: number of calls.
        rows: number of samples in all calls.
    """

    def __init__(self, model: Denoiser, on_call: Callable[[int], None] = lambda rows: None):
        super().__init__()
        self.model, self.evaluations, self.rows, self.on_call = model, 0, 0, on_call

    def forward(self, x: Tensor, *args: Any, function: Any = None, **kwargs: Any) -> Any:
        self.evaluations += 1
        self.rows += len(x)
        denoised = (function or self.model)(x, *args, **kwargs)
        self.on_call(len(x))
        return denoised

    @property
    def halves(self) -> Any:
        """The model's `halves` method, with its calls counted; None if the model has none.

        Besides the guided image, it returns the conditional and the unconditional one."""
        method: Any = getattr(self.model, "halves", None)
        return method and partial(Counter.forward, self, function=method)

    @property
    def conditional(self) -> Any:
        """The model's `conditional` method, with its calls counted; None if the model has none.

        It returns the conditional image alone, in one network pass."""
        method: Any = getattr(self.model, "conditional", None)
        return method and partial(Counter.forward, self, function=method)


def rmse(x: Tensor, reference: Tensor) -> float:
    """Return the root mean square of `x - reference` over all elements."""
    return float((as_double(x) - as_double(reference)).square().mean().sqrt())


@dataclass(frozen=True)
class Statistics:
    """The mean and covariance of image features, for a Fréchet distance (as in FID)."""

    mean: Tensor  # `[F]`, float64 on the CPU
    cov: Tensor  # `[F, F]`, float64 on the CPU

    @classmethod
    def of(cls, features: Tensor) -> "Statistics":
        """Return the mean and covariance of the image features `[n, F]` of n images.

        Raises:
            ValueError: fewer than 2 rows, or a value is not finite.
        """
        features = as_double(features)
        if len(features) < 2 or not features.isfinite().all():
            raise ValueError(
                f"a Fréchet distance needs at least 2 rows of finite features, got {tuple(features.shape)}: "
                "compare more images, and check them for NaN"
            )
        return cls(features.mean(dim=0), torch.cov(features.T))


def frechet(a: Statistics, b: Statistics) -> float:
    """Return the Fréchet distance of two Gaussians: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))."""
    values, vectors = torch.linalg.eigh(a.cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def run(
    model: Denoiser, x: Tensor, sigmas: Tensor, solver: Solver, extra_args: dict[str, Any] | None = None, *,
    predictor: Predictor | Any = None, afs: bool = False, evaluate: Evaluate = denoised_only, batch: int = 64,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, int]:  # fmt: skip
    """Sample images from many noises, in batches.

    Args:
        model: the denoiser.
        x: unit noise `[n, ...]`.
        sigmas: falling noise levels.
        solver: the solver that runs.
        extra_args: arguments of the model; tensors `[n, ...]` among them are split with the noise.
        predictor: gives the solver's fitted constants; None: the solver runs unfitted.
        afs: whether the first step is analytic.
        evaluate: calls the model once; default: for the denoised image only.
        batch: most samples in one call of the model.
        done: called after each batch with the number of samples so far; may raise to stop.

    Returns:
        The end states `[n, ...]`, and the number of evaluations that the last batch took.
    """
    counter, ends = Counter(model), []
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        args = {k: cut(v, part) for k, v in (extra_args or {}).items()}
        counter.evaluations = 0
        start_x = x[part] * sigmas[0].to(x)
        ends.append(sample(counter, start_x, sigmas, solver, args, disable=True, predictor=predictor, afs=afs,
                           evaluate=evaluate))  # fmt: skip
        done(min(start + batch, len(x)))
    return torch.cat(ends), counter.evaluations


def cut(value: Any, part: slice) -> Any:
    """Return a slice of the samples of a tensor, or of all tensors in a nested dict; else `value` itself."""
    if isinstance(value, dict):
        return {k: cut(v, part) for k, v in value.items()}
    return value[part] if isinstance(value, Tensor) else value
