"""A classifier of the avatars' attributes, and the features of their Fréchet distance: its last activations.

    python -m demo.avatars.features   # train it again on the data of `demo.data avatars32`

The file also contains the mean and covariance of the data's features."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amed.fit.measures import Statistics

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


class Features:
    """The trained classifier of avatars.

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
        return torch.cat([self.net.activations(p.float()) * self.net.scale for p in images.split(256)])

    @torch.no_grad()
    def read(self, images: Tensor) -> list[dict[str, str]]:
        """Return what the classifier sees in each image `[B, 3, 32, 32]`: attribute to value."""
        logits = torch.cat([self.net(part.float()) for part in images.split(256)])
        best = {a: logits[:, span].argmax(dim=1) + span.start for a, span in SPANS.items()}
        return [{a: VALUES[int(best[a][i])] for a in SPANS} for i in range(len(images))]


def train(steps: int = 2500, batch: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Train the classifier on slightly noisy and shifted images.

    Returns the tensors to save: the weights in half precision, and the mean and covariance of the images'
    features. Prints the share of held-out images whose values it finds."""
    images, labels = data.load()
    seen, held = slice(0, len(images) - HELD_OUT), slice(len(images) - HELD_OUT, None)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = Classifier()
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        pick = torch.randint(len(images[seen]), (batch,), generator=generator)
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        x = torch.roll(images[pick], shift, dims=(2, 3))
        loss = loss_of(net(x + 0.05 * torch.randn(x.shape, generator=generator)), labels[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss:.3f}", flush=True)
    net.eval().requires_grad_(False)
    with torch.no_grad():
        logits = torch.cat([net(part) for part in images[held].split(256)])
        for attribute, span in SPANS.items():
            shown = labels[held, span].sum(dim=1) > 0
            right = logits[shown, span].argmax(dim=1) == labels[held][shown, span].argmax(dim=1)
            print(f"{attribute}: {right.float().mean():.1%} of {len(right)} held-out images", flush=True)
        net.scale.copy_(1 / torch.cat([net.activations(part) for part in images.split(256)]).std(dim=0))
        half = {k: v.half() for k, v in net.state_dict().items()}
        net.load_state_dict(half)
        features = torch.cat([net.activations(part) * net.scale for part in images.split(256)])
    statistics = Statistics.of(features)
    return half | {"data.mean": statistics.mean.float(), "data.cov": statistics.cov.float()}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    save_file(train(), WEIGHTS)
    print(WEIGHTS)
