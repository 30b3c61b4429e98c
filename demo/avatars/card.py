"""Measure the avatar model: `python -m demo.avatars.card` writes samples.png and prints its figures.

Per attribute: the share of samples (guidance 3, 50 evaluations) in which the classifier of `features` finds
the value asked for; the Fréchet distance of the samples to the training data, and that of as many training
images; and the distance of samples to their nearest training image, which shows whether the model copies."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from amed import Solver, schedules
from amed.evaluate import Guided
from amed.fit.measures import Statistics, frechet, run

from ..card import grid
from . import data
from .attributes import ATTRIBUTE_OF, ATTRIBUTES, STYLES, encode
from .features import Features
from .model import SIGMA_MAX, SIGMA_MIN, Denoiser, load_denoiser
from .targets import arguments, prompts

GUIDANCE, EVALUATIONS = 3.0, 50
NEAREST = 64  # samples whose nearest training image is searched


def sampled(denoiser: Denoiser, asked: list[list[str]], guidance: float, seed: int) -> Tensor:
    """Return one image per prompt, `[n, 3, 32, 32]`, sampled with 50 evaluations."""
    noise = torch.randn(len(asked), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    sigmas = schedules.make("polynomial", EVALUATIONS + 1, SIGMA_MIN, SIGMA_MAX, 1.0)
    args = arguments(torch.stack([encode(values) for values in asked]))
    return run(Guided(denoiser, guidance), noise, sigmas, Solver("ipndm", 2), args)[0]


def found(asked: list[list[str]], seen: list[dict[str, str]]) -> dict[str, tuple[int, int]]:
    """Count per attribute how often the value that a prompt asks for is seen: (found, asked for)."""
    counts = dict.fromkeys(ATTRIBUTES, (0, 0))
    for values, read in zip(asked, seen):
        for value in values:
            attribute = ATTRIBUTE_OF[value]
            right, total = counts[attribute]
            counts[attribute] = right + (read[attribute] == value), total + 1
    return counts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.avatars.card", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=512, help="number of samples, a multiple of 128")
    count = parser.parse_args(argv).count
    denoiser, features = load_denoiser(), Features()
    asked = prompts(torch.Generator().manual_seed(1), count)
    samples = sampled(denoiser, asked, GUIDANCE, 1)
    rows = [samples[i : 16 * len(STYLES) : len(STYLES)][:16] for i in range(len(STYLES))]
    grid(torch.cat(rows), 16).save(Path(__file__).with_name("samples.png"))
    for attribute, (right, total) in found(asked, features.read(samples)).items():
        print(f"{attribute}: {right / total:.1%} of {total} found at guidance {GUIDANCE:g}")
    print(f"FD to data, {count} samples: {frechet(Statistics.of(features(samples)), features.data):.2f}")
    if not data.DEFAULT_FILE.is_file():
        return
    images, _ = data.load()
    pick = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    statistics = Statistics.of(features(images[pick]))
    print(f"FD to data, {count} training images: {frechet(statistics, features.data):.2f}")
    flat, scale = images.flatten(1), images[0].numel() ** 0.5
    nearest = torch.cdist(samples[:NEAREST].flatten(1), flat).min(dim=1).values / scale
    between = torch.cdist(flat[pick[:NEAREST]], flat)
    between[torch.arange(NEAREST), pick[:NEAREST]] = torch.inf
    between = between.min(dim=1).values / scale
    print(
        f"RMS distance to the nearest training image: samples {nearest.median():.3f} (median), "
        f"training images among themselves {between.median():.3f}"
    )


if __name__ == "__main__":
    main()
