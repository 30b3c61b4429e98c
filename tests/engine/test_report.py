"""The pictures of a fit, for both graphical hosts: large, and nothing runs out of them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from amed import Fitted, Multistep, Solver, Spec, schedules
from amed.fit import Progress
from amed.fit.preview import Preview
from amed.parts import PARTS
from hosts import parts, report

SAMPLES = torch.linspace(-1, 1, 6 * 3 * 32 * 24).view(6, 3, 32, 24)
LONG = "DPM-Solver++ 3M of a very long name, polynomial 7 + AFS, as usually set by its host"


def inked(image, box):
    """Whether anything is drawn in a part of a picture."""
    return bool((np.asarray(image.crop(box)) < 128).any())


def result(improved=True, solver="iPNDM-2"):
    def row(name, error):
        return SimpleNamespace(solver=name, schedule="its own", nfe=5, error=error)

    rows = [row("amed_multistep", 0.07), row(solver, 0.1), row(LONG, math.inf), row("c", 0.2), row("d", 0.3)]
    return SimpleNamespace(improved=improved, rows=rows, fitted=SimpleNamespace(predictor=None))


def test_a_text_keeps_within_its_width():
    image = Image.new("RGB", (1000, 100), report.BACK)
    draw = ImageDraw.Draw(image)
    report.write(draw, (10, 10), LONG, report.INK, 60, 0, 0, 400)
    assert inked(image, (10, 0, 410, 100)) and not inked(image, (412, 0, 1000, 100))


def test_samples_of_few_pixels_are_enlarged_as_they_are():
    made = report.tile(SAMPLES[0], 128)
    assert made.size == (96, 128)
    assert len(np.unique(np.asarray(made).reshape(-1, 3), axis=0)) <= 32 * 24


@pytest.mark.parametrize("improved", [True, False])
def test_a_report_is_of_few_large_things(improved):
    pictures = {"reference": SAMPLES, "AMED": SAMPLES[:3], f"best plain\n{LONG}": SAMPLES}
    made = report.picture(result(improved, solver=LONG), pictures)
    assert made.width == report.WIDE and made.height < 1.4 * made.width
    assert not inked(made, (report.WIDE - 4, 0, report.WIDE, made.height))  # no text is cut by the edge


def test_what_is_shown_grows_as_a_fit_goes_on():
    progress = Progress("search", "plain solvers", 500, 2500, nfe=5, seconds=130.0)
    searched = Preview(plain=0.1, solver=LONG, images={})
    fitted = Preview(0.07, 0.1, LONG, ((1500, 0.9), (2000, 0.7)))
    one = report.live(progress, Preview(), {})
    two = report.live(progress, searched, {"reference": SAMPLES, "best plain": SAMPLES})
    three = report.live(progress, fitted, dict.fromkeys(("reference", "best plain", "AMED so far"), SAMPLES))
    assert one.width == two.width == three.width and one.height < two.height < three.height


def test_the_time_left_is_said_as_people_say_it():
    said = [report.left(seconds) for seconds in (math.nan, 1.0, 43.0, 150.0, 9000.0)]
    assert said == ["", ", about 5 s left", ", about 45 s left", ", about 2 min left", ", about 2.5 h left"]


def table(name="", channels=0, alone=()):
    times = schedules.make("logsnr", 5, 0.01, 40.0)
    weights = torch.linspace(-1, 1, 12 * PARTS[name].count).view(4, 3, -1)
    weights = torch.stack([part.tril() for part in weights.movedim(2, 0)], -1)
    offset = torch.linspace(-0.1, 0.1, 4 * channels).view(4, -1) if channels else None
    made = Multistep(times, weights, None, name, offset, alone)
    return Fitted(
        Spec.on(Solver("multistep"), times, parts=name, channels=channels, guidance=2.0), made, times
    )


def test_every_part_has_a_name():
    for name, part in PARTS.items():
        assert len(set(parts.names_of(name, part.count))) == part.count
    assert parts.names_of("of a newer version", 2) == ("part 1", "part 2")


@pytest.mark.parametrize(
    ("name", "channels", "alone", "plots"),
    [("", 0, (), 1), ("guidance", 0, (), 1), ("halves", 4, (3,), 2), ("bands", 16, (), 2),
     ("halves+bands", 3, (2, 3), 3)],
)  # fmt: skip
def test_a_tables_weights_are_plotted_by_their_parts(name, channels, alone, plots):
    made = report.constants(table(name, channels, alone))
    assert made.size == (report.WIDE, plots * report.HIGH)
    for n in range(plots):
        box = (report.EDGE, n * report.HIGH + 70, report.WIDE - report.EDGE, (n + 1) * report.HIGH - 60)
        seen = {tuple(v) for v in np.asarray(made.crop(box)).reshape(-1, 3)[::7].tolist()}
        assert seen & set(report.COLOURS)


def test_a_report_says_how_many_passes_were_spared(monkeypatch):
    said = []
    monkeypatch.setattr(report, "headline", lambda big, small: said.append(big) or Image.new("RGB", (9, 9)))
    one = result()
    for fitted in (table("halves", 0, (2, 3)), table("halves")):
        one.fitted = fitted
        report.picture(one, {"reference": SAMPLES})
    assert said == ["error 0.070 at 5 evaluations in 6 passes", "error 0.070 at 5 evaluations"]
