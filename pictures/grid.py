"""The comparison picture: one row per sampler, one column per seed, each row with its measured figures.

All lengths are in units of 1/500 of the picture's width (see pen.py)."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .pen import BACK, BAD, EDGE, FAINT, GOOD, INK, SOFT, WIDTH, Pen, fitted

GAP, TILE, LABEL = 4, 200, 150  # gap between tiles; largest tile width; smallest label width
NAME, TEXT, LINE = 15, 11.5, 14  # font size of a row's name, of its details; height of a line of details
BAR = 26  # height of the distance and its bar
TITLE = 100  # height reserved for the title
NOTE_SIZE = WIDTH - 2 * EDGE, 2  # width of a row's note, and its largest number of lines
REASON = 6  # largest number of lines of a failure's reason
LARGEST = 4e7  # pixels of the picture at most
# a bar is full at this multiple of the median distance, so that an outlier does not shrink the others
FAR = 3


@dataclass(frozen=True)
class Row:
    """One sampler of the comparison picture: its images and its measured figures."""

    name: str
    details: tuple[str, ...] = ()  # lines below the name: settings, evaluations, seconds
    pictures: Tensor | None = None  # uint8 [n, 3, H, W], one per seed; None if the sampler failed
    why: str = ""  # the reason for a failure, or a note on the row
    distance: float | None = None  # distance to the reference; None where it is not known
    best: bool = False  # whether it is nearest to the reference among the rows it is compared with
    above: str = ""  # heading to write above this row


@dataclass(frozen=True)
class Layout:
    """Sizes that all rows of a comparison picture share."""

    tile: float  # width of a column, with the gap
    tall: float  # height of a sample
    most: float  # distance at which a bar is full

    @classmethod
    def of(cls, columns: int, rows: list[Row]) -> "Layout":
        """Compute the sizes for `columns` seeds; the shape of the first row with pictures counts."""
        shapes = [row.pictures.shape for row in rows if row.pictures is not None]
        high, wide = shapes[0][-2:] if shapes else (1, 1)
        tile = min(TILE, (WIDTH - LABEL - EDGE) / columns)
        known = sorted(row.distance for row in rows if row.distance is not None) or [0.0]
        most = min(known[-1], FAR * known[len(known) // 2]) or 1.0
        return cls(tile, (tile - GAP) * high / wide, most)

    def label(self, columns: int) -> float:
        """Return the x at which the first column of samples begins."""
        return WIDTH - EDGE - self.tile * columns

    def height(self, row: Row, columns: int) -> float:
        """Return the height of a row of the comparison, with its note and the gap below it."""
        block = 20 + LINE * len(row.details) + (BAR if row.distance is not None else 0)
        if row.pictures is None:
            width = WIDTH - self.label(columns) - EDGE
            return max(block, LINE * len(fitted(row.why, 12, width, REASON)[1]) + 6) + GAP
        note = LINE * len(fitted(row.why, TEXT, *NOTE_SIZE)[1]) + 2 if row.why else 0
        return max(block, self.tall) + note + GAP


def picture(title: str, under: str, columns: list[str], rows: list[Row], sharp: float = 4.0) -> Image.Image:
    """Draw the comparison picture: one row per sampler, one column per seed.

    Args:
        title, under: the heading and the line below it.
        columns: names of the columns, i.e. the seeds of the rows' pictures.
        rows: one per sampler, from top to bottom.
        sharp: pixels per unit; reduced where the picture would exceed `LARGEST` pixels."""
    layout, count = Layout.of(len(columns), rows), len(columns)
    label, tile = layout.label(count), layout.tile
    heights = [layout.height(row, count) for row in rows]
    sharp = min(sharp, max(1.0, (LARGEST / WIDTH / (TITLE + sum(heights))) ** 0.5))
    head = Image.new("RGB", (round(WIDTH * sharp), round(TITLE * sharp)), BACK)
    pen = Pen(head, sharp)
    y = 9 + pen.write((EDGE, 9), title, 22, width=WIDTH - 2 * EDGE, lines=2)
    y += pen.write((EDGE, y), under, 12, SOFT, WIDTH - 2 * EDGE, 2) + 6

    bands = sum(24 for row in rows if row.above)
    image = Image.new("RGB", (head.width, round((y + 18 + sum(heights) + bands + EDGE) * sharp)), BACK)
    image.paste(head.crop((0, 0, head.width, round(y * sharp))), (0, 0))
    pen = Pen(image, sharp)
    pen.write((EDGE, y), "seed", 12, SOFT)
    for i, name in enumerate(columns):
        pen.write((label + (i + 0.5) * tile - GAP / 2, y), name, 12, SOFT, tile - GAP, 1, middle=True)
    y += 18
    for row, height in zip(rows, heights):
        if row.above:
            pen.box(EDGE, y + 2, WIDTH - EDGE, y + 2.8, FAINT)
            pen.write((EDGE, y + 6), row.above, 13, SOFT)
            y += 24
        draw_label(pen, row, y, label - EDGE - 8, layout.most)
        if row.pictures is None:
            pen.write((label, y + 3), row.why, 12, BAD, WIDTH - label - EDGE, REASON)
        else:
            for i, sample in enumerate(row.pictures[:count]):
                place = round((label + i * tile) * sharp), round(y * sharp)
                image.paste(sized(sample, tile - GAP, layout.tall, sharp), place)
            if row.why:
                lines = fitted(row.why, TEXT, *NOTE_SIZE)[1]
                pen.write((EDGE, y + height - GAP - LINE * len(lines)), row.why, TEXT, BAD, *NOTE_SIZE)
        y += height
    return image


def draw_label(pen: Pen, row: Row, top: float, width: float, most: float) -> None:
    """Draw a row's label: its name, its details, and the distance as a number and a bar."""
    pen.write((EDGE, top), row.name, NAME, GOOD if row.best else INK, width)
    y = top + 20
    for line in row.details:
        pen.write((EDGE, y), line, TEXT, SOFT, width)
        y += LINE
    if row.distance is None:
        return
    text = f"{row.distance:.3f}{' nearest' if row.best else ''}"
    pen.write((EDGE, y), text, 14, GOOD if row.best else INK, width)
    pen.box(EDGE, y + 18, EDGE + width, y + 21, FAINT)
    length = max(width * min(row.distance / most, 1.0), 1)
    pen.box(EDGE, y + 18, EDGE + length, y + 21, GOOD if row.best else SOFT)


def sized(sample: Tensor, wide: float, high: float, sharp: float) -> Image.Image:
    """Return a uint8 sample `[3, H, W]` as a tile of `wide` x `high` units, tiny ones unsmoothed."""
    tile = Image.fromarray(sample.cpu().movedim(0, -1).contiguous().numpy())
    size = max(1, round(wide * sharp)), max(1, round(high * sharp))
    if max(tile.size) <= 32:  # enlarge by a whole number first, so that all pixels get the same size
        tile = tile.resize((tile.width * 8, tile.height * 8), Image.Resampling.NEAREST)
    return tile.resize(size, Image.Resampling.LANCZOS)


def table(head: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table whose columns are also aligned in plain text."""
    lines = [[cell.replace("|", "/") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    rows = [head, ["-" * w for w in widths], *lines]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(r, widths)) + " |" for r in rows)
