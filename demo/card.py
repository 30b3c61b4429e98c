"""Measure the demo model: `python -m demo.card` writes demo/samples.png and prints the figures of its card.

These are the Fréchet distance of 512 samples (no category, 60 evaluations) to the training data, that of
512 random training images for comparison, and the distance of samples to their nearest training image, which
shows whether the model draws or copies."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from amed.evaluate import Guided
from amed.fit.measures import Statistics, frechet, run

from . import data
from . import model as demo
from .features import Features
from .measuring import REFERENCE
from .rows import tile
from .target import categories

COUNT = 512


def grid(images: Tensor, columns: int, scale: int = 2) -> Image.Image:
    """Return images `[n, 3, 32, 32]` in [-1, 1] as a grid, row by row."""
    side = 32 * scale + 2
    page = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "white")
    for i, image in enumerate(images):
        page.paste(tile(image, 32 * scale), (i % columns * side, i // columns * side))
    return page


def sampled(denoiser: demo.Denoiser, label: Tensor, guidance: float, seed: int) -> Tensor:
    """Return one image of the demo model per label, `[n, 3, 32, 32]`, sampled with 60 evaluations."""
    noise = torch.randn(len(label), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    setting, args = REFERENCE, categories(label)
    return run(Guided(denoiser, guidance), noise, setting.sigmas(), setting.solver, args)[0]


def main() -> None:
    denoiser, features = demo.load_denoiser(), Features()
    no_label, category_labels = (
        torch.full((COUNT,), demo.UNCONDITIONAL),
        torch.arange(10).repeat_interleave(2),
    )
    samples = sampled(denoiser, no_label, 1.0, 0)
    rows = [
        samples[:40],
        sampled(denoiser, category_labels, 1.0, 1),
        sampled(denoiser, category_labels, 2.0, 1),
    ]
    grid(torch.cat(rows), 20).save(Path(__file__).parent / "samples.png")
    print(f"FD to data, {COUNT} samples: {frechet(Statistics.of(features(samples)), features.data):.2f}")
    if data.DEFAULT_FILE.is_file():
        images, _ = data.load()
        pick = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:COUNT]
        print(
            f"FD to data, {COUNT} training images: "
            f"{frechet(Statistics.of(features(images[pick])), features.data):.2f}"
        )
        with_mirrored = torch.cat([images, images.flip(-1)]).flatten(1)
        nearest = (
            torch.cdist(samples.flatten(1), with_mirrored).min(dim=1).values / with_mirrored.shape[1] ** 0.5
        )
        between = torch.cdist(images.flatten(1), with_mirrored)
        diagonal = torch.arange(len(images))
        between[diagonal, diagonal] = between[diagonal, diagonal + len(images)] = torch.inf
        between = between.min(dim=1).values / with_mirrored.shape[1] ** 0.5
        print(
            f"RMS distance to the nearest training image: samples {nearest.median():.3f} (median), "
            f"training images among themselves {between.median():.3f}"
        )


if __name__ == "__main__":
    main()
