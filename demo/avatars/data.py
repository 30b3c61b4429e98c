"""The training data of the avatar model: DiceBear avatars of eight styles, 32x32 RGB, with their attributes.

`python -m demo.data avatars32` draws them (needs Node.js); demo/README.md states their licences."""

import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .attributes import STYLES, encode
from .drawing import draw, drawn, install, options

DEFAULT_FILE = Path(__file__).parents[1] / "data" / "avatars32.safetensors"
COUNT = 24_000
CHUNK = 2_000  # images per start of Node.js


def build(count: int = COUNT, seed: str = "amed", folder: Path | None = None) -> dict[str, Tensor]:
    """Draw `count` avatars, in turn of each style.

    Returns `images` uint8 [N, 3, 32, 32] and `labels` uint8 [N, SIZE]: 1 at each value that an image shows.

    Raises:
        RuntimeError: if Node.js or npm is missing or fails."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            install(Path(temporary))
            return build(count, seed, Path(temporary))
    generator = random.Random(seed)
    images, labels = [], []
    for start in range(0, count, CHUNK):
        jobs = []
        for i in range(start, min(start + CHUNK, count)):
            values = drawn(generator, STYLES[i % len(STYLES)])
            jobs.append((values["style"], options(values, f"{seed}{i}")))
            labels.append(encode(list(values.values())).to(torch.uint8))
        images.extend(draw(jobs, folder))
        print(f"{len(images)} of {count} avatars", flush=True)
    return {"images": torch.from_numpy(np.stack(images)), "labels": torch.stack(labels)}


def load(file: Path = DEFAULT_FILE) -> tuple[Tensor, Tensor]:
    """Load the data set: images [N, 3, 32, 32] in [-1, 1] and attribute vectors [N, SIZE].

    Raises FileNotFoundError if it has not been built yet."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist: build it with `python -m demo.data avatars32`")
    data = load_file(file)
    return data["images"].float() / 127.5 - 1, data["labels"].float()
