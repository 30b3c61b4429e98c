"""`make demo`: run the same seeds through a real ComfyUI with AMED and with other samplers.

    python -m demo.run [avatars32] [emoji32] [--samples 144] [--nfe 6] [--guidance 4] [--prompt none]

Starts ComfyUI without a browser, runs the workflows of example_workflows/ through its HTTP API on each demo
model, and writes the pictures demo/out/demo.png (of avatars32) and emoji32.png, and the rows of both,
demo.json. The fields of a row are those of `demo.rows.Row`; seconds are the server's, for all samples."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from amed import known
from amed.fit.measures import Statistics, frechet, rmse
from amed.fit.plain_solvers import name_of as solver_name

from .avatars.features import Features as AvatarFeatures
from .comfyui import WORKFLOWS, GraphError, Result, RunError, Server, ServerError, install
from .comparison import picture
from .features import Features, TrainedFeatures
from .rows import Row, table
from .workflows import to_api

OUT = Path(__file__).parent / "out"
ORDINARY, OURS, PLAIN = "13 Count any sampler.json", "01 Start here.json", "12 Plain solver.json"  # workflows
BEST_PLAIN = Path(__file__).parent / "best_plain.json"  # of emoji32, by Fréchet distance
COLUMNS = 12  # of a picture


@dataclass(frozen=True)
class Task:
    """What `make demo` samples with one demo model."""

    model: str  # as in AMED Demo Model's input `model`
    nfe: int  # evaluations per image
    guidance: float  # guidance scale; 1 is none
    reference: int  # evaluations of the reference run
    scheduler: str  # ComfyUI's, for the samplers without AMED
    prompts: tuple[str, ...]  # one batch of images for each: texts, or emoji categories
    samples: int  # number of images, split between the prompts
    features: type[TrainedFeatures]  # of the Fréchet distance
    picture: str  # file of demo/out

    @property
    def unprompted(self) -> bool:
        """Whether the images are drawn as the training data are, and so can be compared with them."""
        return set(self.prompts) == {"none"}

    def batches(self) -> list[int]:
        """Return the number of images of each prompt; they differ by at most one."""
        count = len(self.prompts)
        return [self.samples * (i + 1) // count - self.samples * i // count for i in range(count)]

    def shown(self) -> list[tuple[int, str]]:
        """Return the columns of the picture, the prompts in turn: number of the image, and its prompt."""
        batches, columns = self.batches(), []
        for column in range(min(COLUMNS, self.samples)):
            turn, prompt = divmod(column, len(batches))
            columns.append((sum(batches[:prompt]) + turn, self.prompts[prompt]))
        return columns


TASKS = {
    "avatars32": Task(
        model="avatars32",
        nfe=6,
        guidance=4.0,
        reference=50,
        scheduler="simple",
        prompts=(
            "pixel art, red hair, glasses, blue background",
            "open peeps, black hair, smiling, white background",
            "thumbs, yellow background",
            "lorelei, green hair, glasses, pink background",
            "big smile, pink hair, blue background",
            "adventurer, blond hair, short hair, green background",
            "toon head, brown hair, beard, orange background",
            "miniavs, black hair, red background",
            "pixel art, blond hair, long hair, purple background",
            "adventurer, blue hair, glasses, yellow background",
            "big smile, brown skin, black hair, glasses, grey background",
            "toon head, green hair, long hair, blue background",
        ),
        samples=144,
        features=AvatarFeatures,
        picture="demo.png",
    ),
    "emoji32": Task(
        model="emoji32",
        nfe=5,
        guidance=1.0,
        reference=60,
        scheduler="karras",
        prompts=("none", "none"),
        samples=128,
        features=Features,
        picture="emoji32.png",
    ),
}


@dataclass(frozen=True)
class Entry:
    """One sampler that `make demo` compares, and the example workflow that runs it."""

    solver: str  # its name in the picture and the table
    schedule: str
    workflow: str  # file of example_workflows/ that runs it
    change: dict[str, object]  # input name -> value to set in that workflow


def plain_settings(task: Task) -> dict[str, dict[str, object]]:
    """Return the best settings of AMED Plain Solver, by what they are best at ("" if one is best at all).

    They are those that `make bench` and demo.fit found: amed/known.py and demo/best_plain.json."""
    settings = {}
    if task.model == "emoji32":
        found = json.loads(BEST_PLAIN.read_text())
        settings["by FD"] = found.get(f"{task.nfe} {task.guidance:g}") or found[f"{task.nfe} 1"]
    if best := known.best(task.model, task.nfe, task.guidance):
        setting = {"schedule": best.kind, "rho": best.rho, "afs": best.afs}
        settings["by error"] = {"solver": solver_name(best.solver), **setting}
    if settings and len({json.dumps(s, sort_keys=True) for s in settings.values()}) == 1:
        return {"": next(iter(settings.values()))}
    return settings


def entries(task: Task) -> list[Entry]:
    """Return the samplers that `make demo` compares: a reference of many evaluations, AMED's, usual ones on
    the task's scheduler, and the best without AMED."""

    def usual(name: str, sampler: str, steps: int = task.nfe) -> Entry:
        change = {"sampler_name": sampler, "scheduler": task.scheduler, "steps": steps}
        return Entry(name, task.scheduler, ORDINARY, change)

    def ours(name: str, sampler: str) -> Entry:
        change = {"sampler": sampler, "nfe": task.nfe, "if_missing": "error"}
        return Entry(name, "its own", OURS, change)

    def plain(setting: dict, criterion: str) -> Entry:
        schedule = f"{setting['schedule']} {setting['rho']:g}{' + AFS' if setting['afs'] else ''}"
        name = f"{setting['solver']}, best plain {criterion}".rstrip()
        return Entry(name, schedule, PLAIN, {**setting, "nfe": task.nfe})

    fitted = [ours("AMED multistep, calibrated", "amed_multistep")]
    if task.model == "emoji32":
        fitted += [ours("AMED-Plugin", "amed_ipndm"), ours("AMED-Solver", "amed")]
    return [
        usual("reference", "ipndm", task.reference),
        *fitted,
        *(plain(setting, criterion) for criterion, setting in plain_settings(task).items()),
        usual("DPM++ 2M", "dpmpp_2m"),
        usual("UniPC", "uni_pc"),
        usual("iPNDM", "ipndm"),
        *([usual("Euler", "euler")] if task.model != "emoji32" else []),
    ]


def prepared(graph: dict, task: Task, entry: Entry, seed: int, prompt: str, batch: int) -> dict:
    """Change an API-format graph so that it samples one batch with the sampler `entry`, and return it.

    The demo model and its prompt become the task's. Nodes are added that count the evaluations and save the
    latents; the preview nodes are removed."""

    def node(*kinds: str) -> str:
        return next(i for i, n in graph.items() if n["class_type"] in kinds)

    demo, sampler = node("AMEDDemoModel"), node("KSampler", "AMEDKSampler", "SamplerCustom")
    graph[demo]["inputs"] |= {"model": task.model, "batch_size": batch}
    if task.model == "emoji32":
        graph[demo]["inputs"]["category"], positive = prompt, [demo, 1]
    else:
        graph["prompt"] = {"class_type": "AMEDDemoPrompt", "inputs": {"text": prompt}}
        positive = ["prompt", 0]
    graph[sampler]["inputs"]["positive"] = positive
    scale = task.guidance
    values = {**entry.change, "seed": seed, "noise_seed": seed, "cfg": scale, "guidance": scale}
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


@dataclass(frozen=True)
class Sampled:
    """What one sampler made in ComfyUI."""

    images: Tensor  # `[samples, 3, 32, 32]`, prompt by prompt
    nfe: int  # evaluations per image, counted
    seconds: float  # in ComfyUI
    predictor: str  # name of the predictor file that ran; "" for none


def sampled(server: Server, task: Task, entry: Entry, progress: Callable[[int], None]) -> Sampled:
    """Sample all images of a task with one sampler, in ComfyUI, one batch per prompt.

    Raises:
        RuntimeError: the batches took different numbers of evaluations."""
    images, counts, seconds, predictor = [], set(), 0.0, ""
    workflow, info = json.loads((WORKFLOWS / entry.workflow).read_text()), server.object_info()
    done = 0
    for seed, (prompt, batch) in enumerate(zip(task.prompts, task.batches())):
        graph = prepared(to_api(workflow, info), task, entry, seed, prompt, batch)
        result: Result = server.run(graph)
        counts.add(int(re.match(r"(\d+) evaluations", "".join(result.outputs["used"]["text"])).group(1)))
        images.append(load_tensors(server.view(result.files("latents", "save")[0]))["latent_tensor"].float())
        seconds += result.seconds
        for line in result.text().splitlines():
            if line.startswith("predictor: "):
                predictor = line.split()[1].removesuffix(".safetensors")
        progress(done := done + batch)
    if len(counts) != 1:
        raise RuntimeError(
            f"{entry.solver}: the batches took different numbers of evaluations ({sorted(counts)}): "
            "check its workflow"
        )
    return Sampled(torch.cat(images), counts.pop(), seconds, predictor)


def compared(server: Server, task: Task, begin: float) -> list[tuple[Row, Tensor]]:
    """Run every sampler of a task, printing the progress; return its figures and its images.

    `begin` is when the demo began (time.monotonic), for the printed seconds. A sampler of AMED that has no
    predictor at these settings is left out."""
    features, rows = task.features(), []
    for entry in entries(task):

        def progress(count: int, name: str = entry.solver) -> None:
            text = f"{task.model}: {name}: {count} of {task.samples}  ({time.monotonic() - begin:.0f} s)"
            print(f"\r{text}   ", end="", flush=True)

        try:
            made = sampled(server, task, entry, progress)
        except RunError as error:
            if entry.workflow != OURS:
                raise
            print(f"{entry.solver}: left out: {str(error).splitlines()[0]}")
            continue
        print()
        statistics = Statistics.of(features(made.images))
        if not rows:
            reference, of_reference = made.images, statistics
        row = Row(
            entry.solver,
            made.predictor or entry.schedule,
            made.nfe,
            task.guidance,
            rmse(made.images, reference),
            max(frechet(statistics, of_reference), 0.0),
            frechet(statistics, features.data) if task.unprompted else None,
            made.seconds,
        )
        rows.append((row, made.images))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__.splitlines()[0])
    names = " and ".join(TASKS)
    parser.add_argument("models", nargs="*", default=list(TASKS), metavar="MODEL", help=names)
    parser.add_argument("--samples", type=int, help="images per sampler")
    parser.add_argument("--nfe", type=int, help="evaluations per image")
    parser.add_argument("--guidance", type=float, help="guidance scale; 1 is none")
    parser.add_argument("--prompt", action="append", help="a text, or a category of emoji; may be repeated")
    args = parser.parse_args(argv)
    if unknown := set(args.models) - set(TASKS):
        parser.error(f"unknown model {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")
    if args.samples is not None and args.samples < 65:
        parser.error("--samples: at least 65 are needed for a Fréchet distance of 64 features")
    given = {"samples": args.samples, "nfe": args.nfe, "guidance": args.guidance}
    given |= {"prompts": args.prompt and tuple(args.prompt)}
    given = {name: value for name, value in given.items() if value is not None}
    rows, begin = {}, time.monotonic()
    try:
        tasks = [replace(TASKS[model], **given) for model in args.models]
        install()
        print("starting ComfyUI ...", flush=True)
        # where other programs run, threads that spin while they wait make sampling several times slower
        os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        with Server(threads=min(os.cpu_count() or 1, 4)) as server:  # batches are large enough for several
            for task in tasks:
                rows[task.model] = compared(server, task, begin)
    except (ServerError, GraphError, RunError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    OUT.mkdir(exist_ok=True)
    for task in tasks:
        picture(rows[task.model], task.shown(), OUT / task.picture)
    part = OUT / "demo.json.part"
    plain = {model: [row.as_dict() for row, _ in found] for model, found in rows.items()}
    part.write_text(json.dumps(plain, indent=1) + "\n")
    part.replace(OUT / "demo.json")
    for task in tasks:
        print(f"\n{task.model}, {task.samples} seeds:\n\n{table([row for row, _ in rows[task.model]])}")
    files = ", ".join(task.picture for task in tasks)
    print(f"\n{OUT}: {files}, demo.json; {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
