"""The features of the demo's Fréchet distance: the last 64 activations of a classifier of emoji categories.

    python -m demo.features          # train it again on the data of demo.data, about 3 minutes on 2 cores

Each feature is scaled to unit variance over the data. The file also contains the data's mean and covariance.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amed.fit.measures import Statistics

from . import data

WEIGHTS = Path(__file__).parent / "features.safetensors"


class Classifier(nn.Module):
    """A small classifier: images `[B, 3, 32, 32]` in [-1, 1] to category logits `[B, 10]`."""

    def __init__(self):
        super().__init__()
        widths = (3, 32, 64, 96, 64)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, padding=1, stride=1 if a == 3 else 2), nn.GroupNorm(8, b), nn.SiLU()
                )
                for a, b in zip(widths, widths[1:])
            )
        )
        self.head = nn.Linear(64, len(data.CATEGORIES))
        self.register_buffer("scale", torch.ones(64))

    def features(self, x: Tensor) -> Tensor:
        """Return the last scaled activations `[B, 64]` before the logits, for images `[B, 3, 32, 32]`."""
        return self.layers(x).mean(dim=(2, 3)) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class TrainedFeatures:
    """A trained classifier whose features a Fréchet distance compares.

    Call it with images `[B, 3, 32, 32]` in [-1, 1] for features `[B, 64]`. `data` holds the mean and
    covariance of the training images' features.

    Args:
        net: the classifier, untrained; has `features(images)`.
        file: its weights, with that mean and covariance, as `statistics_of` returns them."""

    def __init__(self, net: nn.Module, file: Path):
        tensors = {k: v.float() for k, v in load_file(file).items()}
        self.data = Statistics(tensors.pop("data.mean").double(), tensors.pop("data.cov").double())
        self.net = net
        self.net.load_state_dict(tensors)
        self.net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.net.features(part.float()) for part in images.split(256)])


class Features(TrainedFeatures):
    """The features of the emoji's Fréchet distance: those of a classifier of their categories."""

    def __init__(self, file: Path = WEIGHTS):
        super().__init__(Classifier(), file)


def optimise(
    net: nn.Module,
    draw: Callable[[], tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    shift: int,
    generator: torch.Generator,
) -> None:
    """Train a classifier on slightly noisy and shifted images, with AdamW and one cycle of its rate.

    Args:
        net: the classifier; in eval mode and frozen afterwards.
        draw: () -> (images `[B, 3, 32, 32]` in [-1, 1], labels), a new batch.
        loss_of: (logits, labels) -> loss.
        steps: number of batches.
        shift: images are moved by up to so many pixels.
        generator: of the shifts and the noise."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        images, labels = draw()
        moves = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
        x = torch.roll(images, moves, dims=(2, 3))
        loss = loss_of(net(x + 0.05 * torch.randn(x.shape, generator=generator)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss:.3f}", flush=True)
    net.eval().requires_grad_(False)


@torch.no_grad()
def statistics_of(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Scale a trained classifier's features to unit variance over the images `[N, 3, 32, 32]`.

    Returns the tensors to save: the weights in half precision, and the mean and covariance of the images'
    features."""

    def features() -> Tensor:
        return torch.cat([net.features(part) for part in images.split(256)])

    net.scale.copy_(1 / features().std(dim=0))
    half = {k: v.half() for k, v in net.state_dict().items()}
    net.load_state_dict(half)
    statistics = Statistics.of(features())
    return half | {"data.mean": statistics.mean.float(), "data.cov": statistics.cov.float()}


def train(steps: int = 1500, batch: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Train the emoji classifier with cross-entropy on mirrored images; return the tensors to save."""
    images, labels = data.load()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = Classifier()

    def draw() -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(images), (batch,), generator=generator)
        return data.mirrored(images[pick], labels[pick], generator), labels[pick]

    loss_of = partial(F.cross_entropy, label_smoothing=0.1)
    optimise(net, draw, loss_of, steps, 2, generator)
    return statistics_of(net, images)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    save_file(train(), WEIGHTS)
    print(WEIGHTS)
