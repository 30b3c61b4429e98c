"""AMED-Plugin around a sampler of a host or another pack, which stays a black box.

The paper's three constants act on the sampler's inputs: r places the noise levels of its schedule, a scales
the noise level that the model is given, and c scales the direction that the sampler gets back (Zhou et al.
2024, sec. 3.3):

    D'(x, sigma) = x - c (x - D(x, a sigma))
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .constants import SAME, fitted_sigmas, interpolated
from .double import as_double
from .loop import Denoiser
from .parameters import PARAMETERS

OUTSIDE = "outside"  # the solver's name in a predictor file
NAMES = ("c", "a")


class Outside:
    """A predictor for one of the host's own samplers (e.g. ComfyUI's), at one number of evaluations.

    Args:
        sigmas: `[n]`, the noise levels that the sampler is given, falling and positive, without the last 0.
        levels: `[E]`, the noise level of each call of the model by the sampler, in order. A level may occur
            twice.
        c: `[E]`, a factor on the direction x - denoised for each call of the model. Default: ones.
        a: `[E]`, a factor on the noise level that the model is given in each call. Default: ones.

    Raises:
        ValueError: A shape or value does not fit."""

    wants_bottleneck, fixed = False, True

    def __init__(self, sigmas: Tensor, levels: Tensor, c: Tensor | None = None, a: Tensor | None = None):
        self.sigmas = fitted_sigmas(sigmas)
        self.levels = as_double(levels)
        count = len(self.levels)
        if (
            self.levels.ndim != 1
            or not count
            or not (self.levels > 0).all()
            or not self.levels.isfinite().all()
        ):
            raise ValueError(
                "levels must be positive noise levels, one per call of the model, "
                f"but are {self.levels.tolist()}"
            )
        self.c, self.a = (
            torch.ones(count, dtype=torch.float64) if v is None else as_double(v) for v in (c, a)
        )
        for name in NAMES:
            value = getattr(self, name)
            if value.shape != (count,):
                raise ValueError(
                    f"the scale {name} must have one value per call of the model ({count}), "
                    f"but has shape {tuple(value.shape)}"
                )
            PARAMETERS[name].check(value)
        order = sorted(set(self.levels.tolist()), reverse=True)
        calls_at = torch.stack([as_double(self.levels == level) for level in order])
        pairs = torch.stack([self.c, self.a], dim=1)
        # for other levels: [D], the levels without repetition, falling; and [D, 2], the mean c and a at each
        self.distinct = torch.tensor(order, dtype=torch.float64)
        self.means = calls_at @ pairs / calls_at.sum(dim=1, keepdim=True)

    @property
    def values(self) -> dict[str, Tensor]:
        """The fitted tensors by their names in a predictor file, one value per model call: the noise levels,
        c (factor on the direction x - denoised) and a (factor on the noise level given to the model)."""
        return {"levels": self.levels, "c": self.c, "a": self.a}

    def at(self, number: int, sigma: float) -> tuple[float, float]:
        """Return c (factor on the direction x - denoised) and a (factor on the noise level that the model is
        given) for a call of the model by the sampler.

        Args:
            number: index of the call in the run, from 0.
            sigma: its noise level. If it differs from that of the fit, c and a are interpolated between the
                fitted levels above and below."""
        if sigma <= 0:
            return 1.0, 1.0
        if number < len(self.levels) and abs(math.log(sigma / float(self.levels[number]))) < SAME:
            return float(self.c[number]), float(self.a[number])
        c, a = interpolated(self.distinct, self.means, sigma).tolist()
        return c, a


class ScaledDenoiser:
    """A host's denoiser that applies a predictor's factors in each call: c to the direction x - denoised, and
    a to the noise level. It serves one run of the host's sampler, and has the denoiser's other attributes.

    Args:
        model: the host's denoiser, model(x, sigma, ...) -> denoised.
        at: function (index of the call, sigma) -> (c, a), e.g. `Outside.at`.
        mask: returns the inpainting mask of the latest call, or None. Where the mask is 0, the denoised image
            is the original one, and c is not applied."""

    def __init__(self, model: Denoiser, at: Callable[[int, float], tuple[float, float]],
                 mask: Callable[[], Tensor | None] = lambda: None):  # fmt: skip
        self._model, self._at, self._mask, self.levels = model, at, mask, list[float]()

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        level = float(sigma.flatten()[0])
        c, a = self._at(len(self.levels), level)
        self.levels.append(level)
        denoised = self._model(x, sigma if a == 1 else sigma * a, *args, **kwargs)
        mask = None if c == 1 else self._mask()
        if mask is not None:
            return torch.lerp(x, denoised.to(x.dtype), 1 + (c - 1) * mask.to(x))
        return denoised if c == 1 else torch.lerp(x, denoised.to(x.dtype), c)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class BoundDenoiser:
    """A denoiser that gives the model the same extra arguments in each call, for a host's samplers.

    Args:
        model: called as model(x, sigma, **args).
        args: the extra arguments; those that the sampler passes are ignored.
        real: the host's denoiser. The sampler sees exactly its attributes, which it may test with hasattr."""

    def __init__(self, model: Denoiser, args: dict[str, Any], real: Any):
        self._model, self._args, self._real = model, args, real

    def __call__(self, x: Tensor, sigma: Tensor, **_extra_args: Any) -> Tensor:
        return self._model(x, sigma, **self._args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Memo:
    """A denoiser that records the calls of one run, so that later runs need not repeat the same calls.

    A later run gets the recorded outputs until it makes a call with another input; from then on the model is
    called."""

    def __init__(self, model: Denoiser):
        self._model = model
        self.number = 0  # index of the next call in the current run
        self.calls = list[tuple[Tensor, ...]]()  # (x, sigma, denoised) of the recorded run
        self.records = True  # whether the current run is recorded
        self.same = True  # whether the current run has agreed with the recorded one so far

    def run(self, keep: bool = False) -> "Memo":
        """Begin a run of the host's sampler with this denoiser, and return the denoiser.

        Fits run the sampler many times with slightly different constants. Such runs begin with the same model
        calls, which are recorded once and then not repeated.

        Args:
            keep: True records the model calls of this run. False answers calls with recorded inputs from the
                record, up to the first call with another input."""
        self.number, self.records, self.same = 0, keep, not keep
        if keep:
            self.calls = []
        return self

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        number, self.number = self.number, self.number + 1
        if self.same and number < len(self.calls):
            recorded_x, recorded_sigma, denoised = self.calls[number]
            if torch.equal(recorded_x, x) and torch.equal(recorded_sigma, sigma):
                return denoised
        self.same = False
        denoised = self._model(x, sigma, **kwargs)
        if self.records:
            self.calls.append((x.clone(), sigma.clone(), denoised))
        return denoised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
