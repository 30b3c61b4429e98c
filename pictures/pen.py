"""Drawing and writing in units of 1/500 of the picture's width.

ComfyUI and the WebUI show a picture about 500 pixels wide, so text of size 11 in these units is readable."""

from PIL import Image, ImageDraw

from .report import font

INK, SOFT, FAINT, BACK = (24, 27, 33), (92, 98, 110), (216, 219, 226), (255, 255, 255)
# RGB colours; blue and red are distinguishable to the colour-blind (Okabe and Ito's palette)
GOOD, BAD = (0, 114, 178), (176, 58, 20)
WIDTH, EDGE = 500, 10  # width of a picture and its margin, in units
MIN_SHRINK = 0.7  # text is shrunk to this share of its font size at most, to fit into its place


class Pen:
    """Draws on a picture in units of 1/500 of its width.

    Args:
        unit: number of pixels per unit."""

    def __init__(self, image: Image.Image, unit: float):
        self.draw, self.unit = ImageDraw.Draw(image), unit

    def box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, ...]) -> None:
        """Draw a filled rectangle."""
        self.draw.rectangle([round(v * self.unit) for v in (left, top, right, bottom)], colour)

    def line(self, points: list[tuple[float, float]], colour: tuple[int, ...], width: float) -> None:
        """Draw a curve through points, `width` units thick."""
        points = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.line(points, colour, max(1, round(width * self.unit)), joint="curve")

    def dot(self, center: tuple[float, float], size: float, colour: tuple[int, ...], hollow: bool = False,
            square: bool = False) -> None:  # fmt: skip
        """Draw a disc of radius `size`, or a square with sides of twice that, around a point.

        With `hollow` only its outline is drawn."""
        box = [(v + side * size) * self.unit for side in (-1, 1) for v in center]
        draw = self.draw.rectangle if square else self.draw.ellipse
        draw(box, BACK if hollow else colour, colour, max(1, round(1.6 * self.unit)))

    def write(self, at: tuple[float, float], text: str, size: float, colour: tuple[int, ...] = INK,
              width: float = 0, lines: int = 1, middle: bool = False,
              halo: bool = False) -> float:  # fmt: skip
        """Write text and return the height it takes.

        Args:
            at: the upper left corner of the text, or with `middle` the middle of its upper edge.
            size: font size, in 1/500 of the picture's width, like all lengths here.
            width: largest width; wider text is wrapped and, if it is still too long, shrunk and then cut.
                0: unlimited.
            lines: largest number of lines.
            halo: whether to outline the letters in white, for text on top of other drawings."""
        size, broken = fit_text(text, size, width, lines) if width else (size, [text])
        for i, line in enumerate(broken):
            left = at[0] - (text_width(line, size) / 2 if middle else 0)
            place = left * self.unit, (at[1] + 1.2 * i * size) * self.unit
            edge = round(2 * self.unit) if halo else 0
            self.draw.text(
                place, line, colour, font(round(size * self.unit)), stroke_width=edge, stroke_fill=BACK
            )
        return 1.2 * size * len(broken)


def text_width(text: str, size: float) -> float:
    """Return the width of text at a font size, in the unit of `size`."""
    left, _, right, _ = font(40).getbbox(text)
    return 1.03 * (right - left) * size / 40  # 3 % for rounding small letters to pixels


def fit_text(text: str, size: float, width: float, lines: int) -> tuple[float, list[str]]:
    """Fit text into a width and a number of lines.

    Args:
        size: font size.
        width: largest width of a line, in the unit of `size`.
        lines: largest number of lines.

    Returns:
        The font size, from `MIN_SHRINK * size` to `size`, and the lines. If the text is too long even at the
        smallest size, the last line ends in "..."."""
    for smaller in (size, (1 + MIN_SHRINK) / 2 * size, MIN_SHRINK * size):
        broken = wrap_text(text, smaller, width)
        if len(broken) <= lines:
            return smaller, broken
    last = broken[lines - 1]
    while last and text_width(last + "...", smaller) > width:
        last = last[:-1]
    return smaller, [*broken[: lines - 1], last + "..."]


def wrap_text(text: str, size: float, width: float) -> list[str]:
    """Break text into lines of at most `width`: at spaces, or within a word that is wider than a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, size) <= width:
            lines[-1] = joined
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = word
        while text_width(lines[-1], size) > width and len(lines[-1]) > 1:
            cut = next(
                n for n in range(len(word) - 1, 0, -1) if n == 1 or text_width(word[:n], size) <= width
            )
            lines[-1], word = word[:cut], word[cut:]
            lines.append(word)
    return lines
