"""Compare AMED: samplers side by side on the user's own MODEL, in one picture, a table and a CSV text."""

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
from .comparing import REFERENCE, Entry, Measured, Scene, compare, entries
from .counting import counting
from .folders import output_folder
from .model import Interrupted, stop_if_asked
from .recall import fingerprint
from .running import progress_bar, show_text
from .schema import cfg_input, schema, seed_input, shown_inputs

DEFAULT = "amed\nplain\ndpmpp_2m / karras\nuni_pc / simple"
LIVE = 8  # rows shown while it works
SEEDS = 8  # columns a picture has room for
SOFT, SHARP = 2.0, 4.0  # pixels a unit of a grid, while it works and at the end
TELL = 0.5  # seconds between two lines of text
STOPPED = "AMED_compare_stopped"  # the file of what was done when the user stopped
HEAD = ("sampler", "setting", "nfe", "steps", "evaluations", "passes", "seconds", "distance", "note")


class Progress:
    """The bar, the picture so far and the time left; called before each evaluation, raises once the user
    stops."""

    def __init__(self, node_id: str | None):
        self.node_id, self.total, self.done, self.begin, self.told = node_id, 0, 0, 0.0, -math.inf
        self.bar = progress_bar(node_id, 1)

    def planned(self, total: int) -> None:
        """Evaluations there will be, once it is known."""
        self.total, self.begin = total, time.monotonic()
        self.bar = progress_bar(self.node_id, max(total, 1))

    def __call__(self) -> None:
        stop_if_asked()
        if not self.total:
            return
        now = time.monotonic()
        if now - self.told > TELL:
            self.told = now
            rest = (now - self.begin) / self.done * (self.total - self.done) if self.done else math.nan
            self.tell(f"evaluation {self.done + 1} of {self.total}{time_left(rest)}")
            self.bar(self.done)
        self.done += 1

    def finished(self, evaluations: int, picture: Image.Image) -> None:
        """A row is done, and with it so many evaluations of those planned."""
        self.done = evaluations
        self.bar(self.done, picture)

    def tell(self, text: str) -> None:
        if self.node_id:
            show_text(self.node_id, text)


def compared(scene: Scene, rows: list[Measured], progress: Progress) -> list[Measured]:
    """All rows measured. Stopped, what is done goes into the output folder; raises the host's interrupt, and
    ValueError where no row gave an image."""
    finished: list[Measured] = []
    spent = 0
    try:
        for row in compare(scene, rows, progress.planned):
            finished.append(row)
            spent += scene.count * row.asked if row.steps else 0
            progress.finished(spent, drawn(scene, finished[:1] + finished[1:][-LIVE:], SOFT))
    except Interrupted:
        if any(row.pixels is not None for row in finished):
            where = keep(scene, finished)
            said = f"stopped after {len(finished)} of {len(rows)} rows, which are in {where}"
            logging.info("Compare AMED: %s", said)
            progress.tell(said)
        raise
    if all(row.pixels is None for row in rows):
        raise ValueError(f"no sampler gave an image.\n{rows[0].entry.sampler}: {rows[0].note}")
    return rows


def keep(scene: Scene, rows: list[Measured]) -> Path:
    """Rows as a picture and a CSV file of the output folder; the picture's path."""
    folder, number = output_folder(), 1
    while (path := folder / f"{STOPPED}_{number:05}.png").exists():
        number += 1
    folder.mkdir(parents=True, exist_ok=True)
    drawn(scene, rows, SHARP).save(path)
    path.with_suffix(".csv").write_text(as_csv(scene, rows), encoding="utf-8")
    return path


# --- what is said ------------------------------------------------------------------------------------------


def drawn(scene: Scene, rows: list[Measured], sharp: float) -> Image.Image:
    """The grid: the reference, then each number of evaluations under its own heading."""
    guidance = f"guidance {scene.guidance:g}" if scene.guidance != 1 else "no guidance"
    under = f"{guidance}; evaluations and network passes were counted around the model"
    if any(not math.isnan(row.distance) for row in rows):
        under += "; distance: to the reference of the same seed, less is nearer"
    made, heading = [], 0
    for row in rows:
        above = "" if row.entry.sampler == REFERENCE or row.asked == heading else f"{row.asked} evaluations"
        heading = row.asked if above else heading
        made.append(line_of(row, above, row is nearest(rows, row.asked)))
    return grid.picture("Samplers compared", under, [str(s) for s in scene.seeds], made, sharp)


def line_of(row: Measured, above: str, best: bool) -> grid.SamplerRow:
    """A row of the grid."""
    name = row.entry.sampler
    if row.pixels is None:
        return grid.SamplerRow(name, tuple(filter(None, [row.entry.scheduler])), note=row.note, heading=above)
    each = f"{row.evaluations:g} evaluations, {row.passes:g} passes"
    details = (row.setting, each, f"{seconds(row.seconds)} an image")
    distance = None if math.isnan(row.distance) else row.distance
    return grid.SamplerRow(name, details, row.pixels, row.note, distance, best, above)


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value:.2g} s"


def nearest(rows: list[Measured], asked: int) -> Measured | None:
    """Of the rows of so many evaluations that kept to them, the one nearest to the reference."""
    fair = [row for row in rows if row.asked == asked >= row.evaluations and not math.isnan(row.distance)]
    return min(fair, key=lambda row: row.distance, default=None)


def cells(row: Measured) -> list[str]:
    """What HEAD names."""
    named = [row.entry.sampler, row.setting or row.entry.scheduler, str(row.asked)]
    if row.pixels is None:
        return [*named, "", "", "", "", "", row.note]
    counted = [str(row.steps), f"{row.evaluations:g}", f"{row.passes:g}", f"{row.seconds:.3f}"]
    return [*named, *counted, "" if math.isnan(row.distance) else f"{row.distance:.5f}", row.note]


def as_csv(scene: Scene, rows: list[Measured]) -> str:
    """Every row, with what they have alike at its end."""
    stream = text_io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*HEAD, "guidance", "first_seed", "seeds"])
    alike = [f"{scene.guidance:g}", scene.first, scene.count]
    writer.writerows([*cells(row), *alike] for row in rows)
    return stream.getvalue()


def summary(rows: list[Measured]) -> str:
    """A line for each number of evaluations: which came nearest, or what there is instead."""
    lines = []
    for asked in dict.fromkeys(row.asked for row in rows if row.entry.sampler != REFERENCE):
        own = [row for row in rows if row.asked == asked and row.entry.sampler != REFERENCE]
        best, failed = nearest(own, asked), [row.entry.sampler for row in own if row.pixels is None]
        said = f"nearest to the reference: {best.entry.sampler}, {best.distance:.3f}" if best else "compared"
        lines.append(f"{asked} evaluations: {said}{'; no image: ' if failed else ''}{', '.join(failed)}")
    return "\n".join(lines)


class Compare(io.ComfyNode):
    """MODEL, prompts, LATENT, lists of samplers and evaluations -> IMAGE, table, CSV."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="AMEDCompare",
            display_name="Compare AMED",
            search_aliases=["amed", "compare samplers", "xy plot", "xyz plot", "sampler grid", "benchmark",
                            "fast sampler", "few steps", "which sampler"],
            description="Samplers side by side on your own model, at the same evaluations and seeds: one "
            "picture, and a table of what each costs and how near it comes to a run of many steps.",
            inputs=[
                *shown_inputs("the model to compare on, with its LoRAs; it is not changed",
                              "the size, usually empty; of a batch each in turn"),
                io.String.Input("samplers", default=DEFAULT, multiline=True,
                                tooltip="one a line: amed (the best predictor for this model), plain, "
                                "amed_ipndm and the like, or one of the KSampler's: dpmpp_2m / karras"),
                io.String.Input("nfe", default="5, 8",
                                tooltip="evaluations for every sampler; several compared: 4, 6, 8"),
                cfg_input(tooltip="classifier-free guidance (cfg); 1 is none and half the work"),
                seed_input("of the first column; the next has the next seed"),
                io.Int.Input("seeds", default=3, min=1, max=SEEDS, tooltip="how many columns"),
                io.Int.Input("reference", default=32, min=0, max=20_000,
                             tooltip="evaluations of the run that distances are to; 0 for none"),
                io.Vae.Input("vae", optional=True,
                             tooltip="decodes the images; without it they are in rough preview colours"),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="a row a sampler, a column a seed"),
                io.String.Output(display_name="table", tooltip="what was measured, as a Markdown table"),
                io.String.Output(display_name="csv", tooltip="the same, for a spreadsheet"),
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
        asked, nfes = entries(samplers), numbers(nfe, 1, 10_000)
        if 0 < reference < 2 * max(nfes):
            raise ValueError(
                f"reference is {reference}: to measure {max(nfes)} evaluations by, give at least "
                f"{2 * max(nfes)}, or 0 for none"
            )
        progress = Progress(cls.hidden.unique_id)
        around = positive, negative, latent_image, guidance, seed, seeds, vae
        scene = Scene(counting(model, progress), *around)
        rows = [Measured(Entry(REFERENCE), reference)] if reference else []
        rows += [Measured(one, count) for count in nfes for one in asked]
        compared(scene, rows, progress)
        image = as_image(drawn(scene, rows, SHARP))
        text = summary(rows)
        logging.info("Compare AMED: %s", text.replace("\n", "; "))
        progress.tell(text)
        table = f"{text}\n\n{grid.markdown_table(list(HEAD), [cells(row) for row in rows])}"
        return io.NodeOutput(image, table, as_csv(scene, rows), ui=ui.PreviewImage(image, cls=cls))

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint(**inputs)


NODES = [Compare]
