"""Predictors that consist of plain numbers."""

import pytest
import torch

from amed import schedules
from amed.constants import Constants, Multistep

SIGMAS = torch.tensor([40.0, 10.0, 2.0, 0.1], dtype=torch.float64)
TIMES = schedules.make("polynomial", 5, 0.01, 40)


def test_constants_are_exact_on_their_grid_and_interpolate_between():
    p = Constants(
        SIGMAS,
        r=torch.tensor([0.2, 0.4, 0.6]),
        c=torch.tensor([1.0, 0.9, 1.1]),
        a=torch.tensor([1.0, 1.02, 0.98]),
    )
    for i in range(3):
        r, c, a = p(float(SIGMAS[i].float()), float(SIGMAS[i + 1]))
        assert r == pytest.approx([0.2, 0.4, 0.6][i], abs=1e-7) and c == pytest.approx([1, 0.9, 1.1][i])
        assert a == pytest.approx([1, 1.02, 0.98][i])
    middle = float((SIGMAS[0] * SIGMAS[1]).sqrt())
    assert p(middle, float(SIGMAS[1]))[0] == pytest.approx(0.3, abs=1e-6)
    assert p(500.0, float(SIGMAS[0]))[0] == pytest.approx(0.2)
    assert p(0.01, 0.001)[0] == pytest.approx(0.6)


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
        ({"b": [1.0, 1.0, 1.0]}, "no such constant: b"),
    ],
)
def test_bad_constants_are_named(change, word):
    with pytest.raises(ValueError, match=word):
        Constants(**{"sigmas": SIGMAS, "r": [0.5, 0.5, 0.5]} | change)


def test_missing_constants_have_their_defaults():
    assert Constants(SIGMAS)(10.0, 2.0) == (0.5, 1.0, 1.0)


@pytest.mark.parametrize("between", [0.3, 0.7])
def test_weights_interpolate_in_log_sigma(between):
    a = torch.tensor([1.0, 1.1, 1.3, 0.9])
    table = Multistep(TIMES, torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(1, keepdim=True), a)
    sigma = float(TIMES[1] ** (1 - between) * TIMES[2] ** between)
    row = table.table([sigma, sigma / 2]).rows[0]
    assert row.sigma == sigma and row.weights == ((pytest.approx(-sigma / 2 * (2 + between)),),)
    assert row.sigma_model == pytest.approx(sigma * (1.1 + 0.2 * between))


@pytest.mark.parametrize(
    "tensors, named",
    [
        ((TIMES.flip(0), torch.ones(4, 1)), "sigmas"),
        ((TIMES, torch.ones(3, 1)), "weights"),
        ((TIMES, torch.ones(4, 4)), "weights"),
        ((TIMES, torch.full((4, 1), torch.nan)), "weights"),
        ((TIMES, torch.ones(4, 1), torch.zeros(4)), "a"),
        ((TIMES, torch.ones(4, 1, 2)), "weights"),  # two parts, but no way to split them
        ((TIMES, torch.ones(4, 1), None, "guidance"), "slopes, 2 parts"),
        ((TIMES, torch.ones(4, 1), None, "colours"), "parts='colours'"),
    ],
)
def test_bad_tables_are_refused(tensors, named):
    with pytest.raises(ValueError, match=named):
        Multistep(*tensors)
