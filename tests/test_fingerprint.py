"""amed.fingerprint: the same checkpoint in any dtype, another for other weights."""

import pytest
import torch

from amed.fingerprint import fingerprint
from demo.model import UNet


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet()


def test_survives_dtypes_and_prefixes(unet):
    own = fingerprint(unet.named_parameters())
    assert len(own) == 16
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert fingerprint((f"model.{n}", w.to(dtype)) for n, w in unet.named_parameters()) == own


def test_tells_a_little_training_apart(unet):
    own = fingerprint(unet.named_parameters())
    torch.manual_seed(1)
    tuned = [(n, w + 0.01 * w.std().nan_to_num() * torch.randn_like(w)) for n, w in unet.named_parameters()]
    assert fingerprint(tuned) != own


def test_needs_weights():
    with pytest.raises(ValueError, match="no weight matrix"):
        fingerprint([("bias", torch.zeros(3))])
