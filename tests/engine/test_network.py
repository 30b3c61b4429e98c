"""The paper's network."""

import pytest
import torch

from amed.network import BottleneckPredictor, pool


@pytest.mark.parametrize(
    "scales, count", [((0, 0), 8929), ((0.01, 0), 8950), ((0, 0.2), 8950), ((0.01, 0.2), 8971)]
)
def test_the_network_has_the_papers_size(scales, count):
    assert sum(p.numel() for p in BottleneckPredictor(*scales).parameters()) == count


def test_outputs_stay_within_their_ranges():
    torch.manual_seed(0)
    p = BottleneckPredictor(0.1, 0.2)
    for parameter in p.parameters():
        parameter.data.mul_(50)
    for t in (80.0, 1.0, 0.002):
        r, c, a = p(t, t / 3, torch.randn(16, 4, 8, 8))
        assert r.shape == c.shape == a.shape == (16,)
        assert (
            ((r >= 0) & (r <= 1)).all()
            and ((c - 1).abs() <= 0.1001).all()
            and ((a - 1).abs() <= 0.2001).all()
        )


def test_the_bottleneck_is_pooled():
    h = torch.randn(2, 5, 8, 8)
    assert torch.allclose(pool(h), h.mean(1).flatten(1))
    assert torch.allclose(pool(h.repeat_interleave(4, 2).repeat_interleave(4, 3)), pool(h), atol=1e-6)
    assert pool(torch.randn(3, 5, 4, 9)).shape == (3, 64)


@pytest.mark.parametrize("scales", [(-0.1, 0), (0, 1.0)])
def test_bad_scales_are_named(scales):
    with pytest.raises(ValueError, match="scale_dir"):
        BottleneckPredictor(*scales)


def test_tensors_cached_in_inference_mode_are_not_used_in_training():
    """ComfyUI runs nodes in inference mode and trains outside of it, possibly at the same time."""
    network = BottleneckPredictor(0.01, 0.1)
    with torch.inference_mode():
        first = network(7.25, 3.5, torch.ones(2, 4, 8, 8))
    again = network(7.25, 3.5, torch.ones(2, 4, 8, 8))
    sum(v.sum() for v in again).backward()
    assert network.map_layer0.weight.grad.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(first, again))
