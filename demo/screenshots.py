"""`make screenshots`: take pictures of ComfyUI's page with this pack, for the README and the help pages.

    python -m demo.screenshots [NAME ...]

Starts ComfyUI and a headless Chromium, runs the demo model's workflows in the page, and writes
docs/screenshots/*.png; web/docs/*.jpg, a picture of each node in use for its help page; and, beside each
example that needs a checkpoint, a thumbnail of its graph (.jpg)."""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from .browser import Page, PageError, missing
from .comfyui import ROOT, WORKFLOWS, Server, ServerError, install
from .drawing import Column, Example, Node, workflow
from .gallery import DEMO_ALL, DEMO_FILE, demo_model

OUT, DOCS = ROOT / "docs" / "screenshots", ROOT / "web" / "docs"
HELP = 480  # width of a help page's picture, in pixels; about that of the help panel
THUMBNAIL = 512  # width and height of a thumbnail, in pixels
MARGIN = 24  # around a thumbnail's node
SHOWN_AT = 0.9  # share of a calibration after which its picture is taken


def kinds(file: Path) -> set[str]:
    """Return the classes of a workflow's nodes."""
    return {node["type"] for node in json.loads(file.read_text())["nodes"]}


def example(*wanted: str, without: tuple[str, ...] = ("AMEDCalibrate", "AMEDCompare")) -> Path:
    """Return the first example that has the `wanted` classes of nodes and none of `without`."""
    for file in sorted(WORKFLOWS.glob("*.json")):
        if set(wanted) <= kinds(file) and not set(without) & kinds(file):
            return file
    raise PageError(f"no example has the nodes {', '.join(wanted)}: add one to demo/gallery.py")


def shot(page: Page, box: dict[str, float] | None = None) -> Image.Image:
    """Return a screenshot of ComfyUI's page, or of the rectangle `box` of it."""
    page.settle(600)
    return Image.open(io.BytesIO(page.tab.screenshot(clip=box))).convert("RGB")


def write(image: Image.Image, name: str) -> None:
    """Save a picture in docs/screenshots and print its size."""
    OUT.mkdir(exist_ok=True)
    file = OUT / f"{name}.png"
    image.save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}  {image.width}x{image.height}  {file.stat().st_size // 1024} KB")


def start_here(page: Page) -> None:
    """Take the picture of the first example after a run."""
    page.open(example("AMEDDemoModel", "AMEDKSampler"))
    page.run()
    write(shot(page, page.box()), "start-here")


def ksampler(page: Page) -> None:
    """Take the picture of the AMED KSampler node after a run."""
    page.open(example("AMEDDemoModel", "AMEDKSampler"))
    page.change("AMEDKSampler", seed=2)  # with the seed of the last run, the server would skip the node
    page.run()
    write(shot(page, page.box([page.node("AMEDKSampler")["id"]])), "amed-ksampler")


def calibrate(page: Page) -> None:
    """Take pictures of Calibrate AMED in progress, and of its workflow after the run."""
    page.open(example("AMEDDemoModel", "AMEDCalibrate", without=()))
    node = page.node("AMEDCalibrate")["id"]
    run = page.queue()
    page.tab.wait_for_function(
        """([id, share]) => {
            const text = app.graph.getNodeById(id).widgets.find(w => w.name === "amed_text")?.value;
            return parseFloat(text) >= share * 100;
        }""",
        arg=[node, SHOWN_AT],
        timeout=300_000,
    )
    write(shot(page, page.box([node])), "calibrate-at-work")
    page.wait(run, 300)
    write(shot(page, page.box()), "calibrate")


def rest() -> Example:
    """Return a workflow of the pack's nodes that are in no example, to picture them for the help pages."""
    load = Node("load", "AMEDLoadPredictor", values={"name": DEMO_FILE})
    linked = {"predictor": "load.predictor"}
    train = {"sampler": "amed", "nfe": 4, "guidance": 1.0, "images": 8, "name": "picture"}
    plot = {"nfe": 6, "guidance": 4.0, "reference": 40}
    return Example(
        "For the help pages.",
        [
            Column([*demo_model(), load]),
            Column([
                Node("info", "AMEDPredictorInfo", linked, size=(400, 380)),
                Node("save", "AMEDSavePredictor", linked, below=40),
            ]),
            Column([Node("plot", "AMEDTrajectoryPlot", DEMO_ALL | linked, plot, size=(480, 760))]),
            Column([Node("train", "AMEDTrainPredictor", DEMO_ALL, train, size=(400, 640))]),
        ],
    )  # fmt: skip


def help_pages(page: Page) -> None:
    """Take a picture of each of this pack's nodes after a run, for its help page."""
    files = [file for file in sorted(WORKFLOWS.glob("*.json")) if "AMEDDemoModel" in kinds(file)]
    with tempfile.TemporaryDirectory() as folder:
        others = Path(folder) / "others.json"
        others.write_text(json.dumps(workflow("others", rest(), page.server.object_info())))
        seen: set[str] = set()
        for file in [*files, others]:
            new = {kind for kind in kinds(file) if kind.startswith("AMED")} - seen
            if not new:
                continue
            page.open(file)
            page.run(400)
            for kind in sorted(new):
                image = shot(page, page.box([page.node(kind)["id"]]))
                image.thumbnail((HELP, 2 * HELP), Image.Resampling.LANCZOS)
                image.save(DOCS / f"{kind}.jpg", quality=85, optimize=True)
                print((DOCS / f"{kind}.jpg").relative_to(ROOT))
            seen |= new


def thumbnails(page: Page) -> None:
    """Make the thumbnails of the examples that need a checkpoint: AMED KSampler and the nodes left of it."""
    for file in sorted(WORKFLOWS.glob("*.json")):
        if "AMEDDemoModel" in kinds(file):
            continue
        page.open(file)
        nodes = page.nodes()
        ours = [n for n in nodes if n["type"] == "AMEDKSampler"] or [
            n for n in nodes if n["type"].startswith("AMED")
        ]
        x, y, width, height = page.bounds([ours[0]["id"]])
        side = max(height + 2 * MARGIN, 1.6 * width)
        middle = y - MARGIN - (side - height - 2 * MARGIN) / 2
        image = shot(page, page.view((x + width + MARGIN - side, middle, side, side)))
        image = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        image.save(file.with_suffix(".jpg"), quality=88, optimize=True)
        print(file.with_suffix(".jpg").relative_to(ROOT))


PICTURES: dict[str, Callable[[Page], None]] = {
    "start-here": start_here,
    "amed-ksampler": ksampler,
    "calibrate": calibrate,
    "help": help_pages,
    "thumbnails": thumbnails,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"any of {', '.join(PICTURES)}; default: all"
    )
    names = parser.parse_args().names or list(PICTURES)
    if unknown := set(names) - set(PICTURES):
        parser.error(f"unknown picture {', '.join(sorted(unknown))}: choose from {', '.join(PICTURES)}")
    if reason := missing():
        sys.exit(f"error: {reason}")
    try:
        install()
        with Server() as server, Page(server) as page:
            for name in names:
                PICTURES[name](page)
    except (ServerError, PageError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
