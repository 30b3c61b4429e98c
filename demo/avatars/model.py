"""The avatar network: the demo's U-Net, trained by flow matching, with attributes in place of categories.

`load_network` gives the raw network v(x, t, attributes), `load_denoiser` the denoiser D(x, sigma,
attributes), `SigmaForm` the same with k-diffusion's noise levels. A flow model's sigma is its time t:
x = (1 - sigma) image + sigma noise; sigma = 1 is noise."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..model import UNet, load_unet
from .attributes import SIZE

WEIGHTS = Path(__file__).with_name("avatars32.safetensors")
CHANNELS, EMBEDDING, PATCH = (96, 128, 160), 192, 2
SHIFT = 1.5  # of the noise levels: sigma = SHIFT t / (1 + (SHIFT - 1) t), t = 1/1000 ... 1
SIGMA_MIN, SIGMA_MAX = SHIFT / (999 + SHIFT), 1.0
MULTIPLE = 4 * PATCH  # height and width must be multiples of it


def network(dropout: float = 0.0) -> UNet:
    """Return an untrained avatar network: `UNet` of (x, t, attributes), t in [0, 1], attributes `[B, SIZE]`.

    It works on patches of 2x2 pixels."""
    embed = nn.Linear(SIZE, EMBEDDING, bias=False)
    return UNet(CHANNELS, c_emb=EMBEDDING, dropout=dropout, label_embed=embed, patch=PATCH)


class Denoiser(nn.Module):
    """The network as a denoiser: D = x - sigma v(x, sigma).

    Args of the call:
        x: `[B, 3, H, W]`, (1 - sigma) images in [-1, 1] + sigma noise.
        sigma: `[B]`, flow levels in (0, 1].
        attributes: `[B, SIZE]`, 1 at each value asked for; None for unconditional.

    Returns the denoised images, in the dtype of x."""

    sigma_min, sigma_max = SIGMA_MIN, SIGMA_MAX

    def __init__(self, unet: UNet):
        super().__init__()
        self.inner_model = unet

    def forward(self, x: Tensor, sigma: Tensor, attributes: Tensor | None = None) -> Tensor:
        dtype = self.inner_model.input.weight.dtype
        if attributes is None:
            attributes = torch.zeros(len(x), SIZE, device=x.device)
        v = self.inner_model(x.to(dtype), sigma.to(dtype), attributes.to(dtype))
        return x - v.to(x.dtype) * sigma.view(-1, 1, 1, 1)


class SigmaForm(nn.Module):
    """The denoiser with sigma as noise level, for k-diffusion's samplers and for Stable Diffusion WebUI.

    An image plus sigma times noise is 1 + sigma times the flow model's x at level sigma / (1 + sigma), so
    this is exact.

    Args of the call:
        x: `[B, 3, H, W]`, images in [-1, 1] + sigma noise.
        sigma: `[B]`, the standard deviation of that noise.
        attributes: `[B, SIZE]`, 1 at each value asked for; None for unconditional.

    Returns the denoised images, in the dtype of x."""

    sigma_min, sigma_max = SIGMA_MIN / (1 - SIGMA_MIN), 80.0

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    @property
    def inner_model(self) -> UNet:
        """The raw network."""
        return self.denoiser.inner_model

    def forward(self, x: Tensor, sigma: Tensor, attributes: Tensor | None = None) -> Tensor:
        scale = 1 + sigma
        return self.denoiser(x / scale.view(-1, 1, 1, 1), sigma / scale, attributes)


def load_network(file: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> UNet:
    """Load the trained network: frozen, in eval mode, channels-last."""
    return load_unet(file, dtype, network())


def load_denoiser(file: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> Denoiser:
    """Load the trained network as a denoiser."""
    return Denoiser(load_network(file, dtype))
