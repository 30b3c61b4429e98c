"""The picture of the node AMED Trajectory Plot.

It shows sampling trajectories projected on a plane, their noise levels and the weights of their moves."""

import math
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .pen import BACK, BAD, EDGE, FAINT, GOOD, INK, SOFT, WIDTH, Pen, text_width

RIGHT = WIDTH - EDGE
REFERENCE, PANEL = (176, 181, 191), (246, 247, 249)  # colours of the reference and of the plane's background
PLANE_HEIGHT, MARGIN = 250, 26  # height of the plane, and of the space below it for its labels
LEGEND_HEIGHT = 36  # height of the legend
DOT, NUMBER_GAP = 4.5, 13  # radius of a point; smallest distance between two step numbers
LEVELS_HEIGHT, AXIS_HEIGHT = 34, 24  # height of one run's noise levels, and of their scale
ROW_HEIGHT, MAX_ROWS = 19, 24  # height of a row of weights; largest number of rows
MAX_COLUMNS = 9  # largest number of columns of weights
TICKS = (1000, 300, 100, 30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


@dataclass(frozen=True)
class SolverRun:
    """The trajectory of one solver from noise to image, in N steps."""

    name: str
    times: list[float]  # N + 1 noise levels (sigma), falling
    points: Tensor  # [N + 1, 2]: the states, projected on the plane
    mids: tuple[bool, ...]  # N + 1 flags: whether a point is at a learned intermediate noise level
    remark: str = ""  # text below the name


def picture(
    title: str,
    subtitle: str,
    reference: SolverRun,
    runs: list[SolverRun],
    weights: dict[str, Tensor],
    scale: float = 3.0,
) -> Image.Image:
    """Draw the whole picture of AMED Trajectory Plot.

    Args:
        reference: the trajectory of a run with many steps.
        runs: the learned solver first, then the plain solver with which it is compared.
        weights: title of a table -> weights `[N, H]` of the learned solver: in each of its N steps, those of
            the H latest slopes (dx/dsigma), the newest first.
        scale: picture width in pixels / 500."""
    tables = sum(54 + ROW_HEIGHT * (min(len(w), MAX_ROWS) + (len(w) > MAX_ROWS)) for w in weights.values())
    levels = 34 + LEVELS_HEIGHT * len(runs) + AXIS_HEIGHT
    height = 62 + LEGEND_HEIGHT + PLANE_HEIGHT + MARGIN + levels + 16 + tables
    image = Image.new("RGB", (round(WIDTH * scale), round(height * scale)), BACK)
    pen = Pen(image, scale)
    pen.write((EDGE, 9), title, 22, width=WIDTH - 2 * EDGE)
    pen.write((EDGE, 38), subtitle, 13, SOFT, WIDTH - 2 * EDGE)
    y = draw_legend(pen, 62, reference, runs)
    draw_paths(pen, y, reference, runs)
    y = draw_levels(pen, y + PLANE_HEIGHT + MARGIN + 6, runs)
    for name, values in weights.items():
        y = draw_weights(pen, y + 16, name, values, runs[0].times)
    return image


def colour(number: int) -> tuple[int, ...]:
    """Return the colour of a run: blue for the learned solver (number 0), red for the others."""
    return GOOD if number == 0 else BAD


def draw_legend(pen: Pen, y: float, reference: SolverRun, runs: list[SolverRun]) -> float:
    """Draw the legend: the name, colour and remark of each run; return the y below it."""
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
    return y + LEGEND_HEIGHT


def draw_paths(pen: Pen, top: float, reference: SolverRun, runs: list[SolverRun]) -> None:
    """Draw the trajectories, projected on a plane, with the noise on the left; each axis has its own scale.

    The axes are mirrored where necessary, so that the reference trajectory goes right and bends up."""
    ref = reference.points.tolist()
    turn = 1 if ref[-1][0] >= ref[0][0] else -1
    middle = sum(v for _, v in ref) / len(ref) - (ref[0][1] + ref[-1][1]) / 2
    lift = 1 if middle >= 0 else -1
    paths = [[(turn * a, lift * b) for a, b in run.points.tolist()] for run in (reference, *runs)]
    every = [point for path in paths for point in path]
    low, high = [min(v) for v in zip(*every)], [max(v) for v in zip(*every)]
    box = EDGE + 16, top + 30, RIGHT - 16, top + PLANE_HEIGHT

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across, up = ((v - a) / ((b - a) or 1) for v, a, b in zip(point, low, high))
        return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

    pen.box(EDGE, top + 4, RIGHT, top + PLANE_HEIGHT + MARGIN, PANEL)
    pen.line([at(p) for p in paths[0]], REFERENCE, 5)
    for number in range(len(runs) - 1, -1, -1):
        places = [at(p) for p in paths[number + 1]]
        pen.line(places, colour(number), 1.6)
        for place, mid in zip(places, runs[number].mids):
            pen.dot(place, DOT, colour(number), hollow=mid, square=number > 0)
    draw_numbers(pen, [at(p) for p in paths[1]])
    start, end = at(paths[0][0]), at(paths[0][-1])
    pen.write((start[0] - 8, start[1] + 8), f"noise, {sigma_text(reference.times[0])}", 12, SOFT, halo=True)
    width = text_width("image", 12)
    pen.write((min(end[0] + 8, RIGHT - 4) - width, end[1] + 8), "image", 12, SOFT, halo=True)


def draw_numbers(pen: Pen, places: list[tuple[float, float]]) -> None:
    """Write each step's number above the point where it starts, unless it would cover a point or number."""
    taken = list(places)
    for step, (x, y) in enumerate(places[:-1], 1):
        if all(math.dist((x, y - NUMBER_GAP), other) >= NUMBER_GAP - 1 for other in taken):
            taken.append((x, y - NUMBER_GAP))
            pen.write((x, y - NUMBER_GAP - 7), str(step), 12, GOOD, middle=True, halo=True)


def draw_levels(pen: Pen, y: float, runs: list[SolverRun]) -> float:
    """Draw the noise levels of each run's steps on a logarithmic scale; return the y below it."""
    hollow = "; hollow: learned mid times" if any(any(run.mids) for run in runs) else ""
    pen.write((EDGE, y), f"noise levels (sigma) of the moves{hollow}", 13, INK)
    y += 22
    high, low = max(r.times[0] for r in runs), min(r.times[-1] for r in runs)
    left, right = EDGE + 8, RIGHT - 14

    def at(sigma: float) -> float:
        return left + (right - left) * math.log(high / sigma) / math.log(high / low)

    for number, run in enumerate(runs):
        line = y + LEVELS_HEIGHT * number + 21
        pen.box(left, line - 0.6, right, line + 0.6, FAINT)
        last = -NUMBER_GAP
        for step, (sigma, mid) in enumerate(zip(run.times, run.mids), 1):
            pen.dot((at(sigma), line), DOT, colour(number), hollow=mid, square=number > 0)
            if number == 0 and step < len(run.times) and at(sigma) - last >= NUMBER_GAP:
                last = at(sigma)
                pen.write((last, line - 19), str(step), 12, GOOD, middle=True)
    y += LEVELS_HEIGHT * len(runs)
    taken: list[tuple[float, float]] = []
    for tick in (high, low, *(tick for tick in TICKS if low < tick < high)):
        place, half = at(tick), text_width(sigma_text(tick), 12) / 2
        text = min(max(place, EDGE + half), RIGHT - half)
        if all(text + half + 8 < left or text - half - 8 > right for left, right in taken):
            pen.box(place - 0.4, y - 4, place + 0.4, y, SOFT)
            pen.write((text, y + 2), sigma_text(tick), 12, SOFT, middle=True)
            taken.append((text - half, text + half))
    return y + AXIS_HEIGHT


def draw_weights(pen: Pen, y: float, name: str, values: Tensor, times: list[float]) -> float:
    """Draw a table of weights `[N, H]`, those of the H latest slopes (dx/dsigma) in each of N steps.

    Cells are coloured by the sign and size of the weight. Returns the y below the table."""
    pen.write((EDGE, y), name, 13, INK, WIDTH - 2 * EDGE)
    columns = min(values.shape[1], MAX_COLUMNS)
    left = EDGE + 124
    width = min((RIGHT - left) / columns, 84)
    y += 20
    pen.write((EDGE, y), "move, from and to sigma", 11, SOFT, left - EDGE - 6)
    for lag in range(columns):
        text = "newest" if lag == 0 else f"{lag} back"
        pen.write((left + (lag + 0.5) * width, y), text, 11, SOFT, width - 2, middle=True)
    y += 17
    most = float(values.abs().max()) or 1.0
    for n, row in enumerate(values[:MAX_ROWS, :columns].tolist()):
        interval = f"{sigma_text(times[n])} to {sigma_text(times[n + 1])}"
        pen.write((EDGE, y + 2), str(n + 1), 12, GOOD)
        pen.write((EDGE + 22, y + 2), interval, 12, INK, left - EDGE - 28)
        for lag, value in enumerate(row):
            if value == 0:
                continue
            share = 0.6 * min(abs(value) / most, 1.0)
            shade = tuple(round(b + share * (c - b)) for b, c in zip(BACK, GOOD if value > 0 else BAD))
            x = left + lag * width
            pen.box(x + 1, y, x + width - 1, y + ROW_HEIGHT - 2, shade)
            pen.write((x + width / 2, y + 1.5), f"{value:.2f}", 12, INK, width - 3, middle=True)
        y += ROW_HEIGHT
    if len(values) > MAX_ROWS:
        pen.write((EDGE, y + 2), f"and {len(values) - MAX_ROWS} more: see the text", 12, SOFT)
        y += ROW_HEIGHT
    return y


def sigma_text(sigma: float) -> str:
    """Format a noise level with three significant digits."""
    return f"{sigma:.0f}" if sigma >= 99.95 else f"{sigma:.3g}"
