"""The problem to solve: a demo model at one guidance scale on numbered noises, with evaluations counted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amed.evaluate import Guided
from amed.fit.measures import Counter, cut
from amed.fit.target import Target
from demo import model as demo
from demo.target import target

from .flow import flow_target, image

SIGMA_MIN, SIGMA_MAX = demo.SIGMA_MIN, demo.SIGMA_MAX
BATCH = 32


class Remembering(Counter):
    """Counts evaluations and network passes of the demo model, and caches each noise's first evaluation.

    All solvers start with the same evaluation, at the highest sigma. It is counted for each solver, but
    computed only once while `remembers` is True. A pass is one sample through the network."""

    def __init__(self, model: Guided, sigma_max: float = SIGMA_MAX):
        super().__init__(model)
        self.sigma_max, self.remembers, self.passes = sigma_max, True, 0
        self.first: list[tuple[Tensor, float, Tensor, int]] = []
        model.model.register_forward_pre_hook(self.count_passes)

    def count_passes(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the number of samples in a network call to `passes`; a forward pre-hook of the network."""
        self.passes += len(inputs[0])

    def forward(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        level = float(sigma[0].detach())
        if level < 0.999 * self.sigma_max or not self.remembers:
            return super().forward(x, sigma, **kwargs)
        for noise, known_level, denoised, passes in self.first:
            if known_level == level and x.shape == noise.shape and torch.equal(x, noise):
                self.evaluations, self.rows = self.evaluations + 1, self.rows + len(x)
                self.passes += passes
                return denoised
        before = self.passes
        denoised = super().forward(x, sigma, **kwargs)
        self.first.append((x.clone(), level, denoised, self.passes - before))
        return denoised


@dataclass(frozen=True)
class Ends:
    """The images at the end of a sampler's run, and what they cost."""

    images: Tensor  # [n, 3, 32, 32]
    nfe: int  # evaluations counted
    passes: int  # network passes per image, counted


class Problem:
    """A sampling task: a demo model at a guidance scale, with noises to start from.

    Args:
        guidance: guidance scale; 1, i.e. no guidance, for emoji32 as a flow model.
        count: number of noises.
        seed: seed of the noises.
        dtype: dtype of the network.
        flow: whether emoji32 is used as a flow model.
        make: makes the target of a guidance scale and dtype; default: emoji32."""

    def __init__(
        self,
        guidance: float,
        count: int,
        seed: int,
        dtype: torch.dtype = torch.float32,
        flow: bool = False,
        make: Callable[..., Target] = target,
    ):
        self.guidance, self.count, self.seed = guidance, count, seed
        self.target = flow_target(dtype) if flow else make(guidance, dtype=dtype)
        self.guided = self.target.model
        self.model = Remembering(self.guided, self.target.sigma_max)
        self.noise, self.args = self.target.draw(torch.Generator().manual_seed(seed), count)

    @property
    def denoiser(self) -> demo.Denoiser:
        """The demo model's denoiser, without guidance and not in flow form."""
        return self.guided.model.denoiser if self.target.flow else self.guided.model

    def part(self, start: int, stop: int) -> "Problem":
        """Return a copy of this sampling task with only the noises from `start` to `stop`."""
        part, rows = object.__new__(Problem), slice(start, stop)
        noise = self.noise[rows]
        part.__dict__ = {**self.__dict__, "count": len(noise), "noise": noise, "args": cut(self.args, rows)}
        return part

    def first(self, count: int) -> "Problem":
        """Return a copy of this sampling task with only the first `count` noises."""
        return self.part(0, count)

    def run(
        self,
        sample: Callable[[nn.Module, Tensor, dict[str, Any]], Tensor],
        batch: int = BATCH,
        end: float = 0.0,
    ) -> Ends:
        """Sample all noises in batches; return the images, the evaluations and the network passes per image.

        Args:
            sample: called as sample(model, noise, arguments) with noise of standard deviation 1; returns x at
                the end of the run.
            batch: number of noises per batch.
            end: the last noise level of the run, used to turn a flow model's x into the image.

        Raises RuntimeError if the batches took different numbers of evaluations or passes."""
        ends, costs = [], set()
        for start in range(0, self.count, batch):
            part = slice(start, start + batch)
            evaluations, passes = self.model.evaluations, self.model.passes
            ends.append(sample(self.model, self.noise[part], cut(self.args, part)))
            each = (self.model.passes - passes) / len(ends[-1])
            costs.add((self.model.evaluations - evaluations, each))
        if len(costs) != 1:
            raise RuntimeError(
                f"the batches took different numbers of evaluations or passes ({sorted(costs)}): "
                "choose a sampler of fixed cost"
            )
        images, (nfe, passes) = torch.cat(ends), costs.pop()
        return Ends(image(images, end) if self.target.flow else images, nfe, int(passes))
