"""Measuring honestly: evaluations counted around the model, error to a converged reference, Fréchet
distance."""

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
    """A denoiser that counts: `evaluations` (calls one after the other) and `rows` (samples in them).
    `heard(samples)`: called after each of them."""

    def __init__(self, model: Denoiser, heard: Callable[[int], None] = lambda rows: None):
        super().__init__()
        self.model, self.evaluations, self.rows, self.heard = model, 0, 0, heard

    def forward(self, x: Tensor, *args: Any, ask: Any = None, **kwargs: Any) -> Any:
        self.evaluations += 1
        self.rows += len(x)
        seen = (ask or self.model)(x, *args, **kwargs)
        self.heard(len(x))
        return seen

    @property
    def halves(self) -> Any:
        """The model's own, counted (see amed.evaluate.asked); None where it has none."""
        own: Any = getattr(self.model, "halves", None)
        return own and partial(Counter.forward, self, ask=own)

    @property
    def conditional(self) -> Any:
        """The same for the conditional half alone."""
        own: Any = getattr(self.model, "conditional", None)
        return own and partial(Counter.forward, self, ask=own)


def rmse(x: Tensor, reference: Tensor) -> float:
    """Root of the mean squared difference, over everything."""
    return float((as_double(x) - as_double(reference)).square().mean().sqrt())


@dataclass(frozen=True)
class Statistics:
    """A Gaussian fitted to features: mean `[F]`, covariance `[F, F]`, float64 on the CPU."""

    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Statistics":
        """From features `[n, F]`. Raises ValueError for fewer than 2 rows or values that are not finite."""
        features = as_double(features)
        if len(features) < 2 or not features.isfinite().all():
            raise ValueError(f"statistics need at least 2 finite rows, got {tuple(features.shape)}")
        return cls(features.mean(dim=0), torch.cov(features.T))


def frechet(a: Statistics, b: Statistics) -> float:
    """Fréchet distance between two Gaussians: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))."""
    values, vectors = torch.linalg.eigh(a.cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def run(
    model: Denoiser, x: Tensor, sigmas: Tensor, solver: Solver, extra_args: dict[str, Any] | None = None, *,
    predictor: Predictor | Any = None, afs: bool = False, evaluate: Evaluate = denoised_only, batch: int = 64,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, int]:  # fmt: skip
    """Sample many noises `x` `[n, ...]` (unit) in batches; tensors in extra_args `[n, ...]` are cut with
    them.

    Returns the end states and the evaluations of one batch, counted. `done(samples so far)` may raise to
    stop."""
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
    """Rows of a tensor, or of every tensor in a dict."""
    if isinstance(value, dict):
        return {k: cut(v, part) for k, v in value.items()}
    return value[part] if isinstance(value, Tensor) else value
