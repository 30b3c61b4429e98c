"""The picture of `make demo`: a row of images per sampler, with its figures; a column per seed.

A bar shows each sampler's distance to the reference: the shorter, the nearer."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .rows import Row, tile

SIDE, LEFT, GAP = 96, 330, 6  # in pixels: of an image, of the column of names, between images
LINE = 13  # height of a line of a caption, in pixels
FONTS = {"name": 19, "figures": 14, "caption": 11}  # sizes
BAR = 300, 6  # width of the longest bar, and height
OURS, OTHERS = "#2a7ae2", "#9aa3ad"  # colours of the bars: AMED's, other samplers'


def captions(prompts: list[str], font: ImageFont.FreeTypeFont) -> list[list[str]]:
    """Return the lines above each column, what its prompt asks for, each as wide as an image at most if its
    words allow it; none if all prompts are the same."""
    if len(set(prompts)) == 1:
        return [[] for _ in prompts]
    columns = []
    for prompt in prompts:
        lines: list[str] = []
        for phrase in filter(str.strip, prompt.split(",")):
            line, *words = phrase.split()
            for word in words:
                if font.getlength(f"{line} {word}") <= SIDE:
                    line = f"{line} {word}"
                else:
                    lines.append(line)
                    line = word
            lines.append(line)
        columns.append(lines)
    return columns


def picture(rows: list[tuple[Row, Tensor]], shown: list[tuple[int, str]], file: Path) -> None:
    """Draw a comparison into a file: per sampler a line with its figures and some of its images.

    Args:
        rows: each sampler's figures, and its images `[n, 3, H, W]` in [-1, 1].
        shown: of each column, the number of its image and the prompt.
        file: the PNG file to write."""
    fonts = {name: ImageFont.load_default(size) for name, size in FONTS.items()}
    above = captions([prompt for _, prompt in shown], fonts["caption"])
    top = GAP + LINE * max(map(len, above)) + (GAP if any(above) else 0)
    page = Image.new("RGB", (LEFT + len(shown) * (SIDE + GAP), top + len(rows) * (SIDE + GAP)), "white")
    draw = ImageDraw.Draw(page)
    for x, lines in enumerate(above):
        draw.text((LEFT + x * (SIDE + GAP), GAP), "\n".join(lines), "#444444", fonts["caption"], spacing=1)
    largest = max(row.rmse_ref for row, _ in rows)
    for y, (row, images) in enumerate(rows):
        middle = top + y * (SIDE + GAP)
        draw.text((10, middle + 6), row.solver, "black", fonts["name"])
        figures = f"{row.nfe} evaluations, {row.schedule}"
        if row.rmse_ref:
            figures += f"\nerror {row.rmse_ref:.3f}, FD {row.fd_ref:.2f}"
            length = round(BAR[0] * row.rmse_ref / largest)
            colour = OURS if row.solver.startswith("AMED") else OTHERS
            draw.rectangle((10, middle + 78, 10 + length, middle + 78 + BAR[1]), colour)
        draw.text((10, middle + 34), figures, "#444444", fonts["figures"])
        for x, (image, _) in enumerate(shown):
            page.paste(tile(images[image], SIDE), (LEFT + x * (SIDE + GAP), middle))
    part = file.with_suffix(".part.png")
    page.save(part)
    part.replace(file)
