"""The node Compare AMED: samplers side by side on the user's MODEL, as a picture, a table and CSV."""

import csv
import io as text_io
import logging
import math
import time
from pathlib import Path

from comfy_api.latest import io, ui
from PIL import Image

from ..amed.fit import numbers
from ..pictures import grid
from ..pictures.report import as_image, time_left
from .choice.fingerprint import fingerprint
from .comparison import Measured, Scene, compare
from .host.counting import counting
from .host.folders import output_folder
from .host.model import Interrupted, stop_if_interrupted
from .host.running import progress_bar, show_text
from .sampler_list import REFERENCE, Entry, read_entries
from .schema import cfg_input, sampled_inputs, schema, seed_input

DEFAULT = "amed\nplain\ndpmpp_2m / karras\nuni_pc / simple"
LIVE = 8  # rows in the picture while the node runs
SEEDS = 8  # most columns of the picture
SOFT, SHARP = 2.0, 4.0  # pixels per unit of the grid, while the node runs and at the end
INTERVAL = 0.5  # seconds between two lines of progress
INTERRUPTED = "AMED_compare_stopped"  # name of the files with the finished rows after an interrupt
HEAD = ("sampler", "setting", "nfe", "steps", "evaluations", "passes", "seconds", "distance", "note")


class Progress:
    """The progress of a comparison on its node: a bar, the picture so far and the time left.

    Called before each evaluation; raises ComfyUI's interrupt once the user interrupts."""

    def __init__(self, node_id: str | None):
        self.node_id = node_id
        self.total = self.done = 0  # evaluations
        self.begin, self.shown_at = 0.0, -math.inf  # times, in seconds
        self.bar = progress_bar(node_id, 1)

    def set_total(self, total: int) -> None:
        """Set the number of evaluations that the whole comparison will take, for the progress bar."""
        self.total, self.begin = total, time.monotonic()
        self.bar = progress_bar(self.node_id, max(total, 1))

    def __call__(self) -> None:
        stop_if_interrupted()
        if not self.total:
            return
        now = time.monotonic()
        if now - self.shown_at > INTERVAL:
            self.shown_at = now
            rest = (now - self.begin) / self.done * (self.total - self.done) if self.done else math.nan
            self.show(f"evaluation {self.done + 1} of {self.total}{time_left(rest)}")
            self.bar(self.done)
        self.done += 1

    def row_finished(self, evaluations: int, picture: Image.Image) -> None:
        """Update the progress bar and show the picture so far, after one more sampler has run.

        evaluations: number of evaluations done so far, for the bar."""
        self.done = evaluations
        self.bar(self.done, picture)

    def show(self, text: str) -> None:
        """Show a text (e.g. progress or the summary) on the Compare AMED node."""
        if self.node_id:
            show_text(self.node_id, text)


def measure_all(scene: Scene, rows: list[Measured], progress: Progress) -> list[Measured]:
    """Run and measure all samplers of a comparison, with progress on the node.

    If the user interrupts, the results so far are saved in ComfyUI's output folder, and the interrupt is
    raised again. Raises ValueError if no sampler gave an image."""
    finished: list[Measured] = []
    spent = 0
    try:
        for row in compare(scene, rows, progress.set_total):
            finished.append(row)
            spent += scene.count * row.nfe if row.steps else 0
            progress.row_finished(spent, draw(scene, finished[:1] + finished[1:][-LIVE:], SOFT))
    except Interrupted:
        if any(row.pixels is not None for row in finished):
            path = save_rows(scene, finished)
            text = f"stopped after {len(finished)} of {len(rows)} rows. They are saved in {path}"
            logging.info("Compare AMED: %s", text)
            progress.show(text)
        raise
    if all(row.pixels is None for row in rows):
        raise ValueError(
            f"no sampler gave an image. {rows[0].entry.sampler}: {rows[0].note}\nChange samplers or nfe"
        )
    return rows


def save_rows(scene: Scene, rows: list[Measured]) -> Path:
    """Save a comparison as a picture and a CSV file in ComfyUI's output folder; return the picture's path."""
    folder, number = output_folder(), 1
    while (path := folder / f"{INTERRUPTED}_{number:05}.png").exists():
        number += 1
    folder.mkdir(parents=True, exist_ok=True)
    draw(scene, rows, SHARP).save(path)
    path.with_suffix(".csv").write_text(as_csv(scene, rows), encoding="utf-8")
    return path


# --- picture, table and CSV --------------------------------------------------------------------------------


def draw(scene: Scene, rows: list[Measured], scale: float) -> Image.Image:
    """Draw the images of all samplers as a grid: one row per sampler, one column per seed.

    scale: resolution of the picture; twice the scale gives twice the width and height in pixels."""
    guidance = f"guidance {scene.guidance:g}" if scene.guidance != 1 else "no guidance"
    caption = f"{guidance}; evaluations and network passes were counted around the model"
    if any(not math.isnan(row.distance) for row in rows):
        caption += "; distance: to the reference of the same seed, lower is better"
    grid_rows, heading = [], 0
    for row in rows:
        above = "" if row.entry.sampler == REFERENCE or row.nfe == heading else f"{row.nfe} evaluations"
        heading = row.nfe if above else heading
        grid_rows.append(grid_row(row, above, row is nearest(rows, row.nfe)))
    return grid.picture("Samplers compared", caption, [str(s) for s in scene.seeds], grid_rows, scale)


def grid_row(row: Measured, above: str, best: bool) -> grid.SamplerRow:
    """Convert one sampler's results to a row of the picture that compares samplers.

    Args:
        row: the sampler's images and measurements.
        above: a heading to draw above the row, e.g. "6 evaluations"; "": none.
        best: whether to mark the sampler as the nearest to the reference."""
    name = row.entry.sampler
    if row.pixels is None:
        return grid.SamplerRow(name, tuple(filter(None, [row.entry.scheduler])), note=row.note, heading=above)
    counts = f"{row.evaluations:g} evaluations, {row.passes:g} passes"
    details = (row.setting, counts, f"{seconds_text(row.seconds)} an image")
    distance = None if math.isnan(row.distance) else row.distance
    return grid.SamplerRow(name, details, row.pixels, row.note, distance, best, above)


def seconds_text(value: float) -> str:
    """Format a number of seconds for the picture, e.g. "1.5 s" or "0.25 s"."""
    return f"{value:.1f} s" if value >= 1 else f"{value:.2g} s"


def nearest(rows: list[Measured], nfe: int) -> Measured | None:
    """Return the sampler's row whose images are nearest to the reference run, of those compared at `nfe`.

    Samplers that took more than `nfe` evaluations are left out."""
    fair = [row for row in rows if row.nfe == nfe >= row.evaluations and not math.isnan(row.distance)]
    return min(fair, key=lambda row: row.distance, default=None)


def cells(row: Measured) -> list[str]:
    """Return one sampler's measurements (evaluations, seconds, distance, ...) as cells of a table."""
    names = [row.entry.sampler, row.setting or row.entry.scheduler, str(row.nfe)]
    if row.pixels is None:
        return [*names, "", "", "", "", "", row.note]
    counts = [str(row.steps), f"{row.evaluations:g}", f"{row.passes:g}", f"{row.seconds:.3f}"]
    return [*names, *counts, "" if math.isnan(row.distance) else f"{row.distance:.5f}", row.note]


def as_csv(scene: Scene, rows: list[Measured]) -> str:
    """Return a comparison as CSV, one line per sampler and number of evaluations.

    Every line ends with the guidance, the first seed and the number of seeds."""
    stream = text_io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*HEAD, "guidance", "first_seed", "seeds"])
    common = [f"{scene.guidance:g}", scene.first, scene.count]
    writer.writerows([*cells(row), *common] for row in rows)
    return stream.getvalue()


def summary(rows: list[Measured]) -> str:
    """Return a text that says, for each number of evaluations, which sampler was best and which failed.

    The best is the nearest to the reference run."""
    lines = []
    for nfe in dict.fromkeys(row.nfe for row in rows if row.entry.sampler != REFERENCE):
        group = [row for row in rows if row.nfe == nfe and row.entry.sampler != REFERENCE]
        best, failed = nearest(group, nfe), [row.entry.sampler for row in group if row.pixels is None]
        text = f"nearest to the reference: {best.entry.sampler}, {best.distance:.3f}" if best else "compared"
        lines.append(f"{nfe} evaluations: {text}{'; no image: ' if failed else ''}{', '.join(failed)}")
    return "\n".join(lines)


class Compare(io.ComfyNode):
    """Compare samplers on a MODEL; return the picture, a Markdown table and CSV."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDCompare",
            display_name="Compare AMED",
            search_aliases=["amed", "compare samplers", "xy plot", "xyz plot", "sampler grid", "benchmark",
                            "fast sampler", "few steps", "which sampler"],
            description="Compare samplers on your own model, at the same number of evaluations and the same "
            "seeds: one picture, and a table of each sampler's cost and its distance to a run of many "
            "evaluations.",
            inputs=[
                *sampled_inputs(
                    "The model to compare on, with its LoRAs. The input itself is not changed.",
                    "A latent of the size to sample at, usually empty. Of a batch, each image uses the next "
                    "one.",
                ),
                io.String.Input("samplers", default=DEFAULT, multiline=True,
                                tooltip="The samplers to compare, one per line: amed (the best predictor for "
                                "this model), plain (the best solver without one), an amed_... sampler, or "
                                "one of the KSampler's with its scheduler, e.g. dpmpp_2m / karras."),
                io.String.Input("nfe", default="5, 8",
                                tooltip="Number of evaluations for every sampler. Several numbers are "
                                "compared in turn: 4, 6, 8."),
                cfg_input(),
                seed_input("Seed of the first column. Each further column uses the next seed."),
                io.Int.Input("seeds", default=3, min=1, max=SEEDS,
                             tooltip="Number of seeds, which are the columns of the picture."),
                io.Int.Input("reference", default=32, min=0, max=20_000,
                             tooltip="Number of evaluations of the reference, the run that distances are "
                             "measured to. 0: no reference, no distances."),
                io.Vae.Input("vae", optional=True,
                             tooltip="Decodes the images. Not linked: rough preview colours."),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="One row per sampler, one column per seed."),
                io.String.Output(display_name="table", tooltip="All measurements as a Markdown table."),
                io.String.Output(display_name="csv", tooltip="All measurements as CSV, for a spreadsheet."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        samplers,
        nfe,
        guidance,
        seed,
        seeds,
        reference,
        vae=None,
    ):
        entries, nfes = read_entries(samplers), numbers(nfe, 1, 10_000)
        if 0 < reference < 2 * max(nfes):
            raise ValueError(
                f"reference is {reference}, which is too few evaluations to measure {max(nfes)} evaluations "
                f"by: set it to at least {2 * max(nfes)}, or to 0 for no reference"
            )
        progress = Progress(cls.hidden.unique_id)
        arguments = positive, negative, latent_image, guidance, seed, seeds, vae
        scene = Scene(counting(model, progress), *arguments)
        rows = [Measured(Entry(REFERENCE), reference)] if reference else []
        rows += [Measured(entry, count) for count in nfes for entry in entries]
        measure_all(scene, rows, progress)
        image = as_image(draw(scene, rows, SHARP))
        text = summary(rows)
        logging.info("Compare AMED: %s", text.replace("\n", "; "))
        progress.show(text)
        table = f"{text}\n\n{grid.markdown_table(list(HEAD), [cells(row) for row in rows])}"
        return io.NodeOutput(image, table, as_csv(scene, rows), ui=ui.PreviewImage(image, cls=cls))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)
