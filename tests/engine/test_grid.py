"""The pictures of comparisons and trajectories: nothing is cut off, nothing overlaps."""

import math

import numpy as np
import pytest
import torch

from pictures import grid, pen, trajectory

SAMPLES = (torch.linspace(0, 255, 8 * 3 * 32 * 24).view(8, 3, 32, 24)).byte()
LONG = "a_sampler_with_a_name_far_too_long_for_the_place_it_has, on a schedule that has one too"


def is_drawn(image, box):
    """Return whether anything is drawn in a box, given in 500ths of the picture."""
    unit = image.width / pen.WIDTH
    return bool((np.asarray(image.crop([round(v * unit) for v in box])) < 160).any())


def row(name="amed", **changed):
    usual = {"details": ("a setting", "5 evaluations, 10 passes", "0.1 s an image"), "pictures": SAMPLES,
             "distance": 0.1}  # fmt: skip
    return grid.SamplerRow(name, **usual | changed)


@pytest.mark.parametrize("columns", [1, 3, 8])
def test_a_grid_has_a_tile_per_seed_and_stays_within_its_picture(columns):
    rows = [row("reference", distance=None),
            row(LONG, details=(LONG,) * 2, nearest=True, heading="5 evaluations"),
            row("failed", pictures=None, note=LONG * 5, distance=None), row(note=LONG)]  # fmt: skip
    seeds = [str(2**64 - 1 - n) for n in range(columns)]
    image = grid.picture("Samplers compared", LONG * 2, seeds, rows, 2.0)
    high = image.height / 2
    assert image.width == 1000
    assert not is_drawn(image, (0, 0, 6, high)) and not is_drawn(image, (495, 0, 500, high))
    assert not is_drawn(image, (0, high - 6, 500, high))
    label = grid.Layout.of(columns, rows).samples_left(columns)
    assert not is_drawn(image, (label - 7, 120, label - 1, 140))  # no label overlaps the samples


def test_rows_without_samples_take_little_space():
    with_samples = grid.picture("t", "u", ["0"], [row(), row()]).height
    assert grid.picture("t", "u", ["0"], [row(), row(pictures=None, note="why", distance=None)]).height < (
        0.7 * with_samples
    )
    assert grid.picture("t", "u", ["0"], [row(pictures=None, note="why", distance=None)]).height > 0


def test_a_sample_is_shown_as_it_is():
    flat = torch.tensor([200, 30, 90]).byte().view(3, 1, 1).expand(3, 32, 24)
    tile = np.asarray(grid.sample_image(flat, 30, 40, 2.0))
    assert tile.shape == (80, 60, 3) and (tile == [200, 30, 90]).all()


def test_bars_are_visible_beside_a_far_outlier():
    rows = [row(distance=d) for d in (0.1, 0.2, 0.1, 80.0)]
    assert grid.Layout.of(1, rows).full_distance == pytest.approx(0.6)
    assert grid.Layout.of(1, [row(distance=0.0)]).full_distance == 1.0


def test_many_rows_do_not_make_an_enormous_picture():
    image = grid.picture("t", "u", ["0"], [row() for _ in range(150)])
    assert image.width * image.height < 1.1 * grid.MAX_PIXELS


def test_long_text_is_wrapped():
    for width, lines in ((300, 2), (60, 3), (20, 1)):
        size, broken = pen.fit_text(LONG, 12, width, lines)
        assert 0 < len(broken) <= lines and pen.MIN_SHRINK * 12 <= size <= 12
        assert all(pen.text_width(line, size) <= width for line in broken)
    assert pen.fit_text("short", 12, 100, 1) == (12, ["short"])


def test_a_table_is_markdown():
    lines = grid.markdown_table(["a", "long head"], [["x|y", "1"], ["z", ""]]).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4
    assert lines[1] == "| --- | --------- |" and lines[2].startswith("| x/y |")


def arc(count, bend=1.0, turn=1.0):
    t = torch.linspace(0, math.pi, count)
    return torch.stack([-turn * 50 * t.cos(), bend * 9 * t.sin()], dim=1)


def run(name, count, **changed):
    times = torch.logspace(math.log10(80), math.log10(0.002), count).tolist()
    usual = {"points": arc(count), "mids": tuple(n % 2 == 1 for n in range(count))}
    return trajectory.SolverRun(name, times, remark="its end 0.100 away", **usual | changed)


@pytest.mark.parametrize(("moves", "lags"), [(3, 1), (6, 4), (30, 12)])
def test_a_trajectory_stays_within_its_picture(moves, lags):
    weights = torch.randn(moves, lags, generator=torch.Generator().manual_seed(0)) * 100
    runs = [run(LONG, moves + 1), run("iPNDM-2", moves)]
    image = trajectory.picture(LONG, LONG, run("reference", 61), runs, {LONG: weights, "other": weights}, 2.0)
    high = image.height / 2
    assert (
        image.width == 1000
        and not is_drawn(image, (0, 0, 6, high))
        and not is_drawn(image, (496, 0, 500, high))
    )
    assert not is_drawn(image, (0, high - 5, 500, high)) and is_drawn(image, (0, high - 60, 500, high - 5))


def test_a_trajectory_goes_from_left_to_right_and_bends_up():
    """The picture does not depend on the signs of its components."""
    first, *others = (
        trajectory.picture("t", "u", run("r", 61, points=points), [run("a", 7, points=points[::10])],
                      {"w": torch.ones(6, 1)}, 1.0)
        for points in (arc(61), arc(61, turn=-1.0), arc(61, bend=-1.0))
    )  # fmt: skip
    assert all(np.array_equal(np.asarray(first), np.asarray(other)) for other in others)


def test_a_run_without_movement_is_drawn():
    still = run("r", 5, points=torch.zeros(5, 2))
    assert trajectory.picture("t", "u", still, [still], {"w": torch.zeros(4, 2)}).height > 0
