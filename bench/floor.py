"""Measure how far the form of the calibrated table goes: `python -m bench.floor`.

The same fit with 512 samples and 128 held-out ones (normal has 32 to 48 and 40 to 64) and as many evaluations
as it can use, and with the budget thorough, is compared with the bundled table (normal) and the nearest other
solvers, on noises that no fit has seen. Takes an hour or two on 2 cores, most of it with guidance. The rows
are saved in docs/floor.json; an interrupted run resumes from those in bench/out."""

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

CELLS = ((5, 1.0), (9, 4.0))  # (NFE, guidance)
NOISES, FIRST = 512, 64  # to measure on; of these, to find the nearest other solvers with
WIDE_BUDGET = 150_000  # evaluations
KINDS = ("normal", "thorough", "wide")


@dataclass(frozen=True)
class Wide(Settings):
    """Calibration settings with 512 samples, so many that more should not improve the result."""

    @property
    def held_out(self) -> int:
        return 128

    @property
    def traced(self) -> int:
        return 512


def file_of(kind: str, nfe: int, guidance: float) -> Path:
    """Return the file of a calibrated solver: bundled for the budget "normal", otherwise in bench/out."""
    name = f"{NAME}-multistep{'' if kind == 'normal' else f'-{kind}'}-nfe{nfe}-cfg{guidance:g}.safetensors"
    return (BUNDLED if kind == "normal" else OUT) / name


def fitted(kind: str, nfe: int, guidance: float) -> int:
    """Calibrate an AMED solver and save it; return the number of model evaluations that this took."""
    budget, settings_class = (WIDE_BUDGET, Wide) if kind == "wide" else (PRESETS["thorough"], Settings)
    fit_target = replace(target(guidance, dtype=torch.bfloat16), features=None)
    calibration = Calibration(fit_target, settings_class(nfe, budget=budget, guidance=guidance, batch=32))
    for _ in calibration.run():
        pass
    result = calibration.result()
    save(file_of(kind, nfe, guidance), result.fitted)
    return result.evaluations


def entry(kind: str, nfe: int, guidance: float) -> Entry:
    """Return the measurement to make of an AMED solver from a normal, thorough or wide calibration.

    `kind` names the calibration: "normal" has a budget of 12,000 evaluations of the model, "thorough" of
    40,000, and "wide" of 150,000 with 512 samples to fit to."""
    passes = nfe if guidance == 1 else 2 * nfe
    return Entry(nfe, passes, guidance, NOISES, file=str(file_of(kind, nfe, guidance)))


def line(kind: str, row: Row, evaluations: int | None = None) -> dict[str, Any]:
    """Return the result of one measured solver as a dict for docs/floor.json."""
    return row.as_dict() | {"kind": kind} | ({} if evaluations is None else {"fit_evaluations": evaluations})


def enough(guidance: float) -> bool:
    """Return whether bench/out has the NOISES reference images needed for a guidance scale."""
    file = reference_file(guidance)
    return file.is_file() and len(load_file(file)["images"]) >= NOISES


def cell(plan: Plan, workers: Workers, nfe: int, guidance: float) -> list[dict[str, Any]]:
    """Calibrate AMED solvers; measure them and the best ComfyUI solvers at one NFE and guidance.

    Returns their entries of docs/floor.json, AMED's first."""
    jobs = [(kind, nfe, guidance) for kind in ("wide", "thorough")]
    fit_evaluations = {job[0]: evaluations for job, evaluations in workers.each("fits", fitted, jobs)}
    passes = nfe if guidance == 1 else 2 * nfe
    few_noises = [Entry(nfe, passes, guidance, FIRST, setting) for setting in settings(nfe, guidance)[0]]
    nearest_rows = nearest(measured(plan, workers, "others, few noises", few_noises, {}), nfe, guidance)
    others = measured(plan, workers, "others", [replace(r.entry, count=NOISES) for r in nearest_rows], {})
    our_jobs = [(plan, entry(kind, nfe, guidance)) for kind in KINDS]
    rows = {Path(job[1].file): row for job, row in workers.each("ours", measure, our_jobs)}
    lines = [line(kind, rows[file_of(kind, nfe, guidance)], fit_evaluations.get(kind)) for kind in KINDS]
    return [*lines, *(line("other", row) for row in others)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.floor", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    OUT.mkdir(exist_ok=True)
    plan = Plan(dict.fromkeys((1.0, 2.0, 4.0), NOISES), many={}, flow=0)
    saved = OUT / "floor.json"
    known_rows = json.loads(saved.read_text()) if saved.is_file() else []
    with Workers(args.processes) as workers:
        for nfe, guidance in CELLS:
            if any((row["nfe"], row["guidance"]) == (nfe, guidance) for row in known_rows):
                continue
            references(plan, workers, guidance, resume=enough(guidance))
            known_rows += cell(plan, workers, nfe, guidance)
            saved.write_text(listed(known_rows))
    (ROOT / "docs" / "floor.json").write_text(listed(known_rows))


if __name__ == "__main__":
    main()
