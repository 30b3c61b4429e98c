"""Find the best settings of every other solver: `make bench-search` (about an hour).

They are saved in bench/settings.json. The noises are not those of the benchmark, and the network runs in
bfloat16, because this only ranks. For each NFE and guidance, every setting is ranked by its error on 4
noises; the best 4 of each solver are run on 28 noises, and each solver keeps the one with the lowest error
and the one with the lowest error times the root of the Fréchet distance, often the same one. With `--flow`
the model is in flow form, and each solver keeps the setting with the lowest error on 16 noises."""

import argparse
import json
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from amed import Solver
from amed.evaluate import Guided
from amed.fit.measures import Statistics, frechet, rmse, run
from amed.fit.plain_solvers import Setting as Plain
from amed.fit.samples import Path
from amed.loop import Problem as Run
from amed.run import states
from demo.features import Features
from demo.fit import remember

from . import flow, host
from .opponents import GRID, Grids, Setting, candidates, flow_candidates, searched_grids
from .problem import SIGMA_MAX, SIGMA_MIN, Problem

SETTINGS = File(__file__).parent / "settings.json"
NFES, GUIDANCES = (3, 4, 5, 6, 7, 8, 9, 10), (1.0, 2.0, 4.0)
SEED, FEW, MANY, BEST = 100, 4, 28, 4  # noises of the first and of the second ranking; settings that reach it
FLOW = 16  # noises of the flow form


def reference_plan(evaluations: int) -> Plain:
    """Return how reference images are sampled: iPNDM-4, polynomial schedule, one evaluation per step."""
    return Plain(Solver("ipndm", 4), "polynomial", 7.0, evaluations + 1, False, SIGMA_MIN, SIGMA_MAX)


@torch.no_grad()
def path_of(problem: Problem, plan: Plain) -> Path:
    """Sample the noises of `problem` with the solver and schedule of `plan`; return x at each noise level."""
    sigmas = plan.sigmas()
    x = problem.noise * sigmas[0].float()
    run = states(Run(problem.guided, problem.args), plan.solver, x, sigmas, afs=plan.afs)
    return Path(sigmas, (x, *(state.x for state in run)))


def reference_path(problem: Problem, evaluations: int = GRID - 1) -> Path:
    """Sample from a benchmark problem's noises with the reference solver; return x at each noise level."""
    return path_of(problem, reference_plan(evaluations))


def ranked(problem: Problem, reference: Tensor, grids: Grids, nfe: int, features: Features) -> list[Setting]:
    """Return the best one or two settings (schedule, steps, order) of each ComfyUI sampler.

    All settings are run on a few noises, and each sampler's 4 of lowest error on all noises. Of these, the
    one with the lowest error is returned, and the one with the lowest error times the square root of the
    Fréchet distance."""
    few, reference_statistics = problem.first(FEW), Statistics.of(features(reference))
    errors = []
    for setting in candidates(nfe):
        error = rmse(setting.run(few, grids, FEW).images, reference[:FEW])
        errors.append((error if error == error else float("inf"), setting))
    chosen = []
    for solver in host.SOLVERS:
        best = sorted((e for e in errors if e[1].variant.solver == solver), key=lambda e: e[0])[:BEST]
        scores = []
        for _, setting in best:
            images = setting.run(problem, grids, MANY).images.nan_to_num(0.0)
            error = rmse(images, reference)
            distance = max(frechet(Statistics.of(features(images)), reference_statistics), 0.0)
            scores.append((error, error * distance**0.5, setting))
        chosen += dict.fromkeys(min(scores, key=lambda s, i=i: s[i])[2] for i in (0, 1)) if scores else []
    return chosen


def flow_reference(problem: Problem, evaluations: int = 100) -> Tensor:
    """Sample the reference images of a flow-model problem, with the demo model in its original sigma form."""
    model, plan = Guided(problem.denoiser, 1.0), reference_plan(evaluations)
    first = model(problem.noise * SIGMA_MAX, torch.full((problem.count,), SIGMA_MAX), **problem.args)
    return run(model, problem.noise + first / SIGMA_MAX, plan.sigmas(), plan.solver, problem.args)[0]


def flow_settings(nfe: int) -> list[Setting]:
    """Return the best setting of each ComfyUI sampler for the flow model; search any that is not saved."""
    key = f"flow {nfe}"
    if key not in json.loads(SETTINGS.read_text()):
        problem = Problem(1.0, FLOW, SEED, torch.bfloat16, flow=True)
        reference, best = flow_reference(problem), {}
        for setting in flow_candidates(nfe):
            error = rmse(setting.run(problem, {}, FLOW).images, reference)
            solver = setting.variant.solver
            if error < best.get(solver, (float("inf"),))[0]:
                best[solver] = error, setting
        save_setting(key, [setting.as_dict() for _, setting in best.values()])
    return [Setting.of(setting) for setting in json.loads(SETTINGS.read_text())[key]]


def save_setting(key: str, value: Any) -> None:
    """Save a value under a key of bench/settings.json, e.g. the best sampler settings at one NFE."""
    remember(SETTINGS, lambda old: old | {key: value})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", nargs="+", type=int, default=list(NFES))
    parser.add_argument("--guidance", nargs="+", type=float, default=list(GUIDANCES))
    parser.add_argument("--again", action="store_true", help="also search what was found already")
    parser.add_argument("--flow", action="store_true", help="only search for the model in flow form")
    args = parser.parse_args(argv)
    if args.flow:
        if args.again:
            remember(SETTINGS, lambda old: {k: v for k, v in old.items() if not k.startswith("flow ")})
        for nfe in flow.NFES:
            lines = (f"{s.variant.name}: {s.schedule}" for s in flow_settings(nfe))
            print(f"flow {nfe}", *lines, sep="\n  ", flush=True)
        return
    features = Features()
    for guidance in args.guidance:
        problem = Problem(guidance, MANY, SEED, torch.bfloat16)
        plan = reference_plan(100)
        reference = run(problem.guided, problem.noise, plan.sigmas(), plan.solver, problem.args)[0]
        grids = searched_grids(reference_path(problem.first(16)), max(NFES) + 1)
        save_setting(f"grids {guidance:g}", {n: g.tolist() for n, g in grids.items()})
        for nfe in args.nfe:
            key = f"{nfe} {guidance:g}"
            if key in json.loads(SETTINGS.read_text()) and not args.again:
                continue
            best = [setting.as_dict() for setting in ranked(problem, reference, grids, nfe, features)]
            save_setting(key, best)
            print(
                key,
                *(f"{s['solver']}: {s['schedule']}{' + AFS' * s['afs']}" for s in best),
                sep="\n  ",
                flush=True,
            )


if __name__ == "__main__":
    main()
