"""AMED-Plugin from outside: any sampler, better at few evaluations, without knowing its insides.

The paper's three numbers act on what a sampler is given. r places the noise levels of its list; a scales the
level that the model is told, c the direction that it answers (Zhou et al. 2024, section 3.3):

    D'(x, sigma) = x - c (x - D(x, a sigma))
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .constants import SAME, between, falling
from .double import as_double
from .loop import Denoiser
from .parameters import PARAMETERS

OUTSIDE = "outside"  # as a solver's name in a file
NAMES = ("c", "a")


class Outside:
    """The numbers of one sampler at one number of evaluations.

    `sigmas` `[n]`: the noise levels it is given, falling and positive; a 0 follows. `levels` `[E]`: those at
    which it then asks the model, in its order (a level may come twice); `c`, `a` `[E]`: of each such call.
    Raises ValueError for what does not fit."""

    wants_bottleneck, fixed = False, True

    def __init__(self, sigmas: Tensor, levels: Tensor, c: Tensor | None = None, a: Tensor | None = None):
        self.sigmas = falling(sigmas)
        self.levels = as_double(levels)
        count = len(self.levels)
        if (
            self.levels.ndim != 1
            or not count
            or not (self.levels > 0).all()
            or not self.levels.isfinite().all()
        ):
            raise ValueError(f"levels must be positive noise levels, one a call, got {self.levels.tolist()}")
        self.c, self.a = (
            torch.ones(count, dtype=torch.float64) if v is None else as_double(v) for v in (c, a)
        )
        for name in NAMES:
            value = getattr(self, name)
            if value.shape != (count,):
                raise ValueError(
                    f"{name} must have one value a call ({count}), got shape {tuple(value.shape)}"
                )
            PARAMETERS[name].check(value)
        order = sorted(set(self.levels.tolist()), reverse=True)
        alike = torch.stack([as_double(self.levels == level) for level in order])
        self.known = torch.tensor(order, dtype=torch.float64)
        pairs = torch.stack([self.c, self.a], dim=1)
        self.mean = alike @ pairs / alike.sum(dim=1, keepdim=True)

    @property
    def values(self) -> dict[str, Tensor]:
        """As a file has them."""
        return {"levels": self.levels, "c": self.c, "a": self.a}

    def at(self, number: int, sigma: float) -> tuple[float, float]:
        """c and a of call `number`, at the noise level `sigma`: its own where the call is at the level it was
        fitted at; on another list by its level, between those of the calls above and below."""
        if sigma <= 0:
            return 1.0, 1.0
        if number < len(self.levels) and abs(math.log(sigma / float(self.levels[number]))) < SAME:
            return float(self.c[number]), float(self.a[number])
        c, a = between(self.known, self.mean, sigma).tolist()
        return c, a


class Wrapped:
    """A denoiser as a sampler is to see it, for one run: the number of each call tells its c and a. Has the
    attributes of the denoiser.

    at(number, sigma) -> (c, a), as Outside.at. mask(): the inpainting mask of the latest call, or None. Where
    it is 0 the denoised image is the original, and the direction to it is not scaled."""

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


class Asking:
    """A denoiser for a host's own samplers: calls `model` with fixed arguments, whatever it is given, and has
    the attributes of `real`: those and no others, for a sampler may go by what there is."""

    def __init__(self, model: Denoiser, args: dict[str, Any], real: Any):
        self._model, self._args, self._real = model, args, real

    def __call__(self, x: Tensor, sigma: Tensor, **_extra_args: Any) -> Tensor:
        return self._model(x, sigma, **self._args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Memo:
    """A denoiser that remembers the calls of a run. A run that begins in the same way is answered from them
    up to where it differs: a sampler that draws no noise is a function of its answers.

    `run()` begins another; one that is to be remembered instead of the last: `run(keep=True)`."""

    def __init__(self, model: Denoiser):
        self._model, self.number, self.kept, self.keeps, self.same = (
            model,
            0,
            list[tuple[Tensor, ...]](),
            True,
            True,
        )

    def run(self, keep: bool = False) -> "Memo":
        self.number, self.keeps, self.same = 0, keep, not keep
        if keep:
            self.kept = []
        return self

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        number, self.number = self.number, self.number + 1
        if self.same and number < len(self.kept):
            seen, level, denoised = self.kept[number]
            if torch.equal(seen, x) and torch.equal(level, sigma):
                return denoised
        self.same = False
        denoised = self._model(x, sigma, **kwargs)
        if self.keeps:
            self.kept.append((x.clone(), sigma.clone(), denoised))
        return denoised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
