"""Measure the avatar model, the benchmark's second problem: `python -m bench.avatars` (an hour on 2 cores).

avatars32 is a native flow model. For each NFE and guidance scale that has a bundled predictor, the settings
of every ComfyUI sampler (its order and variant, and all flow schedules) are searched on 16 noises. Each
sampler's best one and the predictor are then measured on 256 other noises, by their distance to a converged
run. The rows are written to docs/avatars.json, and as a table to demo/README.md.

    python -m bench.avatars [--nfe 6] [--guidance 4] [--noises 256]
"""

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amed import Solver, load, schedules
from amed.fit.measures import Statistics, frechet, rmse, run
from demo.avatars.targets import NAME, target
from demo.fit import remember
from demo.tables import write

from . import flow
from .fits import AVATAR_GUIDANCES, AVATAR_NFES, BUNDLED
from .opponents import Setting, flow_candidates
from .plan import rounded
from .problem import BATCH, Problem
from .quality import run_file
from .workers import Workers

ROOT = Path(__file__).parent.parent
FILE, PAGE = ROOT / "docs" / "avatars.json", ROOT / "demo" / "README.md"
NOISES, SEARCHED = 256, 16
SEED, OTHERS = 7, 100  # of the noises that are measured, and of those of the search
REFERENCE = 60  # evaluations of a converged run
COLUMNS = ("NFE", "guidance", "sampler", "schedule", "error", "FD to reference", "FD to data")


@cache
def problem(guidance: float, count: int, seed: int) -> Problem:
    """Return the avatar model with `count` noises and prompts, made once per process."""
    return Problem(guidance, count, seed, make=target)


@cache
def reference(guidance: float, count: int, seed: int) -> Tensor:
    """Return the images of converged runs, made once per process."""
    noises = problem(guidance, count, seed)
    levels = schedules.make(
        "polynomial", REFERENCE + 1, noises.target.sigma_min, noises.target.sigma_max, 1.0
    )
    images = []
    for start in range(0, count, BATCH):
        part = noises.part(start, start + BATCH)
        images.append(run(part.guided, part.noise, levels, Solver("ipndm", 3), part.args)[0])
    return flow.image(torch.cat(images), float(levels[-1]))


@torch.no_grad()
def best_settings(nfe: int, guidance: float) -> list[Setting]:
    """Return each ComfyUI sampler's setting of lowest error on the noises of the search."""
    noises, ends = problem(guidance, SEARCHED, OTHERS), reference(guidance, SEARCHED, OTHERS)
    best: dict[str, tuple[float, Setting]] = {}
    for setting in flow_candidates(nfe, flow.SCHEDULES):
        error = rmse(setting.run(noises, {}, SEARCHED).images, ends)
        name = setting.variant.solver
        if name not in best or error < best[name][0]:
            best[name] = error, setting
    return [setting for _, setting in best.values()]


@torch.no_grad()
def measured(nfe: int, guidance: float, count: int) -> list[dict[str, Any]]:
    """Return the rows of one NFE and guidance scale, for docs/avatars.json, the lowest error first."""
    noises, ends = problem(guidance, count, SEED), reference(guidance, count, SEED)
    features = noises.target.features
    of_reference = Statistics.of(features(ends))
    made = [
        (setting.variant.name, setting.schedule, setting.run(noises, {}))
        for setting in best_settings(nfe, guidance)
    ]
    file = BUNDLED / f"{NAME}-multistep-nfe{nfe}-cfg{guidance:g}.safetensors"
    if file.is_file():
        kind = "calibrated" if load(file).spec.learned else "plain, kept by its calibration"
        made.append(("AMED multistep", kind, run_file(noises, str(file))[0]))
    rows = []
    for sampler, schedule, end in made:
        statistics = Statistics.of(features(end.images.nan_to_num(0.0)))
        rows.append({
            "sampler": sampler, "schedule": schedule, "nfe": end.nfe, "passes": end.passes,
            "guidance": guidance, "noises": count,
            "rmse_ref": rounded(rmse(end.images, ends)),
            "fd_ref": rounded(frechet(statistics, of_reference)),
            "fd_data": rounded(frechet(statistics, features.data)),
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["rmse_ref"])


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table: AMED and the three best others of each NFE and guidance."""
    texts = [COLUMNS, ["---"] * len(COLUMNS)]
    for guidance, nfe in sorted({(row["guidance"], row["nfe"]) for row in rows}):
        cell = [row for row in rows if (row["guidance"], row["nfe"]) == (guidance, nfe)]
        ours = [row for row in cell if row["sampler"].startswith("AMED")]
        others = [row for row in cell if row not in ours][:3]
        for row in sorted(ours + others, key=lambda row: row["rmse_ref"]):
            bold = "**" if row in ours else ""
            figures = (f"{bold}{row[name]:.3f}{bold}" for name in ("rmse_ref", "fd_ref", "fd_data"))
            name = f"{bold}{row['sampler']}{bold}"
            texts.append([f"{nfe}", f"{guidance:g}", name, row["schedule"], *figures])
    return [f"| {' | '.join(cells)} |" for cells in texts]


def passes(job: tuple[Any, ...]) -> float:
    """Return the network passes per image of an (NFE, guidance scale, ...)."""
    return job[0] * (1 if job[1] == 1 else 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.avatars", description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", nargs="+", type=int, default=list(AVATAR_NFES))
    parser.add_argument("--guidance", nargs="+", type=float, default=list(AVATAR_GUIDANCES))
    parser.add_argument("--noises", type=int, default=NOISES)
    args = parser.parse_args()
    jobs = [(nfe, guidance, args.noises) for guidance in args.guidance for nfe in args.nfe]
    with Workers(2) as workers:
        for (nfe, guidance, _), rows in workers.each("avatars", measured, jobs, work=passes):
            print(f"NFE {nfe}, guidance {guidance:g}", *map(json.dumps, rows[:4]), sep="\n  ", flush=True)
            remember(FILE, lambda old: old | {f"{nfe} {guidance:g}": rows})  # noqa: B023
    write(PAGE, {"bench": table([row for rows in json.loads(FILE.read_text()).values() for row in rows])})


if __name__ == "__main__":
    main()
