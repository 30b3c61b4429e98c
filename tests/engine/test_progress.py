"""The progress and previews that a running calibration reports."""

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


def test_every_evaluation_is_reported_and_progress_never_decreases(target, tmp_path):
    """For a whole job, whose fits share their references."""
    reports = []
    job = Job((3, 4), budget=2500)
    fit(target, job, lambda nfe: tmp_path / f"{nfe}.safetensors", reports.append)
    evaluations = [progress.evaluations for progress in reports]
    assert (
        len(reports) > target.model.evaluations
        and evaluations == sorted(evaluations)
        and reports[-1].budget == 5000
    )
    assert max(b - a for a, b in zip(evaluations, evaluations[1:])) < 200
    later = [progress.seconds for progress in reports[1:]]
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in later)


def test_previews_grow_into_the_final_report(target):
    calibration = Calibration(target, Settings(5, budget=4000))
    previews = [(progress.stage, progress.preview()) for progress in calibration.run()]
    first, last, result = previews[0][1], previews[-1][1], calibration.result()
    assert not first.images and not first.curve and math.isnan(first.error) and math.isnan(first.ratio)
    searched = next(look for stage, look in previews if stage == "compare")
    assert set(searched.images) == {"reference", "plain"} and math.isnan(searched.error)
    assert (last.error, last.plain) == (result.rows[0].error, result.rows[1].error)
    assert last.ratio < 1 and min(ratio for _, ratio in last.curve) == pytest.approx(last.ratio, rel=0.05)
    assert all(torch.equal(last.images[name], result.images[name]) for name in ("reference", "plain", "fit"))


def test_small_calls_are_timed_separately():
    pace = Pace()
    assert math.isnan(pace.left(10))
    pace.called(8, 4.0)
    assert pace.left(100) == pytest.approx(50)
    pace.called(1, 2.0)
    assert pace.left(100, small=20) == pytest.approx(80 * 0.5 + 20 * 2.0)
