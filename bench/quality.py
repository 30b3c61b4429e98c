"""Quality: every solver at its best settings and every predictor, on the same noises, against a converged
reference.

Work is done by one process a core, one thread each. Every finished row is kept in bench/out, so that a run
that was stopped goes on with `--resume`."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from amed import Fitted, load, sample
from amed.fingerprint import fingerprint
from amed.fit.measures import rmse, run
from amed.recipes import MULTISTEP
from demo import model as demo

from .measures import RESAMPLES, Measured, Ruler
from .opponents import Grids, Setting
from .problem import Ends, Problem
from .search import SETTINGS, reference_plan

ROOT = Path(__file__).parent
OUT = ROOT / "out"
FOLDERS = (ROOT.parent / "predictors", ROOT / "predictors")
CALIBRATED = "calibrated table"
MEASURES = ("rmse_ref", "fd_ref", "fd_data", "swd", "fd_ref_unet")
SHOWN, SHOWN_NFES = 8, (3, 5, 7)
CHUNK = 32


@dataclass(frozen=True)
class Plan:
    """What is measured: noises at each guidance scale (the first of `seed`), evaluations, the same again on
    `many` noises for the calibrated table and its best opponents (`many_nfes`, guidance 1), and how many
    noises prove that the reference has converged."""

    noises: dict[float, int] = field(default_factory=lambda: {1.0: 128, 2.0: 64, 4.0: 64}, hash=False)
    nfes: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10)
    many: int = 1000
    many_nfes: tuple[int, ...] = (5, 7, 9)
    converged: int = 32
    resamples: int = RESAMPLES
    dtype: str = "bfloat16"
    seed: int = 7
    workers: int = os.cpu_count() or 1


QUICK = Plan({1.0: 24, 4.0: 12}, (3, 5, 7), 0, (), 4, 20)


@dataclass(frozen=True)
class Entry:
    """One row to measure: another solver's setting, or a predictor's file."""

    nfe: int
    guidance: float
    count: int
    setting: Setting | None = None
    file: str = ""

    @property
    def key(self) -> str:
        which = Path(self.file).stem if self.file else json.dumps(self.setting.as_dict(), sort_keys=True)
        return f"{which} nfe {self.nfe} cfg {self.guidance:g} n {self.count}"

    @property
    def work(self) -> float:
        return self.nfe * self.count * (1 if self.guidance == 1 else 2)


@dataclass
class Row:
    """What was measured of an entry."""

    entry: Entry
    solver: str
    schedule: str
    predictor: str
    nfe: int
    passes: int
    measures: dict[str, Measured]

    def as_dict(self) -> dict[str, Any]:
        """The row of docs/results.json."""
        row = {
            "solver": self.solver,
            "schedule": self.schedule,
            "predictor": self.predictor,
            "nfe": self.nfe,
            "passes": self.passes,
            "guidance": self.entry.guidance,
            "noises": self.entry.count,
        }
        for name, measured in self.measures.items():
            row[name] = rounded(measured.value)
            if len(measured.resampled):
                row[f"{name}_interval"] = [rounded(v) for v in measured.interval]
        return row


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


PLUGINS = {
    "ipndm": "iPNDM",
    "dpmpp": "DPM++",
    "euler": "Euler",
    "dpm_2": "DPM-Solver-2",
    "unipc": "UniPC",
    "deis": "DEIS",
}


def label(fitted: Fitted) -> tuple[str, str]:
    """A file's solver and kind of predictor, for people."""
    spec = fitted.spec
    if spec.solver == MULTISTEP:
        return "AMED multistep", CALIBRATED
    order = f"-{spec.max_order}" if spec.max_order > 1 else ""
    name = "AMED-Solver" if spec.solver == "amed" else f"AMED-Plugin on {PLUGINS[spec.solver]}{order}"
    return name, "MLP" if fitted.wants_bottleneck else "greedy table"


@cache
def predictors() -> tuple[tuple[str, int, float], ...]:
    """(file, evaluations, guidance) of every predictor of the demo model; what learned nothing is none."""
    own = fingerprint(demo.load_unet().named_parameters(prefix="inner_model"))
    files = sorted(p for folder in FOLDERS for p in folder.glob("*.safetensors"))
    specs = {str(path): load(path).spec for path in files}
    return tuple(
        (file, spec.nfe, spec.guidance)
        for file, spec in specs.items()
        if spec.model_fingerprint == own and spec.learned
    )


def settings(nfe: int, guidance: float) -> tuple[list[Setting], Grids]:
    """What bench/settings.json has for these evaluations, and the guidance's searched grids."""
    known = json.loads(SETTINGS.read_text())
    grids = {int(n): torch.tensor(g, dtype=torch.float64) for n, g in known[f"grids {guidance:g}"].items()}
    return [Setting.of(setting) for setting in known[f"{nfe} {guidance:g}"]], grids


def entries(plan: Plan) -> list[Entry]:
    wanted = []
    for guidance, count in plan.noises.items():
        for nfe in plan.nfes:
            wanted += [Entry(nfe, guidance, count, setting) for setting in settings(nfe, guidance)[0]]
            wanted += [
                Entry(nfe, guidance, count, file=f) for f, n, g in predictors() if (n, g) == (nfe, guidance)
            ]
    return wanted


# In a worker


@cache
def problem(guidance: float, count: int, seed: int, dtype: str) -> Problem:
    return Problem(guidance, count, seed, getattr(torch, dtype))


@cache
def ruler(guidance: float, count: int, plan_seed: int, dtype: str, resamples: int, total: int) -> Ruler:
    images = load_file(OUT / f"reference-cfg{guidance:g}.safetensors")["images"]
    return Ruler(images[:count], problem(guidance, total, plan_seed, dtype).denoiser, resamples)


def total(plan: Plan) -> int:
    return max(plan.many, *plan.noises.values())


def reference(plan: Plan, guidance: float, evaluations: int, start: int, stop: int) -> Tensor:
    """The reference images of some noises."""
    part = problem(guidance, total(plan), plan.seed, plan.dtype).part(start, stop)
    setting = reference_plan(evaluations)
    return run(part.guided, part.noise, setting.sigmas(), setting.solver, part.args)[0]


def run_file(noises: Problem, file: str) -> tuple[Ends, Fitted]:
    """A predictor's own run, on its own schedule."""
    fitted = load(Path(file))
    spec, sigmas = fitted.spec, fitted.sigmas()
    # a remembered evaluation has no bottleneck and no halves to give
    noises.model.remembers = not (fitted.wants_bottleneck or spec.parts)

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
        return noises.run(sampler), fitted
    finally:
        noises.model.remembers = True


def measure(plan: Plan, entry: Entry) -> Row:
    """Run one entry and measure it. Raises RuntimeError if it took other evaluations than it is entered
    under."""
    noises = problem(entry.guidance, total(plan), plan.seed, plan.dtype).first(entry.count)
    before = noises.model.passes
    if entry.setting is not None:
        ends = entry.setting.run(noises, settings(entry.nfe, entry.guidance)[1])
        solver, schedule, predictor = entry.setting.variant.name, entry.setting.schedule_name, ""
    else:
        ends, fitted = run_file(noises, entry.file)
        solver, predictor = label(fitted)
        spec = fitted.spec
        schedule = "fitted" if spec.schedule == "custom" else f"{spec.schedule} {spec.rho:g}"
        schedule += " + AFS" * spec.afs
    if ends.nfe != entry.nfe:
        raise RuntimeError(f"{entry.key} took {ends.nfe} evaluations")
    each = (noises.model.passes - before) // entry.count
    measures = ruler(entry.guidance, entry.count, plan.seed, plan.dtype, plan.resamples, total(plan))
    figures = measures.measure(ends.images.nan_to_num(0.0))
    row = Row(entry, solver, schedule, predictor, ends.nfe, each, figures)
    if entry.nfe in SHOWN_NFES and entry.count != plan.many:
        strip(
            ends.images[:SHOWN], OUT / "strips" / f"{row.entry.guidance:g}-{row.nfe}-{solver}-{predictor}.png"
        )
    return row


def strip(images: Tensor, file: Path) -> None:
    """Images side by side in one PNG."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(2, 0, 3, 1).flatten(1, 2).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(file)


# In the main process


def start_worker() -> None:
    torch.set_num_threads(1)


class Workers:
    """A pool; `each(function, jobs)` yields (job, result) as they come and prints how far it is."""

    def __init__(self, count: int):
        self.pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=start_worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def each(
        self,
        what: str,
        function: Callable,
        jobs: Iterable[tuple],
        work: Callable[[tuple], float] = lambda job: 1.0,
    ) -> Iterator[tuple[tuple, Any]]:
        jobs = sorted(jobs, key=work, reverse=True)
        whole, done, begin, shown = sum(map(work, jobs)), 0.0, time.perf_counter(), 0.0
        waiting = {self.pool.submit(function, *job): job for job in jobs}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                yield job, future.result()
                done += work(job)
            if (now := time.perf_counter()) - shown > 20 or not waiting:
                shown, took = now, now - begin
                left = took * (whole / done - 1)
                print(f"  {what}: {done / whole:4.0%}, {took / 60:.1f} min, {left / 60:.1f} left", flush=True)


def references(plan: Plan, workers: Workers, guidance: float, resume: bool) -> dict[str, Any]:
    """Write the reference's images to bench/out, and prove it: its distance to one of twice the
    evaluations."""
    file = OUT / f"reference-cfg{guidance:g}.safetensors"
    count = max(plan.noises[guidance], plan.many if guidance == 1 else 0)
    if not (resume and file.is_file()):
        jobs = [
            (plan, guidance, evaluations, start, min(start + CHUNK, noises))
            for evaluations, noises in ((100, count), (200, plan.converged))
            for start in range(0, noises, CHUNK)
        ]
        what = f"reference, 100 and 200 evaluations, guidance {guidance:g}"
        parts = dict(workers.each(what, reference, jobs, work=lambda job: job[2] * (job[4] - job[3])))
        images = {n: torch.cat([parts[job] for job in jobs if job[2] == n]) for n in (100, 200)}
        save_file({"images": images[100], "twice": images[200]}, file)
    images, twice = (load_file(file)[name] for name in ("images", "twice"))
    first = images[: len(twice)]
    strip(images[:SHOWN], OUT / "strips" / f"{guidance:g}-reference.png")
    whole = problem(guidance, total(plan), plan.seed, plan.dtype)
    proof = Ruler(twice, whole.denoiser, plan.resamples).measure(first)
    shown = images[: plan.noises[guidance]]
    own = Ruler(shown, whole.denoiser, plan.resamples).measure(shown)
    row = {
        "solver": "reference",
        "schedule": "polynomial 7",
        "predictor": "",
        "nfe": 100,
        "guidance": guidance,
    }
    row |= {"noises": len(shown), "rmse_ref": 0.0, "fd_ref": 0.0, "swd": 0.0}
    row |= {"fd_data": rounded(own["fd_data"].value)}
    row |= {"fd_data_interval": [rounded(v) for v in own["fd_data"].interval]}
    row |= {"to_200_evaluations": {k: rounded(proof[k].value) for k in ("rmse_ref", "fd_ref", "swd")}}
    row["to_200_evaluations"] |= {"noises": len(twice), "median": rounded(median(first, twice))}
    if len(images) > len(shown):
        row["fd_data_many"] = rounded(Ruler(images, whole.denoiser, 0).measure(images)["fd_data"].value)
    return row


def own_distances(plan: Plan) -> tuple[dict[float, Measured], dict[float, Measured]]:
    """The reference's own Frechet distance to the data by guidance, with its resamples: on the noises of
    the rows, and without guidance on `plan.many`."""
    own, many = {}, {}
    for guidance, count in plan.noises.items():
        images = load_file(OUT / f"reference-cfg{guidance:g}.safetensors")["images"]
        denoiser = problem(guidance, total(plan), plan.seed, plan.dtype).denoiser
        own[guidance] = Ruler(images[:count], denoiser, plan.resamples).measure(images[:count])["fd_data"]
        if guidance == 1 and plan.many:
            many[guidance] = Ruler(images, denoiser, plan.resamples).measure(images)["fd_data"]
    return own, many


def median(images: Tensor, reference: Tensor) -> float:
    """The median noise's error."""
    return float(torch.tensor([rmse(a, b) for a, b in zip(images, reference)]).median())


def kept(resume: bool) -> dict[str, Row]:
    """Rows of an earlier run that was stopped."""
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
            k: Measured(value, torch.tensor(again, dtype=torch.float64))
            for k, (value, again) in fields["measures"].items()
        }
        row = Row(**fields)
        rows[row.entry.key] = row
    return rows


def keep(row: Row) -> None:
    fields = dict(vars(row))
    fields["entry"] = vars(row.entry) | {"setting": row.entry.setting and row.entry.setting.as_dict()}
    fields["measures"] = {k: (m.value, m.resampled.tolist()) for k, m in row.measures.items()}
    with open(OUT / "rows.jsonl", "a") as file:
        file.write(json.dumps(fields) + "\n")


def measured(plan: Plan, workers: Workers, what: str, wanted: list[Entry], old: dict[str, Row]) -> list[Row]:
    """Rows of these entries; those in `old` are not measured again."""
    rows = [old[e.key] for e in wanted if e.key in old]
    jobs = [(plan, e) for e in wanted if e.key not in old]
    for _, row in workers.each(what, measure, jobs, work=lambda job: job[1].work):
        keep(row)
        rows.append(row)
    return rows


def best_others(rows: list[Row], nfe: int, guidance: float) -> dict[str, Row]:
    """For each measure the other solver's row that is best in it."""
    others = [r for r in rows if not r.entry.file and (r.nfe, r.entry.guidance) == (nfe, guidance)]
    return {name: min(others, key=lambda r: r.measures[name].value) for name in MEASURES}


def again(plan: Plan, rows: list[Row]) -> list[Entry]:
    """The calibrated table and the best other solvers without guidance, on `plan.many` noises."""
    wanted = []
    for nfe in plan.many_nfes:
        best = best_others(rows, nfe, 1.0)
        chosen = {best[name].entry.key: best[name] for name in ("rmse_ref", "fd_ref")}
        ours = [r for r in rows if (r.nfe, r.entry.guidance) == (nfe, 1.0) and r.predictor == CALIBRATED]
        for row in [*ours, *chosen.values()]:
            wanted.append(Entry(nfe, 1.0, plan.many, row.entry.setting, row.entry.file))
    return wanted


def quality(plan: Plan, resume: bool = False) -> tuple[list[dict], list[Row], list[Row]]:
    """The reference's rows, all rows, and the rows on many noises."""
    OUT.mkdir(exist_ok=True)
    ran = OUT / "plan.txt"
    if resume and not (ran.is_file() and ran.read_text() == repr(plan)):
        print("  nothing to resume: the run before was not this one", flush=True)
        resume = False
    ran.write_text(repr(plan))
    old = kept(resume)
    with Workers(plan.workers) as workers:
        proofs = [references(plan, workers, guidance, resume) for guidance in plan.noises]
        rows = measured(plan, workers, "solvers", entries(plan), old)
        many = measured(plan, workers, f"{plan.many} noises", again(plan, rows), old) if plan.many else []
    return proofs, rows, many
