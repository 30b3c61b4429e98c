"""The picture of AMED Trajectory Plot: a path in its plane, its noise levels and the weights of its moves."""

import math
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .pen import BACK, BAD, EDGE, FAINT, GOOD, INK, SOFT, WIDTH, Pen, wide

RIGHT = WIDTH - EDGE
REFERENCE, PANEL = (176, 181, 191), (246, 247, 249)  # colours of the reference and of the plane's background
PLOT, MARGIN = 250, 26  # height of the plane, and of the space below it for its labels
LEGEND = 36  # height of the legend
DOT, APART = 4.5, 13  # radius of a point; smallest distance between two step numbers
STRIP, AXIS = 34, 24  # height of one run's noise levels, and of their scale
CELL, MOST = 19, 24  # height of a row of weights; largest number of rows
COLUMNS = 9  # largest number of columns of weights
MARKS = (1000, 300, 100, 30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class Run:
    """The path of one solver's run from noise to image, N steps long."""

    name: str
    times: list[float]  # N + 1 noise levels, falling
    points: Tensor  # [N + 1, 2], the states in the plane
    mids: tuple[bool, ...]  # N + 1 flags: whether a point is at a learned mid time
    remark: str = ""  # text below the name


def picture(
    title: str, under: str, reference: Run, runs: list[Run], weights: dict[str, Tensor], sharp: float = 3.0
) -> Image.Image:
    """Draw the whole picture.

    Args:
        title, under: the heading and the line below it.
        reference: the path of the many-step run.
        runs: the learned solver first, then the plain one it is compared with.
        weights: weights of the learned solver's moves, `[N, H]` for each title of a table.
        sharp: pixels per unit."""
    tables = sum(54 + CELL * min(len(w), MOST) + (CELL if len(w) > MOST else 0) for w in weights.values())
    high = 62 + LEGEND + PLOT + MARGIN + 34 + STRIP * len(runs) + AXIS + 16 + tables
    image = Image.new("RGB", (round(WIDTH * sharp), round(high * sharp)), BACK)
    pen = Pen(image, sharp)
    pen.write((EDGE, 9), title, 22, width=WIDTH - 2 * EDGE)
    pen.write((EDGE, 38), under, 13, SOFT, WIDTH - 2 * EDGE)
    y = legend(pen, 62, reference, runs)
    plane(pen, y, reference, runs)
    y = levels(pen, y + PLOT + MARGIN + 6, runs)
    for name, values in weights.items():
        y = table(pen, y + 16, name, values, runs[0].times)
    return image


def colour(number: int) -> tuple[int, ...]:
    """Return the colour of run number `number`: blue for the learned solver (0), red for others."""
    return GOOD if number == 0 else BAD


def legend(pen: Pen, y: float, reference: Run, runs: list[Run]) -> float:
    """Draw the names of the runs with their colours in a row; return the y below it."""
    x = EDGE
    share = (WIDTH - 2 * EDGE) / (1 + len(runs))
    for number, run in enumerate([reference, *runs]):
        shade = REFERENCE if number == 0 else colour(number - 1)
        pen.box(x, y + 6.8, x + 16, y + (11.8 if number == 0 else 8.8), shade)
        if number:
            pen.dot((x + 8, y + 7.8), DOT, shade, square=number > 1)
        pen.write((x + 21, y), run.name, 13, INK, share - 28)
        pen.write((x + 21, y + 16), run.remark, 12, SOFT, share - 28)
        x += share
    return y + LEGEND


def plane(pen: Pen, top: float, reference: Run, runs: list[Run]) -> None:
    """Draw the reference and the runs in the plane, noise on the left; each axis has its own scale.

    The axes are mirrored where necessary, so that the path goes right and bends up."""
    ref = reference.points.tolist()
    turn = 1 if ref[-1][0] >= ref[0][0] else -1
    middle = sum(v for _, v in ref) / len(ref) - (ref[0][1] + ref[-1][1]) / 2
    lift = 1 if middle >= 0 else -1
    paths = [[(turn * a, lift * b) for a, b in run.points.tolist()] for run in (reference, *runs)]
    every = [point for path in paths for point in path]
    low, high = [min(v) for v in zip(*every)], [max(v) for v in zip(*every)]
    box = EDGE + 16, top + 30, RIGHT - 16, top + PLOT

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across, up = ((v - a) / ((b - a) or 1) for v, a, b in zip(point, low, high))
        return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

    pen.box(EDGE, top + 4, RIGHT, top + PLOT + MARGIN, PANEL)
    pen.line([at(p) for p in paths[0]], REFERENCE, 5)
    for number in range(len(runs) - 1, -1, -1):
        places = [at(p) for p in paths[number + 1]]
        pen.line(places, colour(number), 1.6)
        for place, mid in zip(places, runs[number].mids):
            pen.dot(place, DOT, colour(number), hollow=mid, square=number > 0)
    numbers(pen, [at(p) for p in paths[1]])
    start, end = at(paths[0][0]), at(paths[0][-1])
    pen.write((start[0] - 8, start[1] + 8), f"noise, {sigma_text(reference.times[0])}", 12, SOFT, halo=True)
    width = wide("image", 12)
    pen.write((min(end[0] + 8, RIGHT - 4) - width, end[1] + 8), "image", 12, SOFT, halo=True)


def numbers(pen: Pen, places: list[tuple[float, float]]) -> None:
    """Number the moves above their starting points, leaving out numbers that would cover something."""
    taken = list(places)
    for step, (x, y) in enumerate(places[:-1], 1):
        if all(math.dist((x, y - APART), other) >= APART - 1 for other in taken):
            taken.append((x, y - APART))
            pen.write((x, y - APART - 7), str(step), 12, GOOD, middle=True, halo=True)


def levels(pen: Pen, y: float, runs: list[Run]) -> float:
    """Draw the noise levels of each run's steps on a logarithmic scale; return the y below it."""
    hollow = "; hollow: learned mid times" if any(any(run.mids) for run in runs) else ""
    pen.write((EDGE, y), f"noise levels (sigma) of the moves{hollow}", 13, INK)
    y += 22
    high, low = max(r.times[0] for r in runs), min(r.times[-1] for r in runs)
    left, right = EDGE + 8, RIGHT - 14

    def at(sigma: float) -> float:
        return left + (right - left) * math.log(high / sigma) / math.log(high / low)

    for number, run in enumerate(runs):
        line = y + STRIP * number + 21
        pen.box(left, line - 0.6, right, line + 0.6, FAINT)
        last = -APART
        for step, (sigma, mid) in enumerate(zip(run.times, run.mids), 1):
            pen.dot((at(sigma), line), DOT, colour(number), hollow=mid, square=number > 0)
            if number == 0 and step < len(run.times) and at(sigma) - last >= APART:
                last = at(sigma)
                pen.write((last, line - 19), str(step), 12, GOOD, middle=True)
    y += STRIP * len(runs)
    taken: list[tuple[float, float]] = []
    for mark in (high, low, *(mark for mark in MARKS if low < mark < high)):
        place, half = at(mark), wide(sigma_text(mark), 12) / 2
        text = min(max(place, EDGE + half), RIGHT - half)
        if all(text + half + 8 < left or text - half - 8 > right for left, right in taken):
            pen.box(place - 0.4, y - 4, place + 0.4, y, SOFT)
            pen.write((text, y + 2), sigma_text(mark), 12, SOFT, middle=True)
            taken.append((text - half, text + half))
    return y + AXIS


def table(pen: Pen, y: float, name: str, values: Tensor, times: list[float]) -> float:
    """Draw the weights `[N, H]` of each move as a table of numbers on colours; return the y below it."""
    pen.write((EDGE, y), name, 13, INK, WIDTH - 2 * EDGE)
    columns = min(values.shape[1], COLUMNS)
    left = EDGE + 124
    width = min((RIGHT - left) / columns, 84)
    y += 20
    pen.write((EDGE, y), "move, from and to sigma", 11, SOFT, left - EDGE - 6)
    for lag in range(columns):
        text = "newest" if lag == 0 else f"{lag} back"
        pen.write((left + (lag + 0.5) * width, y), text, 11, SOFT, width - 2, middle=True)
    y += 17
    most = float(values.abs().max()) or 1.0
    for n, row in enumerate(values[:MOST, :columns].tolist()):
        interval = f"{sigma_text(times[n])} to {sigma_text(times[n + 1])}"
        pen.write((EDGE, y + 2), str(n + 1), 12, GOOD)
        pen.write((EDGE + 22, y + 2), interval, 12, INK, left - EDGE - 28)
        for lag, value in enumerate(row):
            if value == 0:
                continue
            share = 0.6 * min(abs(value) / most, 1.0)
            shade = tuple(round(b + share * (c - b)) for b, c in zip(BACK, GOOD if value > 0 else BAD))
            x = left + lag * width
            pen.box(x + 1, y, x + width - 1, y + CELL - 2, shade)
            pen.write((x + width / 2, y + 1.5), f"{value:.2f}", 12, INK, width - 3, middle=True)
        y += CELL
    if len(values) > MOST:
        pen.write((EDGE, y + 2), f"and {len(values) - MOST} more: see the text", 12, SOFT)
        y += CELL
    return y


def sigma_text(sigma: float) -> str:
    """Format a noise level with three digits."""
    return f"{sigma:.0f}" if sigma >= 99.95 else f"{sigma:.3g}"
