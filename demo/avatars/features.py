"""A classifier of the avatars' attributes, and the features of their Fréchet distance: its last activations.

    python -m demo.avatars.features   # train it again on the data of `demo.data avatars32`

The file also contains the mean and covariance of the data's features."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..features import TrainedFeatures, optimise, statistics_of
from . import data
from .attributes import ATTRIBUTES, INDEX, SIZE, VALUES

WEIGHTS = Path(__file__).with_name("features.safetensors")
SPANS = {a: slice(INDEX[values[0]], INDEX[values[-1]] + 1) for a, values in ATTRIBUTES.items()}
HELD_OUT = 2_000  # the last images of the data set, which the training does not see


class Classifier(nn.Module):
    """A small classifier: images `[B, 3, 32, 32]` in [-1, 1] to logits of all values `[B, SIZE]`."""

    def __init__(self):
        super().__init__()
        widths = ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 64, 2))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1, stride=stride), nn.GroupNorm(8, b), nn.SiLU())
                for a, b, stride in widths
            )
        )
        self.mix = nn.Linear(64 * 16, 64)  # where on the image something is matters: glasses, a beard
        self.head = nn.Linear(64, SIZE)
        self.register_buffer("scale", torch.ones(64))

    def activations(self, x: Tensor) -> Tensor:
        """Return the last activations `[B, 64]` before the logits, for images `[B, 3, 32, 32]`."""
        return F.silu(self.mix(self.layers(x).flatten(1)))

    def features(self, x: Tensor) -> Tensor:
        """Return these activations, scaled."""
        return self.activations(x) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activations(x))


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, summed over attributes.

    Args:
        logits: `[B, SIZE]`.
        labels: `[B, SIZE]`, 1 at each value; an attribute without a value is left out."""
    total = logits.new_zeros(())
    for span in SPANS.values():
        shown = labels[:, span].sum(dim=1) > 0
        if shown.any():
            total = total + F.cross_entropy(logits[shown, span], labels[shown, span].argmax(dim=1))
    return total


class Features(TrainedFeatures):
    """The features of the avatars' Fréchet distance: those of a classifier of their attributes."""

    def __init__(self, file: Path = WEIGHTS):
        super().__init__(Classifier(), file)

    @torch.no_grad()
    def read(self, images: Tensor) -> list[dict[str, str]]:
        """Return what the classifier sees in each image `[B, 3, 32, 32]`: attribute to value."""
        logits = torch.cat([self.net(part.float()) for part in images.split(256)])
        best = {a: logits[:, span].argmax(dim=1) + span.start for a, span in SPANS.items()}
        return [{a: VALUES[int(best[a][i])] for a in SPANS} for i in range(len(images))]


def train(steps: int = 2500, batch: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Train the classifier of attributes; return the tensors to save.

    Prints the share of held-out images whose values it finds."""
    images, labels = data.load()
    seen, held = slice(0, len(images) - HELD_OUT), slice(len(images) - HELD_OUT, None)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = Classifier()

    def draw() -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(images[seen]), (batch,), generator=generator)
        return images[pick], labels[pick]

    optimise(net, draw, loss_of, steps, 1, generator)
    logits = torch.cat([net(part) for part in images[held].split(256)])
    for attribute, span in SPANS.items():
        shown = labels[held, span].sum(dim=1) > 0
        right = logits[shown, span].argmax(dim=1) == labels[held][shown, span].argmax(dim=1)
        print(f"{attribute}: {right.float().mean():.1%} of {len(right)} held-out images", flush=True)
    return statistics_of(net, images)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    save_file(train(), WEIGHTS)
    print(WEIGHTS)
