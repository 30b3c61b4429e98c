"""The pictures of a calibration and of a training, finished or in progress.

ComfyUI and the WebUI show them about 300 pixels wide; therefore each shows only a few things, drawn large.
Lengths are in pixels."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .parts import names_of

INK, FAINT, BACK = (30, 32, 38), (205, 208, 214), (255, 255, 255)
COLOURS = ((214, 90, 49), (42, 111, 176), (70, 140, 80), (140, 90, 170), (190, 150, 40), (90, 150, 160))
WIDTH, PLOT_HEIGHT, EDGE = 820, 460, 16  # width of a picture, height of a plot, margin
MAX_SAMPLES, MAX_ROWS = 4, 4  # largest number of samples in a row, and of rows in the table of errors
MAX_LINES = 4  # largest number of lines in a plot of weights
NAME_WIDTH = 168  # width of the name to the left of a row of samples
DONE = "done"  # text of the last Progress of a fit
UNSMOOTHED = 128  # samples of at most this side length are enlarged without smoothing


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's default font at a size in pixels."""
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[int, ...], size: int,
          across: float, down: float, width: float = math.inf) -> None:  # fmt: skip
    """Write text at a position.

    Args:
        at: position of the anchor.
        size: font size.
        across, down: the anchor, as shares of the text's width and height: (0, 0) is its upper left corner,
            (1, 1) the lower right one. (Pillow's own anchors need a TrueType font, which its default font is
            only since version 10.1.)
        width: wider text is made smaller, and at last cut."""
    while (box := bounding_box(draw, text, size))[2] - box[0] > width and len(text) > 1:
        size, text = (size - 2, text) if size > 22 else (size, text[:-2].rstrip(" .,+") + "…")
    left, top, right, bottom = box
    place = at[0] - left - across * (right - left), at[1] - top - down * (bottom - top)
    draw.multiline_text(place, text, colour, font(size))


def bounding_box(draw: ImageDraw.ImageDraw, text: str, size: int) -> tuple[float, float, float, float]:
    """Return the bounding box (left, top, right, bottom) of text written at (0, 0)."""
    return draw.multiline_textbbox((0, 0), text, font=font(size))


class Panel:
    """A plot with a title and two axes, in the attribute `image`.

    Args:
        x: the values at the left and the right end of the x axis.
        y: the values at the lower and the upper end of the y axis.
        log_x: whether the x axis is logarithmic."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float], log_x: bool = False):
        self.image, self.log_x = Image.new("RGB", (WIDTH, PLOT_HEIGHT), BACK), log_x
        self.draw = ImageDraw.Draw(self.image)
        self.x, self.y = x, (y[0], y[1] if y[1] > y[0] else y[0] + 1)
        write(self.draw, (EDGE, 12), title, INK, 32, 0, 0, WIDTH - 2 * EDGE)
        left, top, right, bottom = self.box = 110, 66, WIDTH - 40, PLOT_HEIGHT - 56
        self.draw.line([(left, top), (left, bottom), (right, bottom)], FAINT, 2)
        for share in (0, 0.5, 1):
            value = self.y[0] + share * (self.y[1] - self.y[0])
            at = bottom - share * (bottom - top)
            self.draw.line([(left, at), (right, at)], FAINT, 2)
            write(self.draw, (left - 10, at), f"{value:.3g}", INK, 26, 1, 0.5)
            place = x[0] * (x[1] / x[0]) ** share if log_x else x[0] + share * (x[1] - x[0])
            label = f"{place:,.0f}" if place >= 1000 else f"{place:.3g}"
            write(self.draw, (left + share * (right - left), bottom + 14), label, INK, 26, 0.5, 0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point (x, y), in the units of the plot's axes, to pixel coordinates in its image."""
        left, top, right, bottom = self.box
        low, high = (math.log(v) for v in self.x) if self.log_x else self.x
        share = ((math.log(x) if self.log_x else x) - low) / ((high - low) or 1)
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + share * (right - left), bottom - up * (bottom - top)

    def line(
        self, points: list[tuple[float, float]], colour: tuple[int, ...], name: str = "", row: int = 0
    ) -> None:
        """Join points (x, y) by lines; write `name`, if given, as line `row` of the legend (0: the first)."""
        draw_curve(self.draw, [self.at(*point) for point in points], colour)
        if name:
            write(self.draw, (self.box[2] - 6, self.box[1] + 6 + 32 * row), name, colour, 28, 1, 0)


def draw_curve(draw: ImageDraw.ImageDraw, places: list[tuple[float, float]], colour: tuple[int, ...]) -> None:
    """Draw a line through points given in pixels, with a dot at each."""
    if len(places) > 1:
        draw.line(places, colour, 5)
    for x, y in places:
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], colour)


def constants(fitted: Any) -> Image.Image:
    """Plot the numbers fitted for a sampler over the noise level (sigma).

    For AMED Multistep, these are the weights of the last few slopes (dx/dsigma), one curve per slope. If each
    slope is split, e.g. into frequency bands, there is one curve per part of the newest slope instead. If a
    constant was fitted that is added to the slope, another plot shows it for each latent channel.

    Args:
        fitted: the fitted numbers with their noise levels, an amed.Fitted."""
    values, starts = getattr(fitted.predictor, "values", {}), fitted.base[:-1].tolist()
    if not values:
        network = "a network: its r, c, a depend on the image"
        return Panel(network if fitted.wants_bottleneck else "nothing was fitted", (0, 1), (0, 1)).image
    if "weights" not in values:
        lines = {name: list(zip(starts, column.tolist())) for name, column in values.items()}
        return curves("constants over the noise level (sigma)", lines)
    weights, skipped = values["weights"], fitted.predictor.alone
    if weights.ndim == 2:
        columns = [list(zip(starts, column))[k:] for k, column in enumerate(weights.T[:MAX_LINES].tolist())]
        names = [f"weight, {k} back" if k else "weight, newest" for k in range(len(columns))]
        pages = [curves("weights over the noise level (sigma)", dict(zip(names, columns)))]
    else:
        lines, count = {}, weights.shape[-1]
        for k, name in enumerate(names_of(fitted.spec.parts, count)):
            steps = [n for n in range(len(starts)) if k < count // 2 or n not in skipped]
            lines[name] = [(starts[n], float(weights[n, 0, k])) for n in steps]
        note = f"; one pass at {', '.join(f'{starts[n]:.3g}' for n in skipped)}" if skipped else ""
        pages = [
            curves(f"newest weights over sigma{note}", dict(list(lines.items())[at : at + MAX_LINES]))
            for at in range(0, count, MAX_LINES)
        ]
    if "offset" in values:
        every = values["offset"].T.tolist()
        lines = {f"channel {c}": list(zip(starts, column)) for c, column in enumerate(every, 1)}
        pages.append(curves("offsets over the noise level (sigma)", lines))
    return stack(pages)


def curves(title: str, lines: dict[str, list[tuple[float, float]]]) -> Image.Image:
    """Plot named lines of points (sigma, value). Names are left out if there are more lines than colours."""
    points = [point for line in lines.values() for point in line]
    starts, every = [t for t, _ in points], [v for _, v in points]
    low, high = min(0.0, *every), max(every)
    end = (max(starts), max(min(starts) * 0.9, 1e-6))
    panel = Panel(title, end, (low, high + 0.4 * (high - low)), log_x=True)
    for i, (name, line) in enumerate(lines.items()):
        panel.line(line, COLOURS[i % len(COLOURS)], name if len(lines) <= len(COLOURS) else "", i)
    return panel.image


# --- parts of a page ---------------------------------------------------------------------------------------


def headline(big: str, small: str) -> Image.Image:
    """Draw a heading: one very large line of text above a smaller one."""
    image = Image.new("RGB", (WIDTH, 136), BACK)
    draw = ImageDraw.Draw(image)
    write(draw, (EDGE, 20), big, INK, 60, 0, 0, WIDTH - 2 * EDGE)
    write(draw, (EDGE, 94), small, INK, 34, 0, 0, WIDTH - 2 * EDGE)
    return image


def tile(sample: Tensor, side: int) -> Image.Image:
    """Return a sample `[3, H, W]` in [-1, 1] as an image whose longer side is `side` pixels."""
    values = ((sample.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(values)
    size = tuple(max(1, round(n * side / max(image.size))) for n in image.size)
    way = Image.Resampling.NEAREST if max(image.size) <= UNSMOOTHED else Image.Resampling.LANCZOS
    return image.resize(size, way)


def sample_rows(pictures: dict[str, Tensor], highest: int = MAX_SAMPLES) -> Image.Image:
    """Draw one row of samples per name, with the name on the left.

    Args:
        pictures: name -> samples `[n, 3, H, W]` in [-1, 1].
        highest: largest number of samples in a row."""
    count = min(highest, *(len(p) for p in pictures.values()))
    side = (WIDTH - 2 * EDGE - NAME_WIDTH) // max(count, 4) - 8  # one to three samples are as large as four
    rows = [[tile(sample, side) for sample in samples[:count]] for samples in pictures.values()]
    high = [max(t.height for t in row) + 8 for row in rows]
    image = Image.new("RGB", (WIDTH, sum(high) + 12), BACK)
    draw, top = ImageDraw.Draw(image), 0
    for name, row, step in zip(pictures, rows, high):
        for i, line in enumerate(name.splitlines()):
            write(draw, (EDGE, top + step // 2 - 20 + 34 * i), line, INK, 30, 0, 0.5, NAME_WIDTH - 8)
        for i, picture in enumerate(row):
            image.paste(picture, (EDGE + NAME_WIDTH + i * (side + 8), top))
        top += step
    return image


def error_bars(rows: Sequence[Any]) -> Image.Image:
    """Draw bars for the errors of a calibrated sampler and of plain solvers (without fitted numbers).

    Args:
        rows: a solver and its error each (`rows` of an amed.fit.Result); the first `MAX_ROWS` are drawn."""
    rows = rows[:MAX_ROWS]
    image = Image.new("RGB", (WIDTH, 56 + 68 * len(rows)), BACK)
    draw = ImageDraw.Draw(image)
    write(draw, (EDGE, 10), "error to the reference", INK, 32, 0, 0)
    highest = max((row.error for row in rows if math.isfinite(row.error)), default=1.0) or 1.0
    for i, row in enumerate(rows):
        top, known = 56 + 68 * i, math.isfinite(row.error)
        name = row.solver if i == 0 else f"{row.solver}, {row.schedule}"
        write(draw, (EDGE, top), name, INK, 30, 0, 0, WIDTH - 170)
        write(draw, (WIDTH - EDGE, top), f"{row.error:.3f}" if known else "not finite", INK, 34, 1, 0)
        length = (WIDTH - 2 * EDGE) * (min(row.error / highest, 1.0) if known else 1.0)
        draw.rectangle([EDGE, top + 38, EDGE + max(length, 2), top + 54], COLOURS[min(i, 1)])
    return image


def stack(parts: Sequence[Image.Image]) -> Image.Image:
    """Return the images stacked in one column, from top to bottom."""
    whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), BACK)
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


# --- pages -------------------------------------------------------------------------------------------------


def calibration(result: Any, pictures: dict[str, Tensor]) -> Image.Image:
    """Draw the report of a finished calibration: samples, and its error beside those of plain solvers.

    Args:
        result: an amed.fit.Result.
        pictures: name to write beside the samples, e.g. "reference" -> samples `[n, 3, H, W]` in [-1, 1]."""
    first, best = result.rows[:2]
    comparison = f"{first.error / max(best.error, 1e-12):.2f} of the best plain solver's"
    if not result.improved:
        comparison = "the best plain solver is kept: the fit did not beat it"
    skips_passes = bool(getattr(result.fitted.predictor, "alone", ()))
    passes = f" in {result.fitted.passes} passes" if skips_passes else ""
    big = f"error {first.error:.3f} at {first.nfe} evaluations{passes}"
    return stack([headline(big, comparison), sample_rows(pictures), error_bars(result.rows)])


def training(measurements: list[tuple[int, list[float], float]], untrained: float,
             pictures: dict[str, Tensor]) -> Image.Image:  # fmt: skip
    """Draw the report of training an AMED network: its samples, and its error on noise not used in training.

    Args:
        measurements: (training images so far, loss of each sampling step, error) at each measurement.
        untrained: the error before training.
        pictures: name to write beside the samples -> samples `[n, 3, H, W]` in [-1, 1]."""
    last = float(measurements[-1][0])
    errors = [(float(n), e) for n, _, e in measurements]
    best = min(e for _, e in errors)
    top = headline(f"error {best:.3f}", f"to the teacher on held-out noise; untrained {untrained:.3f}")
    error = Panel("held-out error over images", (0, last), (0, 1.1 * max(untrained, *(e for _, e in errors))))
    error.line([(0.0, untrained), (last, untrained)], COLOURS[1], "untrained")
    error.line(errors, COLOURS[0], "network", 1)
    return stack([top, sample_rows(pictures), error.image])


def live(progress: Any, look: Any, pictures: dict[str, Tensor]) -> Image.Image:
    """Draw a calibration in progress: the time left, and its error divided by the best plain solver's.

    Args:
        progress: an amed.fit.Progress.
        look: the errors of the best fit and of the best plain solver so far, an amed.fit.preview.Preview.
        pictures: name -> samples `[n, 3, H, W]` in [-1, 1]; the first sample of each is drawn."""
    image = Image.new("RGB", (WIDTH, 232), BACK)
    draw = ImageDraw.Draw(image)
    finished = progress.text == DONE
    share = 1.0 if finished else progress.evaluations / max(progress.budget, 1)
    draw.rectangle([0, 0, WIDTH, 20], FAINT)
    draw.rectangle([0, 0, WIDTH * share, 20], COLOURS[0])
    if math.isfinite(look.error):
        big, small = f"{look.ratio:.2f}", f"of the best plain\nsolver's error\n({look.solver})"
        write(draw, (EDGE, 42), big, COLOURS[0] if look.ratio < 1 else INK, 118, 0, 0)
        write(draw, (310, 42), small, INK, 34, 0, 0, WIDTH - 310 - EDGE)
    else:
        big = {"reference": "making references", "search": "trying plain solvers"}
        write(draw, (EDGE, 48), big.get(progress.stage, "fitting"), INK, 64, 0, 0, WIDTH - 2 * EDGE)
        if math.isfinite(look.plain):
            write(draw, (EDGE, 122), f"to beat: {look.solver}", INK, 36, 0, 0, WIDTH - 2 * EDGE)
    status = "done" if finished else f"{100 * share:.0f} % done{time_left(progress.seconds)}"
    status = f"{progress.nfe} evaluations: {status}"
    write(draw, (EDGE, 182), status, INK, 38, 0, 0, WIDTH - 2 * EDGE)
    parts = [image]
    if len(look.curve) > 1:
        parts.append(error_curve(look.curve))
    if pictures:
        parts.append(first_samples(pictures))
    return stack(parts)


def time_left(seconds: float) -> str:
    """Return a text such as ", about 3 min left"; "" if the number of seconds is not finite."""
    if not math.isfinite(seconds):
        return ""
    if seconds < 100:
        return f", about {max(5, 5 * round(seconds / 5))} s left"
    minutes = round(seconds / 60)
    return f", about {minutes} min left" if minutes < 100 else f", about {minutes / 60:.1f} h left"


def error_curve(curve: Sequence[tuple[int, float]]) -> Image.Image:
    """Plot the error of a running calibration over the number of model evaluations it has used.

    Args:
        curve: points (evaluations so far, error divided by that of the best plain solver)."""
    image = Image.new("RGB", (WIDTH, 190), BACK)
    draw = ImageDraw.Draw(image)
    first, last = curve[0][0], max(curve[-1][0], curve[0][0] + 1)
    high = max(1.1, min(2.0, max(e for _, e in curve)))

    def at(n: float, e: float) -> tuple[float, float]:
        return EDGE + 8 + (n - first) / (last - first) * (WIDTH - 2 * EDGE - 16), 174 - 160 * min(
            e, high
        ) / high

    draw.line([at(first, 1), at(last, 1)], COLOURS[1], 5)
    draw.line([at(first, 0), at(last, 0)], FAINT, 3)
    write(draw, (WIDTH - EDGE, at(last, 1)[1] + 8), "best plain", COLOURS[1], 28, 1, 0)
    draw_curve(draw, [at(n, e) for n, e in curve], COLOURS[0])
    return image


def first_samples(pictures: dict[str, Tensor]) -> Image.Image:
    """Draw the first sample of each entry of `pictures` (name -> samples), side by side under their names."""
    side = (WIDTH - 2 * EDGE - 2 * 12) // 3
    tiles = [tile(samples[0], side) for samples in pictures.values()]
    image = Image.new("RGB", (WIDTH, 50 + max(t.height for t in tiles) + 12), BACK)
    draw = ImageDraw.Draw(image)
    for i, (name, picture) in enumerate(zip(pictures, tiles)):
        write(draw, (EDGE + i * (side + 12), 8), name, INK, 34, 0, 0, side)
        image.paste(picture, (EDGE + i * (side + 12), 50))
    return image


def as_image(picture: Image.Image) -> Tensor:
    """Convert a PIL image to a float tensor `[1, H, W, 3]` in [0, 1]."""
    values = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return values.view(1, picture.height, picture.width, 3).float() / 255
