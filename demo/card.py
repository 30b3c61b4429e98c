"""The demo model's card: `python -m demo.card` samples it, writes demo/samples.png and prints the figures.

Fréchet distance of 512 samples (no category, 60 evaluations) to the training data; the same number of
training images drawn at random for comparison; and how near the samples are to training images, to tell
drawing from copying."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from amed.evaluate import Guided
from amed.fit.measures import Statistics, frechet, run

from . import data
from . import model as demo
from .features import Features
from .fit import REFERENCE
from .rows import tile
from .target import categories

COUNT = 512


def grid(images: Tensor, columns: int, scale: int = 2) -> Image.Image:
    """Images `[n, 3, 32, 32]` in [-1, 1], row by row."""
    side = 32 * scale + 2
    page = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "white")
    for i, image in enumerate(images):
        page.paste(tile(image, 32 * scale), (i % columns * side, i // columns * side))
    return page


def sampled(denoiser: demo.Denoiser, label: Tensor, guidance: float, seed: int) -> Tensor:
    """One image a label, 60 evaluations."""
    noise = torch.randn(len(label), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    setting, args = REFERENCE, categories(label)
    return run(Guided(denoiser, guidance), noise, setting.sigmas(), setting.solver, args)[0]


def main() -> None:
    denoiser, features = demo.load_denoiser(), Features()
    none, each = torch.full((COUNT,), demo.UNCONDITIONAL), torch.arange(10).repeat_interleave(2)
    free = sampled(denoiser, none, 1.0, 0)
    rows = [free[:40], sampled(denoiser, each, 1.0, 1), sampled(denoiser, each, 2.0, 1)]
    grid(torch.cat(rows), 20).save(Path(__file__).parent / "samples.png")
    print(f"FD to data, {COUNT} samples: {frechet(Statistics.of(features(free)), features.data):.2f}")
    if data.DEFAULT_FILE.is_file():
        images, _ = data.load()
        pick = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:COUNT]
        print(
            f"FD to data, {COUNT} training images: "
            f"{frechet(Statistics.of(features(images[pick])), features.data):.2f}"
        )
        both = torch.cat([images, images.flip(-1)]).flatten(1)
        nearest = torch.cdist(free.flatten(1), both).min(dim=1).values / both.shape[1] ** 0.5
        own = torch.cdist(images.flatten(1), both)
        itself = torch.arange(len(images))
        own[itself, itself] = own[itself, itself + len(images)] = torch.inf
        own = own.min(dim=1).values / both.shape[1] ** 0.5
        print(
            f"RMS distance to the nearest training image: samples {nearest.median():.3f} (median), "
            f"training images among themselves {own.median():.3f}"
        )


if __name__ == "__main__":
    main()
