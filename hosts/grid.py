"""A grid of samples for comparing: a row a sampler, a column a seed, each row with what was measured."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .pen import BACK, BAD, EDGE, FAINT, GOOD, INK, SOFT, WIDTH, Pen, fitted

GAP, TILE, LABEL = 4, 200, 150  # between tiles; a tile at most, a label at least
NAME, TEXT, LINE = 15, 11.5, 14  # sizes, and the height of a line of text
BAR = 26  # of a distance and its bar
TITLE = 100  # room a title may take
SAID = WIDTH - 2 * EDGE, 2  # a note's width and lines
REASON = 6  # lines of a reason
LARGEST = 4e7  # pixels of a picture
FAR = 3  # a bar is full from so many times the median distance on


@dataclass(frozen=True)
class Row:
    """name, details: lines beside it. pictures: `[n, 3, H, W]`, uint8, or None. why: there are none, or what
    is to be said of them. distance: to the reference (None: not known), best: of those it is to be compared
    with. above: a heading before this row."""

    name: str
    details: tuple[str, ...] = ()
    pictures: Tensor | None = None
    why: str = ""
    distance: float | None = None
    best: bool = False
    above: str = ""


@dataclass(frozen=True)
class Layout:
    """Where things are. tile: width of a column; tall: height of a sample; most: the distance of a full
    bar."""

    tile: float
    tall: float
    most: float

    @classmethod
    def of(cls, columns: int, rows: list[Row]) -> "Layout":
        shapes = [row.pictures.shape for row in rows if row.pictures is not None]
        high, wide = shapes[0][-2:] if shapes else (1, 1)
        tile = min(TILE, (WIDTH - LABEL - EDGE) / columns)
        known = sorted(row.distance for row in rows if row.distance is not None) or [0.0]
        most = min(known[-1], FAR * known[len(known) // 2]) or 1.0
        return cls(tile, (tile - GAP) * high / wide, most)

    def label(self, columns: int) -> float:
        """Where the first column begins."""
        return WIDTH - EDGE - self.tile * columns

    def height(self, row: Row, columns: int) -> float:
        """Of a row, its note and the space after it included."""
        block = 20 + LINE * len(row.details) + (BAR if row.distance is not None else 0)
        if row.pictures is None:
            width = WIDTH - self.label(columns) - EDGE
            return max(block, LINE * len(fitted(row.why, 12, width, REASON)[1]) + 6) + GAP
        note = LINE * len(fitted(row.why, TEXT, *SAID)[1]) + 2 if row.why else 0
        return max(block, self.tall) + note + GAP


def picture(title: str, under: str, columns: list[str], rows: list[Row], sharp: float = 4.0) -> Image.Image:
    """The whole grid. columns: the seeds of the rows' pictures. sharp: pixels a unit of its width."""
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
        beside(pen, row, y, label - EDGE - 8, layout.most)
        if row.pictures is None:
            pen.write((label, y + 3), row.why, 12, BAD, WIDTH - label - EDGE, REASON)
        else:
            for i, sample in enumerate(row.pictures[:count]):
                place = round((label + i * tile) * sharp), round(y * sharp)
                image.paste(sized(sample, tile - GAP, layout.tall, sharp), place)
            if row.why:
                lines = fitted(row.why, TEXT, *SAID)[1]
                pen.write((EDGE, y + height - GAP - LINE * len(lines)), row.why, TEXT, BAD, *SAID)
        y += height
    return image


def beside(pen: Pen, row: Row, top: float, width: float, most: float) -> None:
    """A row's label: its name, details, the distance as a number and a bar."""
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
    """A sample `[3, H, W]`, uint8, as a tile; pixels of a tiny one stay seen."""
    tile = Image.fromarray(sample.cpu().movedim(0, -1).contiguous().numpy())
    size = max(1, round(wide * sharp)), max(1, round(high * sharp))
    if max(tile.size) <= 32:  # whole pixels first, so that they come out alike
        tile = tile.resize((tile.width * 8, tile.height * 8), Image.Resampling.NEAREST)
    return tile.resize(size, Image.Resampling.LANCZOS)


def table(head: list[str], lines: list[list[str]]) -> str:
    """Lines of cells as a table that is read as plain text and as Markdown."""
    lines = [[cell.replace("|", "/") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    rows = [head, ["-" * w for w in widths], *lines]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(r, widths)) + " |" for r in rows)
