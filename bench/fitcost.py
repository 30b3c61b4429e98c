"""Measure how the quality of a fit grows with its cost: `python -m bench.fitcost` (about 20 minutes).

NFE 5 without guidance: calibrations with several budgets, Algorithm 1 on several numbers of images, and
greedy tables on several numbers of noises, all measured on noises that nothing else uses. The rows are saved
in docs/fit_cost.json."""

import argparse
import json
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from amed import Solver, schedules
from amed.fit.greedy import greedy_table
from amed.fit.measures import Counter, Statistics, frechet, rmse, run
from amed.fit.settings import smallest_budget
from demo import model as demo
from demo.target import target

from . import plots
from .cost import Learned, calibrated, trained
from .plan import OUT, rounded
from .problem import Problem
from .report import ROOT, listed
from .search import reference_plan
from .workers import Workers

NFE, NOISES, SEED, PART = 5, 256, 4242, 32
FILE = OUT / "fitcost-reference.safetensors"
BUDGETS = (smallest_budget(NFE), 2500, 5000, 12000, 40000)
IMAGES = (32, 128, 512, 1600)
SAMPLES = (2, 8, 32, 128)
PASSES_AN_IMAGE = 25  # of Algorithm 1, roughly; only used to order the jobs


@cache
def problem(count: int) -> Problem:
    """Return the demo model without guidance, with `count` noises to measure fitted solvers on."""
    return Problem(1.0, count, SEED)


def reference(count: int, start: int, stop: int) -> Tensor:
    """Return the reference images, sampled in 60 evaluations, of the noises from `start` to `stop`."""
    part, plan = problem(count).part(start, stop), reference_plan(60)
    return run(part.guided, part.noise, plan.sigmas(), plan.solver, part.args)[0]


def greedy(samples: int) -> Learned:
    """Fit AMED-Solver's constants on `samples` noises, one interval between noise levels after the other."""
    fit_target, solver = target(1.0), Solver("amed")
    base = schedules.make("time_uniform", (NFE + 1) // 2 + 1, demo.SIGMA_MIN, demo.SIGMA_MAX, 1.0)
    noise, args = fit_target.draw(torch.Generator().manual_seed(SEED + 1), samples)
    counter = Counter(fit_target.model)
    table = greedy_table(counter, solver, base, noise, args, True)
    return Learned(table, base, solver, True, counter.rows)


def fitted(kind: str, size: int) -> Learned:
    """Fit AMED to the demo model: by calibration, by Algorithm 1 of the AMED paper, or by a greedy fit.

    `size` is the budget of a calibration in evaluations, the number of training images of Algorithm 1, or the
    number of noises of the greedy fit, which fits one interval after the other."""
    if kind == "calibration":
        return calibrated(target(1.0), NFE, size)
    return trained(target(1.0), NFE, size) if kind == "Algorithm 1" else greedy(size)


def measure(kind: str, size: int, count: int) -> dict[str, Any]:
    """Run one fit and measure the images sampled with it; return its entry of docs/fit_cost.json."""
    problem_set, reference_images, learned = problem(count), load_file(FILE)["images"], fitted(kind, size)
    ends, features = learned.ends(problem_set), problem_set.target.features
    distance = frechet(Statistics.of(features(ends)), Statistics.of(features(reference_images)))
    line = {"fit": kind, "size": size, "passes": learned.passes, "nfe": NFE, "noises": count}
    return line | {"rmse_ref": rounded(rmse(ends, reference_images)), "fd_ref": rounded(distance)}


def work(job: tuple[str, int, int]) -> float:
    """Estimate the network passes of a fit; the fits with the most are started first."""
    kind, size, _ = job
    return size * {"calibration": 1, "Algorithm 1": PASSES_AN_IMAGE, "greedy table": 52}[kind]


def fit_costs(jobs: list[tuple[str, int]], count: int, processes: int) -> list[dict[str, Any]]:
    """Run each fit in `jobs` and measure it on `count` noises; return a result for each, in the same order.

    A job is (kind of fit, size): the budget of a calibration in evaluations, the number of training images of
    Algorithm 1, or the number of noises of the greedy fit."""
    OUT.mkdir(exist_ok=True)
    with Workers(processes) as workers:
        parts = [(count, start, min(start + PART, count)) for start in range(0, count, PART)]
        images = dict(workers.each("reference", reference, parts))
        save_file({"images": torch.cat([images[part] for part in parts])}, FILE)
        rows = {}
        for job, row in workers.each("fits", measure, [(*job, count) for job in jobs], work=work):
            rows[job[:2]] = row
            print(" ", json.dumps(row), flush=True)
    return [rows[job] for job in jobs]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fitcost", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    jobs = [("calibration", budget) for budget in BUDGETS]
    jobs += [("Algorithm 1", images) for images in IMAGES]
    jobs += [("greedy table", samples) for samples in SAMPLES]
    rows = fit_costs(jobs, NOISES, args.processes)
    (ROOT / "docs" / "fit_cost.json").write_text(listed(rows))
    plots.fit_cost(rows, ROOT / "docs" / "bench" / "fit-cost.png")


if __name__ == "__main__":
    main()
