"""Write example_workflows/ and subgraphs/: `python -m demo.examples`.

Starts a ComfyUI, asks it for the nodes' inputs, and writes every file. With --pictures it also runs the
workflows of the demo model and makes the cards of the template browser (NAME.jpg), which takes a few minutes.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from PIL import Image

from .comfyui import ROOT, WORKFLOWS, Server
from .drawing import workflow
from .gallery import BLUEPRINTS, DEMOS, EXAMPLES

SUBGRAPHS = ROOT / "subgraphs"
CARD = 512  # width of a card, in pixels


def write(folder: Path, name: str, content: dict) -> None:
    """Write a workflow or subgraph as folder/name.json, and print its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT), flush=True)


def write_all(info: dict) -> None:
    """Write all example workflows and subgraphs, except workflows with nodes that this ComfyUI lacks."""
    for name, make in EXAMPLES.items():
        example = make()
        missing = sorted({node.kind for node in example.nodes()} - set(info))
        if missing:
            print(f"left out: {name} (no node {', '.join(missing)})", flush=True)
        else:
            write(WORKFLOWS, name, workflow(name, example, info))
    for name, make in BLUEPRINTS.items():
        write(SUBGRAPHS, name, make(name, info))


def card(images: list[Image.Image]) -> Image.Image:
    """Return a workflow's picture for the template browser: one image, or several joined into a square."""
    across = math.isqrt(len(images) - 1) + 1
    side, gap = CARD // across, 4 if across > 1 else 0
    if across == 1:
        return images[0].resize((CARD, round(CARD * images[0].height / images[0].width)), Image.LANCZOS)
    sheet = Image.new("RGB", (CARD, CARD), "white")
    for i, image in enumerate(images):
        small = image.resize((side - gap, side - gap), Image.LANCZOS)
        sheet.paste(small, (i % across * side + gap // 2, i // across * side + gap // 2))
    return sheet


def write_card(server: Server, name: str) -> None:
    """Run a workflow and write its picture for the template browser, made of its largest output images."""
    shown = server.run_workflow(WORKFLOWS / f"{name}.json").images()
    images = {image.tobytes(): Image.fromarray(image) for image in shown}.values()
    largest = max(math.prod(image.size) for image in images)
    path = WORKFLOWS / f"{name}.jpg"
    card([image for image in images if math.prod(image.size) == largest]).save(path, quality=88)
    print(path.relative_to(ROOT), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.examples", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pictures", action="store_true", help="also run the demo model's workflows and make their cards"
    )
    options = parser.parse_args()
    with Server() as server:
        write_all(server.object_info())
        for name in DEMOS if options.pictures else ():
            if (WORKFLOWS / f"{name}.json").exists():
                write_card(server, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
