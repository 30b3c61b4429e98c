"""How far end states are from the reference and from the data, with bootstrap intervals."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amed.fit.measures import Statistics, frechet
from demo import model as demo
from demo.features import Features

RESAMPLES, LEVEL = 50, 0.9
DIRECTIONS = 128


class _Enough(Exception):
    """The U-Net has come to its middle; the way up is not needed."""


class Bottleneck:
    """A second set of features: the demo U-Net's own middle block at sigma 0.2, means over the pixels, `[B,
    128]`."""

    def __init__(self, denoiser: demo.Denoiser, sigma: float = 0.2):
        self.denoiser, self.sigma = denoiser, sigma

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.of(part) for part in images.split(64)])

    def of(self, images: Tensor) -> Tensor:
        unet: nn.Module = self.denoiser.inner_model
        scale = (self.sigma**2 + demo.SIGMA_DATA**2) ** 0.5
        x = (images / scale).to(unet.input.weight.dtype)
        noise = torch.full((len(x),), self.sigma).log() / 4
        seen: list[Tensor] = []

        def after_middle(h: Tensor) -> Tensor:
            seen.append(h.float().mean(dim=(2, 3)))
            raise _Enough

        with suppress(_Enough):
            unet(x, noise, torch.full((len(x),), demo.UNCONDITIONAL), after_middle)
        return seen[0]


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two sets of as many points `[n, d]`, along `directions` `[d, k]`."""
    return sliced(a @ directions, b @ directions)


def sliced(a: Tensor, b: Tensor) -> float:
    """The same from projections `[n, k]`."""
    return float((a.sort(dim=0).values - b.sort(dim=0).values).square().mean().sqrt())


@dataclass(frozen=True)
class Measured:
    """One measure: its value, and what it is on every bootstrap resample of the noises `[RESAMPLES]`."""

    value: float
    resampled: Tensor

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 90 % of the resamples, moved by their mean's distance from the value: a Frechet
        distance of a resample is biased upwards. Never below 0."""
        if not len(self.resampled):
            return self.value, self.value
        moved = self.resampled - self.resampled.mean() + self.value
        low, high = torch.quantile(
            moved, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=moved.dtype)
        ).tolist()
        return max(low, 0.0), high

    @classmethod
    def of(cls, measure: Callable[[Tensor], float], count: int, resamples: int = RESAMPLES) -> "Measured":
        """`measure(rows)` on all rows, and on resamples drawn with replacement, the same ones for every
        solver."""
        generator = torch.Generator().manual_seed(1)
        draws = [torch.randint(count, (count,), generator=generator) for _ in range(resamples)]
        return cls(
            measure(torch.arange(count)), torch.tensor([measure(d) for d in draws], dtype=torch.float64)
        )


class Ruler:
    """Measures end states against one set of reference images, noise by noise."""

    def __init__(self, reference: Tensor, denoiser: demo.Denoiser, resamples: int = RESAMPLES):
        self.reference, self.resamples = reference, resamples
        self.classifier, self.bottleneck = Features(), Bottleneck(denoiser)
        self.features = self.classifier(reference).double()
        self.second = Statistics.of(self.bottleneck(reference))
        generator = torch.Generator().manual_seed(2)
        directions = torch.randn(reference[0].numel(), DIRECTIONS, generator=generator)
        self.directions = directions / directions.norm(dim=0)
        self.projected = reference.flatten(1) @ self.directions

    def measure(self, images: Tensor) -> dict[str, Measured]:
        """rmse_ref, fd_ref, fd_data, swd (to the reference images) with intervals; fd_ref_unet without."""
        count = len(images)
        squares = (images - self.reference).double().square().flatten(1).mean(1)
        features = self.classifier(images).double()
        projected = images.flatten(1) @ self.directions

        def over(measure: Callable[[Tensor], float]) -> Measured:
            return Measured.of(measure, count, self.resamples)

        return {
            "rmse_ref": over(lambda rows: float(squares[rows].mean().sqrt())),
            "fd_ref": over(
                lambda rows: frechet(Statistics.of(features[rows]), Statistics.of(self.features[rows]))
            ),
            "fd_data": over(lambda rows: frechet(Statistics.of(features[rows]), self.classifier.data)),
            "swd": over(lambda rows: sliced(projected[rows], self.projected[rows])),
            "fd_ref_unet": Measured(
                frechet(Statistics.of(self.bottleneck(images)), self.second), torch.empty(0)
            ),
        }
