"""The demo network: a class-conditional U-Net with a `middle_block` at 8x8, under EDM preconditioning.

`UNet` is the raw network F(x_in, c_noise, label), `Denoiser` the k-diffusion denoiser D(x, sigma, label).
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "emoji32.safetensors"
SIGMA_DATA, SIGMA_MIN, SIGMA_MAX = 0.5, 0.002, 80.0
CLASSES, UNCONDITIONAL = 10, 10  # label 10 means "no category", for classifier-free guidance


class ResBlock(nn.Module):
    """A residual block: GroupNorm, SiLU and convolution, twice.

    The embedding of noise level and category scales and shifts the second norm (adaptive group norm)."""

    def __init__(self, c_in: int, c_out: int, c_emb: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(16, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(c_emb, 2 * c_out)
        self.norm2, self.conv2 = nn.GroupNorm(16, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.emb(emb)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), scale + 1))
        return self.skip(x) + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """Self-attention over the pixels, in heads of 32 channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = channels // 32
        self.norm, self.qkv, self.proj = (
            nn.GroupNorm(16, channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (n h d) y x -> n b h (y x) d", n=3, h=self.heads)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(rearrange(h, "b h (y x) d -> b (h d) y x", y=x.shape[2]))


class Stage(nn.Sequential):
    """A sequence of U-Net blocks that all receive the embedding of noise level and category."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self:
            x = block(x, emb)
        return x


class UNet(nn.Module):
    """The demo model's raw network F(x, c_noise, label), without EDM's preconditioning.

    Args of the call:
        x: scaled noisy images `[B, 3, H, W]`, H and W multiples of 4.
        c_noise: `[B]`, ln(sigma) / 4.
        label: `[B]`, categories 0 to 9, or 10 for none.
        after_middle: optional function of the middle block's output `[B, 128, H/4, W/4]`; its result
            replaces that output.

    Returns `[B, 3, H, W]`."""

    def __init__(
        self,
        channels: tuple[int, ...] = (64, 96, 128),
        blocks: int = 1,
        c_emb: int = 192,
        dropout: float = 0.0,
        label_embed: nn.Module | None = None,
        patch: int = 1,
    ):
        super().__init__()
        self.patch = patch
        self.register_buffer("freqs", torch.exp(torch.linspace(0, 6, 32)), persistent=False)
        self.time_embed = nn.Sequential(nn.Linear(64, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        self.label_embed = label_embed or nn.Embedding(CLASSES + 1, c_emb)
        self.input = nn.Conv2d(3 * patch**2, channels[0], 3, padding=1)
        self.down, self.up, skips, c = nn.ModuleList(), nn.ModuleList(), [], channels[0]

        for width in channels:
            for _ in range(blocks):
                self.down.append(ResBlock(c, width, c_emb, dropout))
                skips.append(c := width)
        self.middle_block = Stage(
            ResBlock(c, c, c_emb, dropout), Attention(c), ResBlock(c, c, c_emb, dropout)
        )
        for width in reversed(channels):
            for _ in range(blocks):
                self.up.append(ResBlock(c + skips.pop(), width, c_emb, dropout))
                c = width
        self.blocks = blocks
        self.norm, self.output = nn.GroupNorm(16, c), nn.Conv2d(c, 3 * patch**2, 3, padding=1)
        nn.init.zeros_(self.output.weight)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor,
        after_middle: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        angle = (c_noise.float()[:, None] * self.freqs).to(x.dtype)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=1)) + self.label_embed(label)
        emb = F.silu(emb)
        h, skips = self.input(F.pixel_unshuffle(x, self.patch)), []
        for i, block in enumerate(self.down):
            if i and i % self.blocks == 0:
                h = F.avg_pool2d(h, 2)
            skips.append(h := block(h, emb))
        h = self.middle_block(h, emb)
        if after_middle is not None:
            h = after_middle(h)
        for i, block in enumerate(self.up):
            if i and i % self.blocks == 0:
                h = F.interpolate(h, scale_factor=2.0)
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return F.pixel_shuffle(self.output(F.silu(self.norm(h))), self.patch)


class Denoiser(nn.Module):
    """EDM preconditioning (Karras et al. 2022, table 1) around `UNet`, as a k-diffusion denoiser.

    Args of the call:
        x: `[B, 3, H, W]`, images in [-1, 1] plus noise.
        sigma: `[B]`, the standard deviation of that noise.
        label: `[B]`, categories; None for unconditional.

    Returns the denoised images, in the dtype of x."""

    sigma_min, sigma_max = SIGMA_MIN, SIGMA_MAX

    def __init__(self, unet: UNet):
        super().__init__()
        self.inner_model = unet

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        dtype = self.inner_model.input.weight.dtype
        if label is None:
            label = torch.full((len(x),), UNCONDITIONAL, device=x.device)
        s = sigma.view(-1, 1, 1, 1)
        scale = (s**2 + SIGMA_DATA**2).sqrt()
        out = self.inner_model((x / scale).to(dtype), sigma.log() / 4, label)
        return x * (SIGMA_DATA / scale) ** 2 + out.to(x.dtype) * s * SIGMA_DATA / scale


def load_unet(file: Path = WEIGHTS, dtype: torch.dtype = torch.float32, unet: UNet | None = None) -> UNet:
    """Load a trained network: frozen, in eval mode, channels-last (twice as fast on a CPU).

    unet: the network that receives the weights; None: that of emoji32."""
    unet = unet or UNet()
    unet.load_state_dict(load_file(file))
    return unet.to(dtype, memory_format=torch.channels_last).eval().requires_grad_(False)


def load_denoiser(file: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> Denoiser:
    """Load the trained network as a k-diffusion denoiser."""
    return Denoiser(load_unet(file, dtype))
