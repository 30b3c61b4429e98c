"""How far the calibrated table's form goes: `python -m bench.floor` (an hour or two on 2 cores, most
of it under guidance), kept in docs/floor.json.

The same fit on 512 samples and 128 held-out ones (normal has 32 to 48, and 40 to 64) with as many evaluations
as it can use, and the budget thorough, beside the bundled table (normal) and the nearest other solvers, on
noises that no fit has seen. A row that was measured is kept in bench/out: a run that was stopped goes on."""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from amed import save
from amed.fit import PRESETS, Calibration, Settings
from demo.target import NAME, target

from .fits import BUNDLED
from .plan import OUT, Entry, Plan, Row, settings
from .quality import measure, measured, nearest, reference_file, references
from .report import ROOT, listed
from .workers import Workers

CELLS = ((5, 1.0), (9, 4.0))
NOISES, FIRST = 512, 64
WIDE_BUDGET = 150_000
KINDS = ("normal", "thorough", "wide")


@dataclass(frozen=True)
class Wide(Settings):
    """The same fit with samples enough that the constants, not their noise, are what is left."""

    @property
    def held_out(self) -> int:
        return 128

    @property
    def traced(self) -> int:
        return 512


def file_of(kind: str, nfe: int, guidance: float) -> Path:
    name = f"{NAME}-multistep{'' if kind == 'normal' else f'-{kind}'}-nfe{nfe}-cfg{guidance:g}.safetensors"
    return (BUNDLED if kind == "normal" else OUT) / name


def fitted(kind: str, nfe: int, guidance: float) -> int:
    """Fit and save one table; its evaluations."""
    budget, own = (WIDE_BUDGET, Wide) if kind == "wide" else (PRESETS["thorough"], Settings)
    made = replace(target(guidance, dtype=torch.bfloat16), features=None)
    calibration = Calibration(made, own(nfe, budget=budget, guidance=guidance, batch=32))
    for _ in calibration.run():
        pass
    result = calibration.result()
    save(file_of(kind, nfe, guidance), result.fitted)
    return result.evaluations


def entry(kind: str, nfe: int, guidance: float) -> Entry:
    passes = nfe if guidance == 1 else 2 * nfe
    return Entry(nfe, passes, guidance, NOISES, file=str(file_of(kind, nfe, guidance)))


def line(kind: str, row: Row, evaluations: int | None = None) -> dict[str, Any]:
    return row.as_dict() | {"kind": kind} | ({} if evaluations is None else {"fit_evaluations": evaluations})


def enough(guidance: float) -> bool:
    """Whether a run before has kept a reference of so many noises."""
    file = reference_file(guidance)
    return file.is_file() and len(load_file(file)["images"]) >= NOISES


def cell(plan: Plan, workers: Workers, nfe: int, guidance: float) -> list[dict[str, Any]]:
    """The rows of one NFE and guidance: ours, then the nearest others, on all noises."""
    jobs = [(kind, nfe, guidance) for kind in ("wide", "thorough")]
    spent = {job[0]: evaluations for job, evaluations in workers.each("fits", fitted, jobs)}
    passes = nfe if guidance == 1 else 2 * nfe
    few = [Entry(nfe, passes, guidance, FIRST, setting) for setting in settings(nfe, guidance)[0]]
    near = nearest(measured(plan, workers, "others, few noises", few, {}), nfe, guidance)
    others = measured(plan, workers, "others", [replace(r.entry, count=NOISES) for r in near], {})
    ours = [(plan, entry(kind, nfe, guidance)) for kind in KINDS]
    rows = {Path(job[1].file): row for job, row in workers.each("ours", measure, ours)}
    lines = [line(kind, rows[file_of(kind, nfe, guidance)], spent.get(kind)) for kind in KINDS]
    return [*lines, *(line("other", row) for row in others)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.floor", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    OUT.mkdir(exist_ok=True)
    plan = Plan(dict.fromkeys((1.0, 2.0, 4.0), NOISES), many={}, flow=0)
    kept = OUT / "floor.json"
    known = json.loads(kept.read_text()) if kept.is_file() else []
    with Workers(args.processes) as workers:
        for nfe, guidance in CELLS:
            if any((row["nfe"], row["guidance"]) == (nfe, guidance) for row in known):
                continue
            references(plan, workers, guidance, resume=enough(guidance))
            known += cell(plan, workers, nfe, guidance)
            kept.write_text(listed(known))
    (ROOT / "docs" / "floor.json").write_text(listed(known))


if __name__ == "__main__":
    main()
