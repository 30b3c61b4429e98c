"""The paper's network g_phi, which gives r, c, a of an interval per sample from the U-Net's bottleneck."""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .double import as_like


def pool(bottleneck: Tensor) -> Tensor:
    """Return the input `[B, 64]` of the AMED network from a U-Net's bottleneck `[B, C, H, W]`: the mean over
    channels, pooled to 8x8."""
    return F.adaptive_avg_pool2d(bottleneck.mean(dim=1, keepdim=True), 8).flatten(1)


@lru_cache(maxsize=64)
def waves(times: tuple[float, ...], freqs: torch.dtype, dtype: torch.dtype, device: torch.device,
          inference: bool) -> Tensor:  # fmt: skip
    """Return sines and cosines `[n, 8]` of n noise levels at 4 frequencies from 1 to 1/10000, an input of the
    AMED network. Cached, because every run needs the same.

    Args:
        times: the noise levels.
        freqs: dtype of the frequencies.
        dtype, device: of the result.
        inference: whether torch's inference mode is on. Tensors made in it cannot be used outside of it, so
            they are cached apart."""
    frequencies = (10000.0 ** -torch.linspace(0, 1, 4)).to(device, freqs)
    angle = torch.stack([frequencies * t for t in times]).to(dtype)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Linear(nn.Module):
    """A linear layer to use instead of torch.nn.Linear, which WebUIs replace while they load a checkpoint and
    patch for LoRAs."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return x `[..., inputs]` times the weights plus the bias, `[..., outputs]`. Unlike F.linear, the
        last bits do not depend on the batch size, so an image is the same in any batch."""
        return (x.unsqueeze(-2) * self.weight).sum(dim=-1) + self.bias

    __call__ = forward  # without nn.Module's hooks, which cost a third of the network's time


def sigmoid(v: Tensor) -> Tensor:
    """Return the logistic function of v. Equal elements give equal results; with torch.sigmoid on a CPU they
    can differ in the last bit."""
    return 1 / (1 + (-v).exp())


class BottleneckPredictor(nn.Module):
    """The network of the AMED paper, which returns the constants of an interval of the schedule: the mid time
    r, the direction scale c and the time scale a.

    It is a small MLP with two inputs: the U-Net's bottleneck, and the noise levels at both ends of the
    interval. It has 8,929 parameters, plus 21 each for c and a. If there is no bottleneck (after an analytic
    first step, or because the host provides none), zeros replace it. Tensor names are those of the authors'
    weight files.

    Args:
        scale_dir: c lies in 1 ± scale_dir, 0 <= scale_dir < 1; 0: c is not learned. Default: 0.01.
        scale_time: a lies in 1 ± scale_time, 0 <= scale_time < 1; 0: a is not learned. Default: 0.

    Raises:
        ValueError: A scale is not in [0, 1).

    Source: g_phi of AMED (Zhou et al. 2024, sec. 3.3)."""

    wants_bottleneck, fixed = True, False

    def __init__(self, scale_dir: float = 0.01, scale_time: float = 0.0):
        super().__init__()
        if scale_dir < 0 or scale_time < 0 or scale_dir >= 1 or scale_time >= 1:
            raise ValueError(
                f"scale_dir and scale_time of a BottleneckPredictor must be in [0, 1), but are {scale_dir} "
                f"and {scale_time}"
            )
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
        """Set all parameters from `weights`, tensors by name, freeze them, and return the network. Replaces
        load_state_dict, which WebUIs patch."""
        for name, parameter in self.named_parameters():
            parameter.data = weights[name].detach().clone()
        return self.eval().requires_grad_(False)

    def embed(self, t: Tensor) -> Tensor:
        """Return the embedding `[n, 8]` of noise levels `[n]`: sines and cosines at 4 frequencies from 1 to
        1/10000, then a linear layer and SiLU."""
        angle = t.reshape(-1, 1) * torch.as_tensor(self.freqs).to(t.dtype)
        return F.silu(self.map_layer0(torch.cat([angle.sin(), angle.cos()], dim=1)))

    def forward(
        self, t_cur: float, t_next: float, bottleneck: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mid time r, direction scale c and time scale a of an interval, each `[B]` (`[1]` without a
        bottleneck).

        Args:
            t_cur, t_next: noise levels at the interval's start and end.
            bottleneck: the U-Net's bottleneck at `t_cur`, `[B, C, H, W]`; None: zeros."""
        like = self.fc_r.weight
        features = like.new_zeros(1, 64) if bottleneck is None else as_like(pool(bottleneck), like)
        freqs, inference = torch.as_tensor(self.freqs).dtype, torch.is_inference_mode_enabled()
        embedding = waves((float(t_cur), float(t_next)), freqs, like.dtype, like.device, inference)
        times = F.silu(self.map_layer0(embedding)).reshape(1, 16)
        features = self.enc_layer1(F.silu(self.enc_layer0(features)))
        out = torch.cat([features, times.expand(len(features), -1)], dim=1)
        r = sigmoid(self.fc_r(out)).flatten()

        def around_one(layer: Linear | None, scale: float) -> Tensor:
            if layer is None:
                return torch.ones_like(r)
            return (sigmoid(layer(out)) * (2 * scale) + (1 - scale)).flatten()

        c, a = around_one(self.fc_scale_dir, self.scale_dir), around_one(self.fc_scale_time, self.scale_time)
        return r, c, a
