"""A calibration seen from outside while it runs."""

import math

import pytest
import torch
from golden import Toy

from amed.fit import Calibration, Job, Settings, Target, fit
from amed.fit.measures import Counter
from amed.fit.preview import Pace


@pytest.fixture
def target() -> Target:
    toy = Toy(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))

    def draw(generator, count):
        return torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64), {}

    return Target(Counter(toy), draw, 0.01, 40.0)


def test_every_evaluation_is_heard_of_and_the_bar_never_goes_back(target, tmp_path):
    """Of a whole job, whose fits share their references."""
    heard = []
    job = Job((3, 4), budget=2500)
    fit(target, job, lambda nfe: tmp_path / f"{nfe}.safetensors", heard.append)
    done = [progress.evaluations for progress in heard]
    assert len(heard) > target.model.evaluations and done == sorted(done) and heard[-1].budget == 5000
    assert max(b - a for a, b in zip(done, done[1:])) < 200
    later = [progress.seconds for progress in heard[1:]]
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in later)


def test_what_there_is_to_see_grows_to_what_the_report_says(target):
    calibration = Calibration(target, Settings(5, budget=4000))
    seen = [(progress.stage, progress.preview()) for progress in calibration.run()]
    first, last, result = seen[0][1], seen[-1][1], calibration.result()
    assert not first.images and not first.curve and math.isnan(first.error) and math.isnan(first.ratio)
    searched = next(look for stage, look in seen if stage == "compare")
    assert set(searched.images) == {"reference", "plain"} and math.isnan(searched.error)
    assert (last.error, last.plain) == (result.rows[0].error, result.rows[1].error)
    assert last.ratio < 1 and min(ratio for _, ratio in last.curve) == pytest.approx(last.ratio, rel=0.05)
    assert all(torch.equal(last.images[name], result.images[name]) for name in ("reference", "plain", "fit"))


def test_small_calls_are_timed_apart():
    pace = Pace()
    assert math.isnan(pace.left(10))
    pace.called(8, 4.0)
    assert pace.left(100) == pytest.approx(50)
    pace.called(1, 2.0)
    assert pace.left(100, small=20) == pytest.approx(80 * 0.5 + 20 * 2.0)
