"""The features of the demo's Fréchet distance: the last 64 activations of a classifier of emoji categories.

    python -m demo.features          # train it again on the data of demo.data, about 3 minutes on 2 cores

Each feature is scaled to unit variance over the data. The file also contains the data's mean and covariance.
"""

import sys
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


class Features:
    """The trained network whose features the Fréchet distance compares: a classifier of emoji.

    Call it with images `[B, 3, 32, 32]` in [-1, 1] for features `[B, 64]`. `data` holds the mean and
    covariance of the training images' features."""

    def __init__(self, file: Path = WEIGHTS):
        tensors = {k: v.float() for k, v in load_file(file).items()}
        self.data = Statistics(tensors.pop("data.mean").double(), tensors.pop("data.cov").double())
        self.net = Classifier()
        self.net.load_state_dict(tensors)
        self.net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.net.features(part.float()) for part in images.split(256)])


def train(steps: int = 1500, batch: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Train the emoji classifier with cross-entropy on mirrored, shifted and slightly noisy images.

    Returns the tensors to save: the weights in half precision, and the mean and covariance of the
    images' features."""
    images, labels = data.load()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = Classifier()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        pick = torch.randint(len(images), (batch,), generator=generator)
        x = data.mirrored(images[pick], labels[pick], generator)
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        x = torch.roll(x, shift, dims=(2, 3)) + 0.05 * torch.randn(x.shape, generator=generator)
        logits = net(x)
        loss = F.cross_entropy(logits, labels[pick], label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            right = (logits.argmax(1) == labels[pick]).float().mean()
            print(f"step {step}: loss {loss:.3f}, {right:.0%} of this batch right", flush=True)
    net.eval().requires_grad_(False)
    features = net.features(images)
    net.scale.copy_(1 / features.std(dim=0))
    half = {k: v.half() for k, v in net.state_dict().items()}
    net.load_state_dict(half)
    statistics = Statistics.of(net.features(images))
    return half | {"data.mean": statistics.mean.float(), "data.cov": statistics.cov.float()}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    save_file(train(), WEIGHTS)
    print(WEIGHTS)
