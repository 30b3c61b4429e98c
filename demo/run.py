"""`make demo`: run the same seeds through a real ComfyUI with AMED and with other samplers.

    python -m demo.run [--samples 256] [--guidance 1] [--category none]

Starts ComfyUI without a browser, runs the workflows of example_workflows/ through its HTTP API, and writes
the picture demo/out/demo.png and the rows demo/out/demo.json. The fields of a row are those of
`demo.rows.Row`; the reference has 60 evaluations, and seconds are the server's, for all samples."""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load as load_tensors
from torch import Tensor

from amed import known
from amed.fit.measures import Statistics, frechet, rmse
from amed.fit.plain_solvers import name_of as solver_name

from .comfyui import WORKFLOWS, GraphError, Result, RunError, Server, ServerError, install
from .features import Features
from .rows import Row, table, tile
from .workflows import to_api

OUT = Path(__file__).parent / "out"
ORDINARY, OURS, PLAIN = "13 Count any sampler.json", "01 Start here.json", "12 Plain solver.json"  # workflows
BATCH, COLUMNS, SCALE = 64, 12, 3  # samples per run; of the picture: columns, enlargement


@dataclass(frozen=True)
class Entry:
    """One sampler that `make demo` compares, and the example workflow that runs it."""

    solver: str  # its name in the picture and the table
    schedule: str
    workflow: str  # file of example_workflows/ that runs it
    change: dict[str, object]  # input name -> value to set in that workflow


def entries(nfe: int, guidance: float, best: dict) -> list[Entry]:
    """Return the samplers that `make demo` compares.

    They are a reference of 60 evaluations, AMED's, usual ones, and the best without AMED. `best` is the one
    without AMED that has the lowest Fréchet distance (from demo/best_plain.json). If another has the lowest
    error (amed/known.py), it is compared too."""

    def usual(name: str, sampler: str, steps: int = nfe) -> Entry:
        change = {"sampler_name": sampler, "scheduler": "karras", "steps": steps}
        return Entry(name, "karras", ORDINARY, change)

    def ours(name: str, sampler: str) -> Entry:
        change = {"sampler": sampler, "nfe": nfe, "if_missing": "error"}
        return Entry(name, "its own", OURS, change)

    def plain(setting: dict, criterion: str) -> Entry:
        schedule = f"{setting['schedule']} {setting['rho']:g}{' + AFS' if setting['afs'] else ''}"
        return Entry(f"{setting['solver']}, best plain {criterion}", schedule, PLAIN, {**setting, "nfe": nfe})

    settings = {"by FD": best}
    if known_setting := known.best("emoji32", nfe, guidance):
        other = {"schedule": known_setting.kind, "rho": known_setting.rho, "afs": known_setting.afs}
        settings["by error"] = {"solver": solver_name(known_setting.solver), **other}
    if settings["by FD"] == settings.get("by error"):
        settings = {"": best}
    return [
        usual("reference", "ipndm", 60),
        ours("AMED multistep, calibrated", "amed_multistep"),
        ours("AMED-Plugin", "amed_ipndm"),
        ours("AMED-Solver", "amed"),
        usual("DPM++ 2M", "dpmpp_2m"),
        usual("UniPC", "uni_pc"),
        usual("iPNDM", "ipndm"),
        *(plain(setting, criterion) for criterion, setting in settings.items()),
    ]


def prepared(graph: dict, entry: Entry, seed: int, guidance: float, category: str, batch: int) -> dict:
    """Change an API-format graph so that it samples one batch with the sampler `entry`, and return it.

    Nodes are added that count the evaluations and save the latents; the preview nodes are removed."""

    def node(*kinds: str) -> str:
        return next(i for i, n in graph.items() if n["class_type"] in kinds)

    demo, sampler = node("AMEDDemoModel"), node("KSampler", "AMEDKSampler", "SamplerCustom")
    graph[demo]["inputs"] |= {"category": category, "batch_size": batch}
    values = {**entry.change, "seed": seed, "noise_seed": seed, "cfg": guidance, "guidance": guidance}
    for n in graph.values():
        n["inputs"] |= {k: v for k, v in values.items() if k in n["inputs"]}
    for i in [
        i
        for i, n in graph.items()
        if n["class_type"].startswith(("AMEDCount", "AMEDEvaluations", "Preview"))
        or n["class_type"] == "AMEDDemoDecode"
    ]:
        del graph[i]
    graph["count"] = {"class_type": "AMEDCountEvaluations", "inputs": {"model": [demo, 0]}}
    graph[sampler]["inputs"]["model"] = ["count", 0]
    graph["used"] = {
        "class_type": "AMEDEvaluationsUsed",
        "inputs": {"model": ["count", 0], "samples": [sampler, 0]},
    }
    graph["save"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["used", 0], "filename_prefix": "amed/demo"},
    }
    return graph


def sampled(
    server: Server,
    entry: Entry,
    guidance: float,
    category: str,
    samples: int,
    progress: Callable[[int], None],
) -> tuple[Tensor, int, float, str]:
    """Sample all images of one compared sampler, in ComfyUI, in batches.

    Returns the images `[samples, 3, 32, 32]`, the number of evaluations per image, the seconds in ComfyUI,
    and the name of the predictor file that ran ("" for none). Raises RuntimeError if the batches took
    different numbers of evaluations."""
    images, counts, seconds, predictor = [], set(), 0.0, ""
    workflow, info = json.loads((WORKFLOWS / entry.workflow).read_text()), server.object_info()
    for seed, offset in enumerate(range(0, samples, BATCH)):
        batch = min(BATCH, samples - offset)
        graph = prepared(to_api(workflow, info), entry, seed, guidance, category, batch)
        result: Result = server.run(graph)
        counts.add(int(re.match(r"(\d+) evaluations", "".join(result.outputs["used"]["text"])).group(1)))
        images.append(load_tensors(server.view(result.files("latents", "save")[0]))["latent_tensor"].float())
        seconds += result.seconds
        for line in "".join(t for ui in result.outputs.values() for t in ui.get("text", ())).splitlines():
            if line.startswith("predictor: "):
                predictor = line.split()[1].removesuffix(".safetensors")
        progress(offset + batch)
    if len(counts) != 1:
        raise RuntimeError(
            f"{entry.solver}: the batches took different numbers of evaluations ({sorted(counts)}): "
            "check its workflow"
        )
    return torch.cat(images), counts.pop(), seconds, predictor


def picture(rows: list[tuple[Row, Tensor]], file: Path) -> None:
    """Draw the comparison into `file`: per solver a line with its figures and one image per seed."""
    side, left, gap = 32 * SCALE, 330, 6
    page = Image.new("RGB", (left + COLUMNS * (side + gap), len(rows) * (side + gap) + gap), "white")
    draw = ImageDraw.Draw(page)
    big, small = ImageFont.load_default(19), ImageFont.load_default(14)
    for y, (row, images) in enumerate(rows):
        top = gap + y * (side + gap)
        draw.text((10, top + 12), row.solver, "black", big)
        figures = f"{row.nfe} evaluations, {row.schedule}"
        if row.rmse_ref:
            figures += f"\nerror {row.rmse_ref:.3f}, FD {row.fd_ref:.2f}"
        draw.text((10, top + 40), figures, "#444444", small)
        for x, image in enumerate(images[:COLUMNS]):
            page.paste(tile(image, side), (left + x * (side + gap), top))
    part = file.with_suffix(".part.png")
    page.save(part)
    part.replace(file)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--nfe", type=int, default=5, choices=(3, 5, 7, 9), help="evaluations per image")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale; 1 is none")
    parser.add_argument("--category", default="none", help="an emoji category, or none")
    args = parser.parse_args(argv)
    if args.samples < 65:
        parser.error("--samples: at least 65 are needed for a Fréchet distance of 64 features")
    plain = json.loads((Path(__file__).parent / "best_plain.json").read_text())
    best = plain.get(f"{args.nfe} {args.guidance:g}", plain[f"{args.nfe} 1"])
    features, rows, begin = Features(), [], time.monotonic()
    try:
        install()
        print("starting ComfyUI ...", flush=True)
        with Server() as server:
            for entry in entries(args.nfe, args.guidance, best):

                def progress(count: int, name: str = entry.solver) -> None:
                    print(
                        f"\r{name}: {count} of {args.samples}  ({time.monotonic() - begin:.0f} s)   ",
                        end="",
                        flush=True,
                    )

                try:
                    images, nfe, seconds, predictor = sampled(
                        server, entry, args.guidance, args.category, args.samples, progress
                    )
                except RunError as error:
                    if entry.workflow != OURS:
                        raise
                    print(f"{entry.solver}: left out: {str(error).splitlines()[0]}")
                    continue
                print()
                statistics = Statistics.of(features(images))
                if not rows:
                    reference, of_reference = images, statistics
                row = Row(
                    entry.solver,
                    predictor or entry.schedule,
                    nfe,
                    args.guidance,
                    rmse(images, reference),
                    frechet(statistics, of_reference),
                    frechet(statistics, features.data),
                    seconds,
                )
                rows.append((row, images))
    except (ServerError, GraphError, RunError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    OUT.mkdir(exist_ok=True)
    picture(rows, OUT / "demo.png")
    part = OUT / "demo.json.part"
    part.write_text(json.dumps([row.as_dict() for row, _ in rows], indent=1) + "\n")
    part.replace(OUT / "demo.json")
    print(table([row for row, _ in rows]))
    print(f"{OUT / 'demo.png'} and demo.json, {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
