"""The pictures of a fit, for both graphical hosts: large, and nothing runs out of them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from amed.fit import Progress
from amed.fit.look import Look
from hosts import report

SAMPLES = torch.linspace(-1, 1, 6 * 3 * 32 * 24).view(6, 3, 32, 24)
LONG = "DPM-Solver++ 3M of a very long name, polynomial 7 + AFS, as usually set by its host"


def inked(image, box):
    """Whether anything is drawn in a part of a picture."""
    return bool((np.asarray(image.crop(box)) < 128).any())


def result(improved=True, solver="iPNDM-2"):
    def row(name, error):
        return SimpleNamespace(solver=name, schedule="its own", nfe=5, error=error)

    rows = [row("amed_multistep", 0.07), row(solver, 0.1), row(LONG, math.inf), row("c", 0.2), row("d", 0.3)]
    return SimpleNamespace(improved=improved, rows=rows)


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
    searched = Look(plain=0.1, solver=LONG, images={})
    fitted = Look(0.07, 0.1, LONG, ((1500, 0.9), (2000, 0.7)))
    one = report.live(progress, Look(), {})
    two = report.live(progress, searched, {"reference": SAMPLES, "best plain": SAMPLES})
    three = report.live(progress, fitted, dict.fromkeys(("reference", "best plain", "AMED so far"), SAMPLES))
    assert one.width == two.width == three.width and one.height < two.height < three.height


def test_the_time_left_is_said_as_people_say_it():
    said = [report.left(seconds) for seconds in (math.nan, 1.0, 43.0, 150.0, 9000.0)]
    assert said == ["", ", about 5 s left", ", about 45 s left", ", about 2 min left", ", about 2.5 h left"]
