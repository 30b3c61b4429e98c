import pytest
import torch

from amed.predictor import BottleneckPredictor, TablePredictor, pool

SIGMAS = torch.tensor([40.0, 10.0, 2.0, 0.1])


@pytest.mark.parametrize(
    "scales, count", [((0, 0), 8929), ((0.01, 0), 8950), ((0, 0.2), 8950), ((0.01, 0.2), 8971)]
)
def test_size_is_the_papers(scales, count):
    assert sum(p.numel() for p in BottleneckPredictor(*scales).parameters()) == count


def test_ranges():
    torch.manual_seed(0)
    p = BottleneckPredictor(0.1, 0.2)
    for parameter in p.parameters():
        parameter.data.mul_(50)
    for t in (80.0, 1.0, 0.002):
        r, c, a = p(torch.tensor(t), torch.tensor(t / 3), torch.randn(16, 4, 8, 8))
        assert r.shape == c.shape == a.shape == (16,)
        assert (
            ((r >= 0) & (r <= 1)).all()
            and ((c - 1).abs() <= 0.1001).all()
            and ((a - 1).abs() <= 0.2001).all()
        )


def test_pooling():
    h = torch.randn(2, 5, 8, 8)
    assert torch.allclose(pool(h), h.mean(1).flatten(1))
    assert torch.allclose(pool(h.repeat_interleave(4, 2).repeat_interleave(4, 3)), pool(h), atol=1e-6)
    assert pool(torch.randn(3, 5, 4, 9)).shape == (3, 64)


def test_table_is_exact_on_its_grid_and_interpolates_between():
    p = TablePredictor(
        SIGMAS, torch.tensor([0.2, 0.4, 0.6]), torch.tensor([1.0, 0.9, 1.1]), torch.tensor([1.0, 1.02, 0.98])
    )
    for i in range(3):
        r, c, a = p(SIGMAS[i].float(), SIGMAS[i + 1])
        assert float(r) == pytest.approx([0.2, 0.4, 0.6][i], abs=1e-7) and float(c) == pytest.approx(
            [1, 0.9, 1.1][i]
        )
        assert float(a) == pytest.approx([1, 1.02, 0.98][i])
    middle = (SIGMAS[0] * SIGMAS[1]).sqrt()
    assert float(p(middle, SIGMAS[1])[0]) == pytest.approx(0.3, abs=1e-6)
    assert float(p(torch.tensor(500.0), SIGMAS[0])[0]) == pytest.approx(0.2)
    assert float(p(torch.tensor(0.01), torch.tensor(0.001))[0]) == pytest.approx(0.6)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"sigmas": [1.0, 2.0]}, "sigmas"),
        ({"sigmas": [1.0]}, "sigmas"),
        ({"r": [0.5, 0.5]}, "r must have"),
        ({"r": [0.0, 0.5, 0.5]}, "between 0 and 1"),
        ({"r": [float("nan"), 0.5, 0.5]}, "finite"),
        ({"c": [1.0]}, "c must have"),
        ({"a": [0.0, 1.0, 1.0]}, "a must be positive"),
    ],
)
def test_bad_tables_are_named(change, word):
    with pytest.raises(ValueError, match=word):
        TablePredictor(**{"sigmas": SIGMAS, "r": [0.5, 0.5, 0.5]} | change)


@pytest.mark.parametrize("scales", [(-0.1, 0), (0, 1.0)])
def test_bad_scales_are_named(scales):
    with pytest.raises(ValueError, match="scale_dir"):
        BottleneckPredictor(*scales)
