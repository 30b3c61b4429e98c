"""The comparison picture: one row per sampler, one column per seed, each row with its measured figures.

All lengths are in units of 1/500 of the picture's width (see pen.py)."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .pen import BACK, BAD, EDGE, FAINT, GOOD, INK, SOFT, WIDTH, Pen, fit_text

GAP, MAX_TILE, MIN_LABEL = 4, 200, 150  # gap between samples; largest width of a sample; smallest of a label
NAME_SIZE, DETAIL_SIZE = 15, 11.5  # font sizes of a row's name and of its details
LINE_HEIGHT = 14  # of a line of details
BAR_HEIGHT = 26  # of the distance and its bar
HEADER_HEIGHT = 100  # space reserved for the title
NOTE_BOX = WIDTH - 2 * EDGE, 2  # width of a row's note, and its largest number of lines
FAILURE_LINES = 6  # largest number of lines of a failure's reason
MAX_PIXELS = 4e7  # in a whole picture
# a bar is full at this multiple of the median distance, so that an outlier does not shrink the others
FULL_BAR = 3


@dataclass(frozen=True)
class SamplerRow:
    """One sampler's row in a picture that compares samplers: its images, cost and distance to a reference."""

    name: str
    details: tuple[str, ...] = ()  # lines below the name: settings, evaluations, seconds
    pictures: Tensor | None = None  # uint8 [n, 3, H, W], one per seed; None if the sampler failed
    note: str = ""  # the reason for a failure, or a remark on the row
    distance: float | None = None  # distance to the reference, less is nearer; None if not measured
    nearest: bool = False  # whether it is nearest to the reference among the rows under its heading
    heading: str = ""  # heading to write above this row; "": none


@dataclass(frozen=True)
class Layout:
    """Sizes that are the same for all samplers in a comparison picture."""

    column: float  # width of a column of samples, with the gap
    sample_height: float
    full_distance: float  # distance at which a bar is full

    @classmethod
    def of(cls, columns: int, rows: list[SamplerRow]) -> "Layout":
        """Return the layout of a comparison picture with `columns` columns of samples.

        All samples get the aspect ratio of those of the first sampler that did not fail."""
        shapes = [row.pictures.shape for row in rows if row.pictures is not None]
        height, width = shapes[0][-2:] if shapes else (1, 1)
        column = min(MAX_TILE, (WIDTH - MIN_LABEL - EDGE) / columns)
        distances = sorted(row.distance for row in rows if row.distance is not None) or [0.0]
        full = min(distances[-1], FULL_BAR * distances[len(distances) // 2]) or 1.0
        return cls(column, (column - GAP) * height / width, full)

    def samples_left(self, columns: int) -> float:
        """Return where the first column of samples begins: its x, in 1/500 of the picture's width."""
        return WIDTH - EDGE - self.column * columns

    def height(self, row: SamplerRow, columns: int) -> float:
        """Return the height of a sampler's row with note and gap, in 1/500 of the picture's width."""
        label = 20 + LINE_HEIGHT * len(row.details) + (BAR_HEIGHT if row.distance is not None else 0)
        if row.pictures is None:
            width = WIDTH - self.samples_left(columns) - EDGE
            lines = fit_text(row.note, 12, width, FAILURE_LINES)[1]
            return max(label, LINE_HEIGHT * len(lines) + 6) + GAP
        note = LINE_HEIGHT * len(fit_text(row.note, DETAIL_SIZE, *NOTE_BOX)[1]) + 2 if row.note else 0
        return max(label, self.sample_height) + note + GAP


def picture(
    title: str, subtitle: str, columns: list[str], rows: list[SamplerRow], scale: float = 4.0
) -> Image.Image:
    """Draw the comparison picture: one row per sampler, one column per seed.

    Args:
        columns: heading of each column, i.e. its seed.
        rows: one per sampler, from top to bottom.
        scale: picture width in pixels / 500; reduced if the picture would exceed `MAX_PIXELS` pixels."""
    layout, count = Layout.of(len(columns), rows), len(columns)
    left, column = layout.samples_left(count), layout.column
    heights = [layout.height(row, count) for row in rows]
    scale = min(scale, max(1.0, (MAX_PIXELS / WIDTH / (HEADER_HEIGHT + sum(heights))) ** 0.5))
    header = Image.new("RGB", (round(WIDTH * scale), round(HEADER_HEIGHT * scale)), BACK)
    pen = Pen(header, scale)
    y = 9 + pen.write((EDGE, 9), title, 22, width=WIDTH - 2 * EDGE, lines=2)
    y += pen.write((EDGE, y), subtitle, 12, SOFT, WIDTH - 2 * EDGE, 2) + 6

    headings = sum(24 for row in rows if row.heading)
    height = round((y + 18 + sum(heights) + headings + EDGE) * scale)
    image = Image.new("RGB", (header.width, height), BACK)
    image.paste(header.crop((0, 0, header.width, round(y * scale))), (0, 0))
    pen = Pen(image, scale)
    pen.write((EDGE, y), "seed", 12, SOFT)
    for i, name in enumerate(columns):
        pen.write((left + (i + 0.5) * column - GAP / 2, y), name, 12, SOFT, column - GAP, 1, middle=True)
    y += 18
    for row, height in zip(rows, heights):
        if row.heading:
            pen.box(EDGE, y + 2, WIDTH - EDGE, y + 2.8, FAINT)
            pen.write((EDGE, y + 6), row.heading, 13, SOFT)
            y += 24
        draw_label(pen, row, y, left - EDGE - 8, layout.full_distance)
        if row.pictures is None:
            pen.write((left, y + 3), row.note, 12, BAD, WIDTH - left - EDGE, FAILURE_LINES)
        else:
            for i, sample in enumerate(row.pictures[:count]):
                corner = round((left + i * column) * scale), round(y * scale)
                image.paste(sample_image(sample, column - GAP, layout.sample_height, scale), corner)
            if row.note:
                lines = fit_text(row.note, DETAIL_SIZE, *NOTE_BOX)[1]
                top = y + height - GAP - LINE_HEIGHT * len(lines)
                pen.write((EDGE, top), row.note, DETAIL_SIZE, BAD, *NOTE_BOX)
        y += height
    return image


def draw_label(pen: Pen, row: SamplerRow, top: float, width: float, full_distance: float) -> None:
    """Draw a row's label: the sampler's name, its details, and its distance to the reference with a bar."""
    pen.write((EDGE, top), row.name, NAME_SIZE, GOOD if row.nearest else INK, width)
    y = top + 20
    for line in row.details:
        pen.write((EDGE, y), line, DETAIL_SIZE, SOFT, width)
        y += LINE_HEIGHT
    if row.distance is None:
        return
    text = f"{row.distance:.3f}{' nearest' if row.nearest else ''}"
    pen.write((EDGE, y), text, 14, GOOD if row.nearest else INK, width)
    pen.box(EDGE, y + 18, EDGE + width, y + 21, FAINT)
    length = max(width * min(row.distance / full_distance, 1.0), 1)
    pen.box(EDGE, y + 18, EDGE + length, y + 21, GOOD if row.nearest else SOFT)


def sample_image(sample: Tensor, width: float, height: float, scale: float) -> Image.Image:
    """Return a sample `[3, H, W]` (uint8), resized to `width * scale` by `height * scale` pixels.

    A sample whose sides have at most 32 pixels is first enlarged 8 times without smoothing."""
    image = Image.fromarray(sample.cpu().movedim(0, -1).contiguous().numpy())
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if max(image.size) <= 32:  # enlarge by a whole number first, so that all pixels get the same size
        image = image.resize((image.width * 8, image.height * 8), Image.Resampling.NEAREST)
    return image.resize(size, Image.Resampling.LANCZOS)


def markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table, padded with spaces so that its columns are aligned as plain text too."""
    lines = [[cell.replace("|", "/") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    rows = [head, ["-" * w for w in widths], *lines]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(r, widths)) + " |" for r in rows)
