"""Writing and drawing in units of a 500th of a picture's width: size 11 can be read where a page shows the
picture 500 pixels wide."""

from PIL import Image, ImageDraw

from .report import font

INK, SOFT, FAINT, BACK = (24, 27, 33), (92, 98, 110), (216, 219, 226), (255, 255, 255)
GOOD, BAD = (0, 114, 178), (176, 58, 20)  # of the palette for the colour-blind by Okabe and Ito
WIDTH, EDGE = 500, 10  # in units: what a node shows across
SMALL = 0.7  # text is made smaller down to this before it is broken


class Pen:
    """Writes on a picture, in units of a 500th of its width; `unit`: pixels of one."""

    def __init__(self, image: Image.Image, unit: float):
        self.draw, self.unit = ImageDraw.Draw(image), unit

    def box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, ...]) -> None:
        self.draw.rectangle([round(v * self.unit) for v in (left, top, right, bottom)], colour)

    def line(self, places: list[tuple[float, float]], colour: tuple[int, ...], width: float) -> None:
        joined = [(x * self.unit, y * self.unit) for x, y in places]
        self.draw.line(joined, colour, max(1, round(width * self.unit)), joint="curve")

    def dot(self, at: tuple[float, float], size: float, colour: tuple[int, ...], hollow: bool = False,
            square: bool = False) -> None:  # fmt: skip
        """A point `size` to each side; a hollow one is its outline on white."""
        box = [(v + side * size) * self.unit for side in (-1, 1) for v in at]
        draw = self.draw.rectangle if square else self.draw.ellipse
        draw(box, BACK if hollow else colour, colour, max(1, round(1.6 * self.unit)))

    def write(self, at: tuple[float, float], text: str, size: float, colour: tuple[int, ...] = INK,
              width: float = 0, lines: int = 1, middle: bool = False,
              halo: bool = False) -> float:  # fmt: skip
        """Text whose left (or middle) upper corner is `at`; no wider than `width` (0: as it comes), in so
        many lines at most. halo: on white, where there may be something under it. Gives the height it
        took."""
        size, broken = fitted(text, size, width, lines) if width else (size, [text])
        for i, line in enumerate(broken):
            left = at[0] - (wide(line, size) / 2 if middle else 0)
            place = left * self.unit, (at[1] + 1.2 * i * size) * self.unit
            edge = round(2 * self.unit) if halo else 0
            self.draw.text(
                place, line, colour, font(round(size * self.unit)), stroke_width=edge, stroke_fill=BACK
            )
        return 1.2 * size * len(broken)


def wide(text: str, size: float) -> float:
    """How wide text is, in the unit of `size`."""
    left, _, right, _ = font(40).getbbox(text)
    return 1.03 * (right - left) * size / 40  # small letters are set to whole pixels


def fitted(text: str, size: float, width: float, lines: int) -> tuple[float, list[str]]:
    """The size (somewhat less than `size` where that helps) and lines in which text keeps within a width;
    what does not fit ends in dots."""
    for smaller in (size, (1 + SMALL) / 2 * size, SMALL * size):
        broken = wrapped(text, smaller, width)
        if len(broken) <= lines:
            return smaller, broken
    last = broken[lines - 1]
    while last and wide(last + "...", smaller) > width:
        last = last[:-1]
    return smaller, [*broken[: lines - 1], last + "..."]


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Text in lines of a width, broken at spaces, or within a word where it has to be."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if wide(joined, size) <= width:
            lines[-1] = joined
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = word
        while wide(lines[-1], size) > width and len(lines[-1]) > 1:
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or wide(word[:n], size) <= width)
            lines[-1], word = word[:cut], word[cut:]
            lines.append(word)
    return lines
