"""Fit tables for the paper's students: `python -m bench.tables` (a few minutes), saved in bench/predictors.

Each is fitted by amed.fit.greedy: interval by interval to a Heun teacher's states, by forward evaluations,
which is Algorithm 1's objective without its network. Of two schedules, the one with the lower error on 16
other noises is kept. AMED-Solver is fitted at every guidance, the plugins without guidance."""

from pathlib import Path

import torch

from amed import Fitted, Solver, save, schedules
from amed.fit.greedy import greedy_table
from amed.fit.measures import rmse, run
from demo import model as demo

from .problem import Problem
from .search import reference_plan

FOLDER = Path(__file__).parent / "predictors"
STUDENTS = {
    "amed": Solver("amed"),
    "euler": Solver("euler"),
    "dpm2": Solver("dpm_2"),
    "dpmpp2m": Solver("dpmpp", 2, predict_x0=True),
    "dpmpp3m": Solver("dpmpp", 3, predict_x0=True),
    "ipndm": Solver("ipndm", 3),
    "unipc": Solver("unipc", 3),
    "deis": Solver("deis", 3),
}
SCHEDULES = (("polynomial", 7.0), ("time_uniform", 1.0))
NFES, SEED, COUNT = (3, 5, 7, 9), 300, 32


def fit(problem: Problem, reference: torch.Tensor, solver: Solver, nfe: int, name: str) -> Fitted:
    """Fit a solver's AMED constants on two schedules; return the better fit.

    One half of the noises is used to fit, the other to compare the errors."""
    candidates, half = [], COUNT // 2
    steps = (nfe + 1) // 2 + 1
    first, rest = problem.part(0, half), problem.part(half, COUNT)
    for kind, rho in SCHEDULES:
        base = schedules.make(kind, steps, demo.SIGMA_MIN, demo.SIGMA_MAX, rho)
        table = greedy_table(problem.guided, solver, base, first.noise, first.args, True)
        options = {"predictor": table, "afs": True}
        ends, _ = run(problem.guided, rest.noise, base, solver, rest.args, **options)
        candidates.append((rmse(ends, reference[half:]), kind, rho, base, table))
    _, kind, rho, base, table = min(candidates, key=lambda t: t[0])
    spec = problem.target.spec(
        solver,
        base,
        problem.guidance,
        schedule=kind,
        rho=rho,
        afs=True,
        how=f"greedy, interval by interval against a Heun teacher, {half} noises, seed {SEED}",
    )
    return Fitted(spec, table, base, name)


def main() -> None:
    """Fit and save AMED constants for the demo model, for each solver and NFE that has no file yet."""
    FOLDER.mkdir(exist_ok=True)
    for guidance in (1.0, 2.0, 4.0):
        jobs = {
            FOLDER / f"emoji32-{student}-table-nfe{nfe}-cfg{guidance:g}.safetensors": (solver, nfe)
            for student, solver in STUDENTS.items()
            for nfe in NFES
            if student == "amed" or guidance == 1
        }
        jobs = {file: job for file, job in jobs.items() if not file.is_file()}
        if not jobs:
            continue
        problem = Problem(guidance, COUNT, SEED, torch.bfloat16)
        plan = reference_plan(60)
        reference = run(problem.guided, problem.noise, plan.sigmas(), plan.solver, problem.args)[0]
        for file, (solver, nfe) in jobs.items():
            save(file, fit(problem, reference, solver, nfe, file.stem))
            print(file.name, flush=True)


if __name__ == "__main__":
    main()
