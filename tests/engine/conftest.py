"""A closed-form denoiser, so that the engine is tested against mathematics instead of a trained network."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden import Toy


@pytest.fixture
def toy() -> Toy:
    """The denoiser of a mixture of four Gaussians of shape 3x8x8; its ODE is smooth but not linear."""
    return Toy(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
