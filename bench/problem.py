"""The thing to solve: the demo model at one guidance scale, on numbered noises, with evaluations counted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amed.evaluate import Guided
from amed.fit.measures import Counter, cut
from demo import model as demo
from demo.target import target

SIGMA_MIN, SIGMA_MAX = demo.SIGMA_MIN, demo.SIGMA_MAX
BATCH = 32


class Remembering(Counter):
    """Counts, and remembers the first evaluation of a noise, which is the same for every solver: it is
    counted each time, computed once while `remembers`."""

    def __init__(self, model: Guided):
        super().__init__(model)
        self.remembers = True
        self.first: list[tuple[Tensor, float, Tensor]] = []

    @property
    def passes(self) -> int:
        """Rows through the network, two a sample under guidance."""
        return self.rows * (1 if self.model.scale == 1 else 2)

    def forward(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        level = float(sigma[0].detach())
        if level < 0.999 * SIGMA_MAX or not self.remembers:
            return super().forward(x, sigma, **kwargs)
        for noise, at, denoised in self.first:
            if at == level and x.shape == noise.shape and torch.equal(x, noise):
                self.evaluations, self.rows = self.evaluations + 1, self.rows + len(x)
                return denoised
        self.first.append((x.clone(), level, super().forward(x, sigma, **kwargs)))
        return self.first[-1][2]


@dataclass(frozen=True)
class Ends:
    """End states `[n, 3, 32, 32]` and the evaluations of one batch, counted."""

    images: Tensor
    nfe: int


class Problem:
    """`count` noises of a seed and their arguments, for the demo model (`target`) at a guidance scale."""

    def __init__(self, guidance: float, count: int, seed: int, dtype: torch.dtype = torch.float32):
        self.guidance, self.count, self.seed = guidance, count, seed
        self.target = target(guidance, dtype=dtype)
        self.guided = self.target.model
        self.model = Remembering(self.guided)
        self.noise, self.args = self.target.draw(torch.Generator().manual_seed(seed), count)

    @property
    def denoiser(self) -> demo.Denoiser:
        return self.guided.model

    def part(self, start: int, stop: int) -> "Problem":
        """The same with some of its noises alone."""
        part, rows = object.__new__(Problem), slice(start, stop)
        noise = self.noise[rows]
        part.__dict__ = {**self.__dict__, "count": len(noise), "noise": noise, "args": cut(self.args, rows)}
        return part

    def first(self, count: int) -> "Problem":
        """The same with its first `count` noises alone."""
        return self.part(0, count)

    def run(self, sample: Callable[[nn.Module, Tensor, dict[str, Any]], Tensor], batch: int = BATCH) -> Ends:
        """`sample(model, unit noise, arguments)` on every batch. Raises RuntimeError if the batches did not
        cost the same."""
        ends, costs = [], set()
        for start in range(0, self.count, batch):
            part = slice(start, start + batch)
            before = self.model.evaluations
            ends.append(sample(self.model, self.noise[part], cut(self.args, part)))
            costs.add(self.model.evaluations - before)
        if len(costs) != 1:
            raise RuntimeError(f"batches took different numbers of evaluations: {sorted(costs)}")
        return Ends(torch.cat(ends), costs.pop())
