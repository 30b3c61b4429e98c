"""Measures of how far images are from the reference's and from the data, with bootstrap intervals."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amed.fit.measures import Statistics, frechet
from demo import model as demo
from demo.features import Features

RESAMPLES, LEVEL = 50, 0.9  # number of bootstrap resamples; share of them inside an interval
DIRECTIONS = 128  # of the sliced Wasserstein distance


class _Enough(Exception):
    """Exception to stop the U-Net after its middle block, whose output serves as image features."""


class Bottleneck:
    """Image features for a second Fréchet distance, from the demo U-Net's middle block at sigma 0.2.

    They are averaged over pixels. Call it with images `[B, 3, 32, 32]` for features `[B, 128]`."""

    def __init__(self, denoiser: demo.Denoiser, sigma: float = 0.2):
        self.denoiser, self.sigma = denoiser, sigma

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.of(part) for part in images.split(64)])

    def of(self, images: Tensor) -> Tensor:
        """Return the U-Net's middle-block features `[B, 128]` of one batch of images."""
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
    """Return the sliced 2-Wasserstein distance of two equally large sets of points.

    Args:
        a, b: the sets of points, `[n, d]`.
        directions: unit vectors to project the points on, `[d, k]`."""
    return sliced(a @ directions, b @ directions)


def sliced(a: Tensor, b: Tensor) -> float:
    """Return the sliced 2-Wasserstein distance of two sets of n points, given their projections `[n, k]`.

    The projections are those on k random directions."""
    return float((a.sort(dim=0).values - b.sort(dim=0).values).square().mean().sqrt())


@dataclass(frozen=True)
class Measured:
    """The value of one measure of a set of images, e.g. its error, with its bootstrap resamples."""

    value: float
    resampled: Tensor  # [RESAMPLES], the measure on each bootstrap resample of the noises; may be empty

    @property
    def interval(self) -> tuple[float, float]:
        """The 90 % interval of the measured value, from its bootstrap resamples; never below 0.

        The resamples are shifted so that their mean is the value, because some measures, e.g. the Fréchet
        distance, are larger on a resample."""
        if not len(self.resampled):
            return self.value, self.value
        moved = self.resampled - self.resampled.mean() + self.value
        low, high = torch.quantile(
            moved, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=moved.dtype)
        ).tolist()
        return max(low, 0.0), high

    @classmethod
    def of(cls, measure: Callable[[Tensor], float], count: int, resamples: int = RESAMPLES) -> "Measured":
        """Compute a measure of `count` images, and the same on bootstrap resamples of the images.

        `measure` is called with the indices `[count]` of the images to include. The resamples are the same
        for every solver."""
        generator = torch.Generator().manual_seed(1)
        resampled_rows = [torch.randint(count, (count,), generator=generator) for _ in range(resamples)]
        return cls(
            measure(torch.arange(count)),
            torch.tensor([measure(d) for d in resampled_rows], dtype=torch.float64),
        )


class Ruler:
    """Measures the distances of images to reference images of the same noises, e.g. the error."""

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
        """Return the error, Fréchet distances and sliced Wasserstein distance (`swd`) of images, by name.

        All are distances to the reference images except `fd_data`, which is to the data. All have bootstrap
        resamples except `fd_ref_unet`, the Fréchet distance on U-Net features."""
        count = len(images)
        squares = (images - self.reference).double().square().flatten(1).mean(1)
        features = self.classifier(images).double()
        projected = images.flatten(1) @ self.directions

        def measured(measure: Callable[[Tensor], float]) -> Measured:
            return Measured.of(measure, count, self.resamples)

        return {
            "rmse_ref": measured(lambda rows: float(squares[rows].mean().sqrt())),
            "fd_ref": measured(
                lambda rows: frechet(Statistics.of(features[rows]), Statistics.of(self.features[rows]))
            ),
            "fd_data": measured(lambda rows: frechet(Statistics.of(features[rows]), self.classifier.data)),
            "swd": measured(lambda rows: sliced(projected[rows], self.projected[rows])),
            "fd_ref_unet": Measured(
                frechet(Statistics.of(self.bottleneck(images)), self.second), torch.empty(0)
            ),
        }
