"""The paper's network g_phi: r, c, a of an interval from the U-Net's bottleneck, for each sample its own."""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .double import as_like


def pool(bottleneck: Tensor) -> Tensor:
    """The network's view of a bottleneck `[B, C, H, W]`: mean over channels, then 8x8, as `[B, 64]`."""
    return F.adaptive_avg_pool2d(bottleneck.mean(dim=1, keepdim=True), 8).flatten(1)


@lru_cache(maxsize=64)
def waves(times: tuple[float, ...], freqs: torch.dtype, dtype: torch.dtype, device: torch.device,
          inference: bool) -> Tensor:  # fmt: skip
    """Sines and cosines of numbers, `[n, 8]`, at the frequencies 1 to 1/10000 kept in the dtype `freqs`. They
    are the same in every run; a tensor made in inference mode is of no use outside, and has its own."""
    own = (10000.0 ** -torch.linspace(0, 1, 4)).to(device, freqs)
    angle = torch.stack([own * t for t in times]).to(dtype)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Linear(nn.Module):
    """nn.Linear by another name: WebUIs change torch's own class while they load a checkpoint, and its
    forward for LoRAs."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Not F.linear, whose last bits depend on how many rows there are: an image is the same in any
        batch."""
        return (x.unsqueeze(-2) * self.weight).sum(dim=-1) + self.bias

    __call__ = forward  # no hooks: a third of the network's time


def sigmoid(v: Tensor) -> Tensor:
    """Not torch's, whose last bit on a CPU depends on a number's place in its tensor."""
    return 1 / (1 + (-v).exp())


class BottleneckPredictor(nn.Module):
    """The paper's predictor g_phi (sec. 3.3): a small MLP on the U-Net's bottleneck and both times.

    8,929 parameters, and 21 each for c (if scale_dir > 0) and a (if scale_time > 0). Tensor names are those
    of the authors' weight files. c in 1 ± scale_dir, a in 1 ± scale_time. No bottleneck (analytic first step,
    or a host that cannot give one) counts as zeros."""

    wants_bottleneck, fixed = True, False

    def __init__(self, scale_dir: float = 0.01, scale_time: float = 0.0):
        super().__init__()
        if scale_dir < 0 or scale_time < 0 or scale_dir >= 1 or scale_time >= 1:
            raise ValueError(f"scale_dir and scale_time must be in [0, 1), got {scale_dir} and {scale_time}")
        self.scale_dir, self.scale_time = float(scale_dir), float(scale_time)
        self.register_buffer("freqs", 10000.0 ** -torch.linspace(0, 1, 4), persistent=False)
        self.map_layer0 = Linear(8, 8)
        self.enc_layer0, self.enc_layer1 = Linear(64, 128), Linear(128, 4)
        self.fc_r = Linear(20, 1)
        self.fc_scale_dir = Linear(20, 1) if scale_dir else None
        self.fc_scale_time = Linear(20, 1) if scale_time else None
        nn.init.xavier_uniform_(self.map_layer0.weight)
        for layer in (m for m in self.children() if isinstance(m, Linear)):
            nn.init.zeros_(layer.bias)
            if layer is not self.map_layer0:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")

    def adopt(self, weights: dict[str, Tensor]) -> "BottleneckPredictor":
        """Take these weights, frozen (not load_state_dict: see Linear)."""
        for name, parameter in self.named_parameters():
            parameter.data = weights[name].detach().clone()
        return self.eval().requires_grad_(False)

    def embed(self, t: Tensor) -> Tensor:
        """Sinusoidal embedding of times `[n]`, `[n, 8]`: 4 frequencies from 1 to 1/10000, sine half first."""
        angle = t.reshape(-1, 1) * torch.as_tensor(self.freqs).to(t.dtype)
        return F.silu(self.map_layer0(torch.cat([angle.sin(), angle.cos()], dim=1)))

    def forward(
        self, t_cur: float, t_next: float, bottleneck: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        like = self.fc_r.weight
        features = like.new_zeros(1, 64) if bottleneck is None else as_like(pool(bottleneck), like)
        freqs, inference = torch.as_tensor(self.freqs).dtype, torch.is_inference_mode_enabled()
        known = waves((float(t_cur), float(t_next)), freqs, like.dtype, like.device, inference)
        times = F.silu(self.map_layer0(known)).reshape(1, 16)
        features = self.enc_layer1(F.silu(self.enc_layer0(features)))
        out = torch.cat([features, times.expand(len(features), -1)], dim=1)
        r = sigmoid(self.fc_r(out)).flatten()

        def around_one(layer: Linear | None, scale: float) -> Tensor:
            if layer is None:
                return torch.ones_like(r)
            return (sigmoid(layer(out)) * (2 * scale) + (1 - scale)).flatten()

        c, a = around_one(self.fc_scale_dir, self.scale_dir), around_one(self.fc_scale_time, self.scale_time)
        return r, c, a
