"""The pictures of a calibration and of a training: what was gained, what was found, what images look like.
`result`: an amed.fit.Result, `fitted`: an amed.Fitted."""

import math
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, FAINT, BACK = (30, 32, 38), (205, 208, 214), (255, 255, 255)
COLOURS = ((214, 90, 49), (42, 111, 176), (70, 140, 80), (140, 90, 170), (190, 150, 40), (90, 150, 160))
WIDE, HIGH, SIDE = 460, 300, 96


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: tuple[int, ...], size: int,
          across: float, down: float) -> None:  # fmt: skip
    """Text of which the point so far `across` and `down` it (0 to 1) is `at`: Pillow's own anchors need its
    own font, which versions before 10.1 do not have."""
    face = font(size)
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=face)
    place = at[0] - left - across * (right - left), at[1] - top - down * (bottom - top)
    draw.multiline_text(place, text, colour, face)


class Panel:
    """A plot on a canvas of its own: a title, two axes, one scale each."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float], log_x: bool = False):
        self.image, self.log_x = Image.new("RGB", (WIDE, HIGH), BACK), log_x
        self.draw = ImageDraw.Draw(self.image)
        self.x, self.y = x, (y[0], y[1] if y[1] > y[0] else y[0] + 1)
        self.draw.text((12, 8), title, INK, font(15))
        left, top, right, bottom = self.box = 56, 36, WIDE - 16, HIGH - 34
        self.draw.line([(left, top), (left, bottom), (right, bottom)], FAINT, 1)
        for share in (0, 0.5, 1):
            value = self.y[0] + share * (self.y[1] - self.y[0])
            at = bottom - share * (bottom - top)
            self.draw.line([(left, at), (right, at)], FAINT, 1)
            write(self.draw, (left - 6, at), f"{value:.3g}", INK, 11, 1, 0.5)
            place = x[0] * (x[1] / x[0]) ** share if log_x else x[0] + share * (x[1] - x[0])
            label = f"{place:,.0f}" if place >= 1000 else f"{place:.3g}"
            write(self.draw, (left + share * (right - left), bottom + 8), label, INK, 11, 0.5, 0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self.box
        low, high = (math.log(v) for v in self.x) if self.log_x else self.x
        share = ((math.log(x) if self.log_x else x) - low) / ((high - low) or 1)
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + share * (right - left), bottom - up * (bottom - top)

    def line(
        self, points: list[tuple[float, float]], colour: tuple[int, ...], name: str = "", row: int = 0
    ) -> None:
        """Points joined; `name` stands in the upper right corner, in its `row`."""
        places = [self.at(*point) for point in points]
        if len(places) > 1:
            self.draw.line(places, colour, 2)
        for x, y in places:
            self.draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour)
        if name:
            write(self.draw, (self.box[2] - 4, self.box[1] + 4 + 14 * row), name, colour, 12, 1, 0)


def errors(result: Any) -> Image.Image:
    """The held-out error of each start and after each iteration, beside the best plain setting's."""
    points = [(float(n), e) for n, e in result.history if math.isfinite(e)]
    if not points:
        return Panel("no iteration was made", (0, 1), (0, 1)).image
    plain, last = result.rows[1].error, max(n for n, _ in points)
    high = 1.25 * max(plain, *(e for _, e in points))
    panel = Panel("held-out error over evaluations", (0, last), (0, high))
    panel.line([(0.0, plain), (last, plain)], COLOURS[1], f"best plain: {result.rows[1].solver}")
    panel.line(points, COLOURS[0], "AMED", 1)
    return panel.image


def constants(fitted: Any) -> Image.Image:
    """What was fitted, over the noise level: each constant, or the weights of the newest slopes."""
    values, starts = getattr(fitted.predictor, "values", {}), fitted.base[:-1].tolist()
    lines = {name: v for name, v in values.items() if name != "weights"}
    if "weights" in values:
        columns = values["weights"].flatten(1).T[:4]
        lines = {f"weight, {k} back" if k else "weight, newest": column for k, column in enumerate(columns)}
    if not lines:
        what = (
            "a network: its r, c, a depend on the image" if fitted.wants_bottleneck else "nothing was fitted"
        )
        return Panel(what, (0, 1), (0, 1)).image
    every = torch.cat(list(lines.values()))
    low, high = float(every.min().clamp(max=0)), float(every.max())
    end = (starts[0], max(starts[-1] * 0.9, 1e-6))
    panel = Panel("constants over the noise level (sigma)", end, (low, high + 0.4 * (high - low)), log_x=True)
    for i, (name, column) in enumerate(lines.items()):
        points = list(zip(starts, column.tolist()))
        panel.line(points[i if "weights" in values else 0 :], COLOURS[i], name, i)
    return panel.image


def bars(result: Any) -> Image.Image:
    """Errors of the result, the best plain setting and the solvers as usually set."""
    image = Image.new("RGB", (WIDE, HIGH), BACK)
    draw = ImageDraw.Draw(image)
    draw.text((12, 8), f"error to the reference, {result.rows[0].nfe} evaluations", INK, font(15))
    most = max(row.error for row in result.rows if math.isfinite(row.error)) or 1.0
    high = min(46, (HIGH - 50) // len(result.rows))
    for i, row in enumerate(result.rows):
        top = 40 + i * high
        name = row.solver if i == 0 else f"{row.solver}, {row.schedule}"
        draw.text((14, top), name, INK, font(12))
        length = (WIDE - 110) * min(row.error / most, 1.0)
        draw.rectangle([14, top + 16, 14 + max(length, 1), top + high - 8], COLOURS[min(i, 1)])
        write(draw, (22 + length, top + (high + 8) // 2), f"{row.error:.3f}", INK, 12, 0, 0.5)
    return image


def grid(pictures: dict[str, Tensor]) -> Image.Image:
    """Rows of samples `[n, 3, H, W]` in [-1, 1], each with its name."""
    count = min(8, *(len(p) for p in pictures.values()))
    image = Image.new("RGB", (120 + count * (SIDE + 4), len(pictures) * (SIDE + 4) + 8), BACK)
    draw = ImageDraw.Draw(image)
    for row, (name, pixels) in enumerate(pictures.items()):
        top = 4 + row * (SIDE + 4)
        write(draw, (8, top + SIDE // 2), name, INK, 13, 0, 0.5)
        for i, sample in enumerate(pixels[:count]):
            values = ((sample.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            tile = Image.fromarray(values)
            tile.thumbnail((SIDE, SIDE)) if max(tile.size) > SIDE else None
            scale = SIDE / max(tile.size)
            size = max(1, round(tile.width * scale)), max(1, round(tile.height * scale))
            image.paste(tile.resize(size, Image.Resampling.BICUBIC), (120 + i * (SIDE + 4), top))
    return image


def picture(result: Any, pictures: dict[str, Tensor]) -> Image.Image:
    """A calibration's whole report."""
    return page(result.text, [errors(result), constants(result.fitted), bars(result)], pictures)


def training(text: str, progress: list[tuple[int, list[float], float]], untrained: float,
             pictures: dict[str, Tensor]) -> Image.Image:  # fmt: skip
    """A training's report: the held-out error beside the untrained solver's, and each interval's loss over
    its first one."""
    last = float(progress[-1][0])
    held = [(float(n), e) for n, _, e in progress]
    error = Panel("held-out error over images", (0, last), (0, 1.1 * max(untrained, *(e for _, e in held))))
    error.line([(0.0, untrained), (last, untrained)], COLOURS[1], "untrained")
    error.line(held, COLOURS[0], "network", 1)
    first = [max(v, 1e-12) for v in progress[0][1]]
    intervals = range(len(first))
    lines = [[(float(n), v[i] / first[i]) for n, v, _ in progress if math.isfinite(v[i])] for i in intervals]
    high = max(v for line in lines for _, v in line)
    losses = Panel("loss of each interval over its first", (0, last), (0, high))
    for i, line in enumerate(lines):
        losses.line(line, COLOURS[i % len(COLOURS)], f"interval {i + 1}", i)
    return page(text, [error.image, losses.image], pictures)


def page(text: str, plots: list[Image.Image], pictures: dict[str, Tensor]) -> Image.Image:
    """A line of text, plots side by side, a grid of samples."""
    samples = grid(pictures)
    head = 16 + 18 * len(text.splitlines())
    whole = Image.new("RGB", (max(WIDE * len(plots), samples.width), head + HIGH + samples.height), BACK)
    ImageDraw.Draw(whole).multiline_text((12, 9), text, INK, font(16))
    for i, plot in enumerate(plots):
        whole.paste(plot, (i * WIDE, head))
    whole.paste(samples, (0, head + HIGH))
    return whole


def as_image(picture: Image.Image) -> Tensor:
    """PIL to `[1, H, W, 3]` in [0, 1]."""
    values = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return values.view(1, picture.height, picture.width, 3).float() / 255
