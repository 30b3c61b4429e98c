"""Measure quality: every solver at its best settings and every predictor, on the same noises.

The results are distances to converged reference images. The work is split over processes of one thread each.
Every finished row is saved in bench/out, so an interrupted run can continue with `--resume`."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from amed import Fitted, load, sample
from amed.fit.measures import rmse, run

from .measures import Measured, Ruler
from .opponents import Setting
from .plan import (
    CALIBRATED,
    CHUNK,
    MEASURES,
    OUT,
    SHOWN,
    SHOWN_NFES,
    Entry,
    Plan,
    Row,
    entries,
    flow_entries,
    label,
    rounded,
    settings,
)
from .problem import Ends, Problem
from .search import flow_reference, reference_plan
from .workers import Workers

# --- functions that run in a worker process ---


@cache
def problem(guidance: float, count: int, seed: int, dtype: str, flow: bool = False) -> Problem:
    """Return the demo model with `count` noises to sample, created only once per process."""
    return Problem(guidance, count, seed, getattr(torch, dtype), flow)


def drawn(plan: Plan, guidance: float, flow: bool = False) -> Problem:
    """Return the demo model with all noises that the benchmark uses at a guidance scale."""
    count = plan.flow if flow else plan.total(guidance)
    return problem(guidance, count, plan.seed, plan.dtype, flow)


def reference_file(guidance: float, flow: bool = False) -> Path:
    """Return the file in bench/out with the reference images of a guidance scale."""
    return OUT / f"reference-{'flow' if flow else f'cfg{guidance:g}'}.safetensors"


@cache
def ruler(plan: Plan, guidance: float, count: int, flow: bool) -> Ruler:
    """Return a Ruler, which measures images by their distances to the first `count` reference images."""
    images = load_file(reference_file(guidance, flow))["images"]
    return Ruler(images[:count], drawn(plan, guidance, flow).denoiser, plan.resamples)


def reference(
    plan: Plan, guidance: float, evaluations: int, start: int, stop: int, flow: bool = False
) -> Tensor:
    """Sample the reference images of the noises from `start` to `stop`, in `evaluations` evaluations."""
    noises = drawn(plan, guidance, flow).part(start, stop)
    if flow:
        return flow_reference(noises, evaluations)
    setting = reference_plan(evaluations)
    return run(noises.guided, noises.noise, setting.sigmas(), setting.solver, noises.args)[0]


def run_file(noises: Problem, file: str) -> tuple[Ends, Fitted]:
    """Sample with a file of fitted AMED parameters, on the noise levels stored in it.

    Returns the images with their cost, and the loaded file."""
    fitted = load(Path(file))
    spec, sigmas = fitted.spec, fitted.sigmas()
    # a remembered evaluation contains neither the bottleneck nor the halves
    noises.model.remembers = not (fitted.wants_bottleneck or fitted.wants_halves)

    def sampler(model: Any, noise: Tensor, args: dict[str, Any]) -> Tensor:
        return sample(
            model,
            noise * sigmas[0].to(noise),
            sigmas,
            spec.student,
            args,
            disable=True,
            predictor=fitted.predictor,
            afs=spec.afs,
            evaluate=noises.target.evaluate,
        )

    try:
        return noises.run(sampler, end=float(sigmas[-1])), fitted
    finally:
        noises.model.remembers = True


def measure(plan: Plan, entry: Entry) -> Row:
    """Make one measurement of the benchmark and return its result.

    Raises RuntimeError if the run took another number of evaluations or passes than `entry` states."""
    noises = drawn(plan, entry.guidance, entry.flow).first(entry.count)
    if entry.setting is not None:
        grids = {} if entry.flow else settings(entry.nfe, entry.guidance)[1]
        ends = entry.setting.run(noises, grids)
        solver, schedule, predictor = entry.setting.variant.name, entry.setting.schedule_name, ""
    else:
        ends, fitted = run_file(noises, entry.file)
        solver, predictor = label(fitted)
        spec = fitted.spec
        schedule = "fitted" if spec.schedule == "custom" else f"{spec.schedule} {spec.rho:g}"
        schedule += " + AFS" * spec.afs
    if (ends.nfe, ends.passes) != (entry.nfe, entry.passes):
        raise RuntimeError(
            f"{entry.key} took {ends.nfe} evaluations and {ends.passes} passes, not {entry.nfe} and "
            f"{entry.passes}: search the settings again with `make bench-search`"
        )
    measures = ruler(plan, entry.guidance, entry.count, entry.flow)
    figures = measures.measure(ends.images.nan_to_num(0.0))
    row = Row(entry, solver, schedule, predictor, ends.nfe, ends.passes, figures)
    if entry.cell in SHOWN_NFES and entry.count == plan.noises[entry.guidance] and not entry.flow:
        strip(ends.images[:SHOWN], strip_file(row))
    return row


def strip_file(row: Row) -> Path:
    """Return the path of the PNG file with the first images of one solver side by side."""
    entry = row.entry
    return OUT / "strips" / f"{entry.guidance:g}-{entry.cell}-{row.solver}-{row.predictor}.png"


def strip(images: Tensor, file: Path) -> None:
    """Save images `[n, 3, H, W]` in [-1, 1] side by side in one PNG."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(2, 0, 3, 1).flatten(1, 2).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(file)


# --- functions that run in the main process ---


def reference_images(
    plan: Plan, workers: Workers, guidance: float, resume: bool, flow: bool = False
) -> tuple[Tensor, Tensor]:
    """Return reference images of 100 evaluations for all noises, and of 200 for the first `plan.converged`.

    The latter show whether 100 evaluations are enough. Both are saved in bench/out; with `resume`, images of
    an earlier run are loaded instead."""
    file = reference_file(guidance, flow)
    count = plan.flow if flow else plan.total(guidance)
    if not (resume and file.is_file()):
        jobs = [
            (plan, guidance, evaluations, start, min(start + CHUNK, noises), flow)
            for evaluations, noises in ((100, count), (200, min(plan.converged, count)))
            for start in range(0, noises, CHUNK)
        ]
        which = "flow form" if flow else f"guidance {guidance:g}"
        title = f"reference, 100 and 200 evaluations, {which}"
        parts = dict(workers.each(title, reference, jobs, work=lambda job: job[2] * (job[4] - job[3])))
        images = {n: torch.cat([parts[job] for job in jobs if job[2] == n]) for n in (100, 200)}
        save_file({"images": images[100], "twice": images[200]}, file)
    known = load_file(file)
    return known["images"], known["twice"]


def references(
    plan: Plan, workers: Workers, guidance: float, resume: bool, flow: bool = False
) -> dict[str, Any]:
    """Return the reference's entry for docs/results.json or docs/flow.json.

    It includes the distance to a run of twice the evaluations, to check that the reference has converged."""
    images, twice = reference_images(plan, workers, guidance, resume, flow)
    first = images[: len(twice)]
    if not flow:
        strip(images[:SHOWN], OUT / "strips" / f"{guidance:g}-reference.png")
    denoiser = drawn(plan, guidance, flow).denoiser
    convergence = Ruler(twice, denoiser, plan.resamples).measure(first)
    row_images = images if flow else images[: plan.noises[guidance]]
    self_measures = Ruler(row_images, denoiser, plan.resamples).measure(row_images)
    row = {
        "solver": "reference",
        "schedule": "polynomial 7",
        "predictor": "",
        "nfe": 100,
        "guidance": guidance,
    }
    row |= {"noises": len(row_images), "rmse_ref": 0.0, "fd_ref": 0.0, "swd": 0.0}
    row |= {"fd_data": rounded(self_measures["fd_data"].value)}
    row |= {"fd_data_interval": [rounded(v) for v in self_measures["fd_data"].interval]}
    row |= {"to_200_evaluations": {k: rounded(convergence[k].value) for k in ("rmse_ref", "fd_ref", "swd")}}
    row["to_200_evaluations"] |= {"noises": len(twice), "median": rounded(median(first, twice))}
    if len(images) > len(row_images):
        row["fd_data_many"] = rounded(Ruler(images, denoiser, 0).measure(images)["fd_data"].value)
    return row


def reference_fd_to_data(plan: Plan, noises: dict[float, int]) -> dict[float, Measured]:
    """Return the Fréchet distance of the reference images to the data, by guidance.

    `noises` gives, by guidance, the number of noises whose reference images are used."""
    distances = {}
    for guidance, count in noises.items():
        images = load_file(reference_file(guidance))["images"][:count]
        denoiser = drawn(plan, guidance).denoiser
        distances[guidance] = Ruler(images, denoiser, plan.resamples).measure(images)["fd_data"]
    return distances


def median(images: Tensor, reference: Tensor) -> float:
    """Return the median, over the images, of each image's RMSE to its reference image."""
    return float(torch.tensor([rmse(a, b) for a, b in zip(images, reference)]).median())


def saved_rows(resume: bool) -> dict[str, Row]:
    """Load the results of an interrupted benchmark run; without `resume`, delete them and return none."""
    file = OUT / "rows.jsonl"
    if not resume:
        file.unlink(missing_ok=True)
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = {}
    for fields in map(json.loads, lines):
        entry = fields["entry"]
        entry["setting"] = entry["setting"] and Setting.of(entry["setting"])
        fields["entry"] = Entry(**entry)
        fields["measures"] = {
            k: Measured(value, torch.tensor(resamples, dtype=torch.float64))
            for k, (value, resamples) in fields["measures"].items()
        }
        row = Row(**fields)
        rows[row.entry.key] = row
    return rows


def save_row(row: Row) -> None:
    """Append a result to bench/out/rows.jsonl, so that an interrupted run can be resumed."""
    fields = dict(vars(row))
    fields["entry"] = vars(row.entry) | {"setting": row.entry.setting and row.entry.setting.as_dict()}
    fields["measures"] = {k: (m.value, m.resampled.tolist()) for k, m in row.measures.items()}
    with open(OUT / "rows.jsonl", "a") as file:
        file.write(json.dumps(fields) + "\n")


def measured(plan: Plan, workers: Workers, title: str, wanted: list[Entry], old: dict[str, Row]) -> list[Row]:
    """Return the results of all `wanted` measurements: from `old` if it has them, otherwise measured now."""
    rows = [old[e.key] for e in wanted if e.key in old]
    jobs = [(plan, e) for e in wanted if e.key not in old]
    for _, row in workers.each(title, measure, jobs, work=lambda job: job[1].work):
        save_row(row)
        rows.append(row)
    return rows


def others(rows: list[Row], nfe: int, guidance: float) -> list[Row]:
    """Return the results of ComfyUI's samplers at one NFE and guidance."""
    return [r for r in rows if not r.entry.file and (r.nfe, r.entry.guidance) == (nfe, guidance)]


def best_others(rows: list[Row], nfe: int, guidance: float) -> dict[str, Row]:
    """Return, for each measure, the result of the best ComfyUI sampler at one NFE and guidance."""
    cell_rows = others(rows, nfe, guidance)
    return {name: min(cell_rows, key=lambda r: r.measures[name].value) for name in MEASURES}


def nearest(rows: list[Row], nfe: int, guidance: float, count: int = 3) -> list[Row]:
    """Return the results of the `count` best ComfyUI samplers at one NFE and guidance.

    First the one with the lowest error, then the one with the lowest Fréchet distance, then those with the
    lowest error times the square root of that distance."""
    best = best_others(rows, nfe, guidance)

    def score(row: Row) -> float:
        return row.measures["rmse_ref"].value * max(row.measures["fd_ref"].value, 0.0) ** 0.5

    ranked = [best["rmse_ref"], best["fd_ref"], *sorted(others(rows, nfe, guidance), key=score)]
    return list({row.entry.key: row for row in ranked}.values())[:count]


def second_pass(plan: Plan, rows: list[Row]) -> list[Entry]:
    """Return the measurements to repeat on more noises (`plan.many`).

    They are those of the calibrated AMED solvers and of the best ComfyUI samplers at each NFE."""
    wanted = []
    for guidance, count in plan.many.items():
        for nfe in plan.nfes:
            cell_rows = [r for r in rows if (r.entry.cell, r.entry.guidance) == (nfe, guidance)]
            ours = [r for r in cell_rows if r.predictor.startswith(CALIBRATED)]
            wanted += [replace(r.entry, count=count) for r in [*ours, *nearest(rows, nfe, guidance)]]
    return wanted


@dataclass
class Results:
    """All results of a run of the benchmark."""

    references: list[dict[str, Any]]  # the reference's row for each guidance, and that of the flow form
    rows: list[Row]
    many: list[Row]  # measured again on `plan.many` noises
    flow: list[Row]  # the model in flow form

    @property
    def large(self) -> list[Row]:
        """The results on many noises, or those on few if nothing was measured on many."""
        return self.many or self.rows


def quality(plan: Plan, resume: bool = False) -> Results:
    """Make all measurements of a benchmark plan; with `resume`, continue an interrupted run."""
    OUT.mkdir(exist_ok=True)
    plan_file = OUT / "plan.txt"
    if resume and not (plan_file.is_file() and plan_file.read_text() == repr(plan)):
        print("  nothing to resume: the earlier run had another plan", flush=True)
        resume = False
    plan_file.write_text(repr(plan))
    old = saved_rows(resume)
    with Workers(plan.workers) as workers:
        reference_rows = [references(plan, workers, guidance, resume) for guidance in plan.noises]
        rows = measured(plan, workers, "solvers", entries(plan), old)
        many = measured(plan, workers, "many noises", second_pass(plan, rows), old)
        flow_rows = []
        if plan.flow:
            reference_rows.append(references(plan, workers, 1.0, resume, flow=True) | {"form": "flow"})
            flow_rows = measured(plan, workers, "flow form", flow_entries(plan), old)
    return Results(reference_rows, rows, many, flow_rows)
