import math

import pytest
import torch

from amed import schedules


@pytest.mark.parametrize("kind", schedules.KINDS)
@pytest.mark.parametrize("num_steps", [2, 3, 4, 11])
def test_schedules_fall_between_their_ends(kind, num_steps):
    t = schedules.make(kind, num_steps, 0.0292, 14.6)
    assert t.dtype == torch.float64 and len(t) == num_steps
    assert t[0] == pytest.approx(14.6, rel=1e-6) and t[-1] == pytest.approx(0.0292, rel=2e-3)
    assert (t.diff() < 0).all()


def test_polynomial_is_uniform_in_the_root():
    t = schedules.make("polynomial", 6, 0.002, 80, rho=7)
    gaps = (t ** (1 / 7)).diff()
    assert torch.allclose(gaps, gaps[0].expand(5))


def test_time_uniform_is_uniform_in_vp_time():
    t = schedules.make("time_uniform", 5, 0.002, 80)
    low, high = math.log1p(0.002**2), math.log1p(80**2)
    beta_d = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    beta_min = high - beta_d / 2
    vp = ((beta_min**2 + 2 * beta_d * torch.log1p(t**2)).sqrt() - beta_min) / beta_d
    assert torch.allclose(vp.diff(), vp.diff()[0].expand(4), atol=1e-9)


def test_every_second_time_is_the_coarser_schedule():
    for kind in schedules.KINDS:
        assert torch.allclose(schedules.make(kind, 9, 0.03, 14)[::2], schedules.make(kind, 5, 0.03, 14))


def test_discrete_uses_stable_diffusions_sigmas():
    table = schedules.sd_sigmas()
    assert table[0] == pytest.approx(0.0292, abs=1e-4) and table[-1] == pytest.approx(14.6146, abs=1e-4)
    t = schedules.make("discrete", 10, float(table[0]), float(table[999]))
    assert torch.allclose(t, table[torch.arange(999, -1, -111)], rtol=1e-8)
    bent = schedules.sigma_to_t(
        schedules.make("discrete", 10, float(table[0]), float(table[999]), rho=2), table
    )
    assert torch.allclose(((bent + 1).sqrt()).diff(), ((bent + 1).sqrt()).diff()[0].expand(9))


def test_sigma_and_timestep_invert_each_other():
    table = schedules.sd_sigmas()
    t = torch.tensor([0.0, 3.25, 500.5, 999.0], dtype=torch.float64)
    assert torch.allclose(schedules.sigma_to_t(schedules.t_to_sigma(t, table), table), t)


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("karas", 5, 0.1, 10), "karas"),
        (("polynomial", 1, 0.1, 10), "at least 2"),
        (("polynomial", 5, 0, 10), "sigma_min"),
        (("logsnr", 5, 10, 1), "sigma_min"),
        (("polynomial", 5, 0.1, 10, 0), "rho"),
    ],
)
def test_invalid_requests_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        schedules.make(*arguments)


@pytest.mark.parametrize(
    "sigmas, word",
    [
        ([1.0], "at least 2"),
        ([], "at least 2"),
        ([1.0, 2.0], "fall"),
        ([2.0, 1.0, 1.0], "fall"),
        ([2.0, 0.0, -1.0], "negative"),
        ([2.0, math.nan], "finite"),
        ([[2.0, 1.0]], "list"),
        ([math.inf, 1.0], "finite"),
    ],
)
def test_invalid_lists_are_named(sigmas, word):
    with pytest.raises(ValueError, match=word):
        schedules.checked(torch.tensor(sigmas))


@pytest.mark.parametrize("rho", [1.0, 1.5, 3.0, 12.0])
def test_shift_is_linear_in_the_shifted_time(rho):
    """As ComfyUI's `simple` on a flow model with this shift: sigma(t) on equally spaced t."""
    sigmas = schedules.make("shift", 7, 0.002, 1.0, rho)
    t = sigmas / (rho - (rho - 1) * sigmas)
    assert sigmas[0] == 1 and sigmas[-1] == pytest.approx(0.002) and (sigmas.diff() < 0).all()
    assert torch.allclose(t.diff(), t.diff()[0].expand(6), atol=1e-12)
    assert torch.allclose(
        schedules.make("shift", 7, 0.002, 14.0, rho), 14 * schedules.make("shift", 7, 0.002 / 14, 1.0, rho)
    )
