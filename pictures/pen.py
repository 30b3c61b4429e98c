"""Drawing and writing in units of 1/500 of the picture's width.

The hosts show a picture about 500 pixels wide, so text of size 11 in these units is readable there."""

from PIL import Image, ImageDraw

from .report import font

INK, SOFT, FAINT, BACK = (24, 27, 33), (92, 98, 110), (216, 219, 226), (255, 255, 255)
GOOD, BAD = (0, 114, 178), (176, 58, 20)  # blue and red of Okabe and Ito's palette for the colour-blind
WIDTH, EDGE = 500, 10  # width of a picture and its margin, in units
SMALL = 0.7  # the smallest share of its size to which text is shrunk to fit


class Pen:
    """Draws on a picture in units of 1/500 of its width; `unit` is the number of pixels per unit."""

    def __init__(self, image: Image.Image, unit: float):
        self.draw, self.unit = ImageDraw.Draw(image), unit

    def box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, ...]) -> None:
        """Fill a rectangle."""
        self.draw.rectangle([round(v * self.unit) for v in (left, top, right, bottom)], colour)

    def line(self, places: list[tuple[float, float]], colour: tuple[int, ...], width: float) -> None:
        """Draw a curve through points, `width` units thick."""
        joined = [(x * self.unit, y * self.unit) for x, y in places]
        self.draw.line(joined, colour, max(1, round(width * self.unit)), joint="curve")

    def dot(self, at: tuple[float, float], size: float, colour: tuple[int, ...], hollow: bool = False,
            square: bool = False) -> None:  # fmt: skip
        """Draw a circle or a square of radius `size` around a point; a hollow one is only an outline."""
        box = [(v + side * size) * self.unit for side in (-1, 1) for v in at]
        draw = self.draw.rectangle if square else self.draw.ellipse
        draw(box, BACK if hollow else colour, colour, max(1, round(1.6 * self.unit)))

    def write(self, at: tuple[float, float], text: str, size: float, colour: tuple[int, ...] = INK,
              width: float = 0, lines: int = 1, middle: bool = False,
              halo: bool = False) -> float:  # fmt: skip
        """Write text and return the height it takes.

        Args:
            at: the upper left corner, or the middle of the upper edge with `middle`.
            width: where the text is wider, it is made smaller, broken and at last cut (see `fitted`);
                0 for any width.
            lines: largest number of lines.
            halo: whether to outline the letters in white, for text above other drawings."""
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
    """Return the width of text at a font size, in the unit of `size`."""
    left, _, right, _ = font(40).getbbox(text)
    return 1.03 * (right - left) * size / 40  # 3 % for rounding small letters to pixels


def fitted(text: str, size: float, width: float, lines: int) -> tuple[float, list[str]]:
    """Fit text into a width and a number of lines.

    Returns the font size (between `SMALL` times `size` and `size`) and the lines; where the text is still too
    long, the last line ends in "..."."""
    for smaller in (size, (1 + SMALL) / 2 * size, SMALL * size):
        broken = wrapped(text, smaller, width)
        if len(broken) <= lines:
            return smaller, broken
    last = broken[lines - 1]
    while last and wide(last + "...", smaller) > width:
        last = last[:-1]
    return smaller, [*broken[: lines - 1], last + "..."]


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Break text into lines of a width: at spaces, or within a word that is wider than the line."""
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
