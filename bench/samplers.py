"""Measure AMED-Plugin around ComfyUI's own samplers: `python -m bench.samplers` (about 20 minutes).

Each sampler is measured at 5 and 8 evaluations (heun: 5 and 7) and guidance 1 and 4: on karras, as people
usually set it; on the best of fourteen schedules, searched on other noises; and with constants fitted once by
a quick calibration with seed 0. Error and FD are to the reference, on noises that nothing else uses. The rows
are saved in docs/samplers.json."""

import argparse
import json
import time
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from amed import schedules
from amed.fit import HostSampler, Settings, budget_of
from amed.fit.host_calibration import HostCalibration
from amed.fit.host_sampler import with_zero
from amed.fit.measures import Statistics, frechet, rmse, run
from amed.fit.plain_solvers import SCHEDULES
from amed.outside import ScaledDenoiser
from demo.target import target

from . import host
from .plan import OUT, rounded
from .problem import SIGMA_MAX, SIGMA_MIN, Problem
from .report import ROOT
from .search import reference_plan
from .workers import Workers

SAMPLERS = ("dpmpp_2m", "uni_pc", "deis", "res_multistep", "gradient_estimation", "heun", "euler", "lms")
NFES, GUIDANCES = (5, 8), (1.0, 4.0)
NOISES, SEED = 256, 4343  # to measure on
SEARCHED, OTHERS = 32, 4344  # number and seed of the noises to search schedules on
PART = 32  # noises of one job
FILE = ROOT / "docs" / "samplers.json"
DTYPE = torch.bfloat16


def sampler_of(name: str) -> HostSampler:
    """Return a ComfyUI sampler by its name, in a form that can sample any denoiser."""
    function = host.modules().samplers.sampler_object(name).sampler_function

    def sample(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any]) -> Tensor:
        host_model = host.HostModel(model, afs=False)
        return function(host_model, x, sigmas.to(x).clone(), extra_args=dict(args), disable=True)

    return HostSampler(name, sample)


@cache
def problem(guidance: float, seed: int) -> Problem:
    """Return the demo model with the noises of a seed.

    With the seed SEED these are for measuring samplers, with another for searching the best schedule."""
    return Problem(guidance, NOISES if seed == SEED else SEARCHED, seed, DTYPE)


def reference(guidance: float, seed: int, start: int, stop: int) -> Tensor:
    """Return the reference images, sampled in 60 evaluations, of the noises from `start` to `stop`."""
    part, plan = problem(guidance, seed).part(start, stop), reference_plan(60)
    return run(part.guided, part.noise, plan.sigmas(), plan.solver, part.args)[0]


def file_of(guidance: float, seed: int) -> Any:
    """Return the file in bench/out with the reference images of a guidance scale and a seed."""
    return OUT / f"samplers-reference-{guidance:g}-{seed}.safetensors"


def schedules_of(sampler: HostSampler, nfe: int) -> dict[str, Tensor]:
    """Return the schedules to try with a sampler, {name: sigmas}, float64 `[n + 1]`, ending at 0.

    They are ComfyUI's and this pack's, karras first. Their length makes the sampler take `nfe` evaluations,
    or the next lower number that it can take."""
    zero_model, noise = host.HostModel(lambda x, sigma, **args: x, afs=False), torch.zeros(1, 3, 8, 8)

    def calls(sigmas: Tensor) -> int:
        return len(sampler.call_levels(noise, sigmas, zero_model))

    steps = max(n for n in range(2, nfe + 1) if calls(karras(n)) <= nfe)
    schedules_by_name = {
        kind: host.schedule(kind, steps, SIGMA_MIN, SIGMA_MAX).double() for kind in host.HOST_SCHEDULES
    }
    for kind, rho in SCHEDULES:
        for extra in (0, 1):
            times = schedules.make(kind, steps + extra, SIGMA_MIN, SIGMA_MAX, rho)[:steps]
            schedules_by_name[f"{kind} {rho:g}{', no last level' * extra}"] = with_zero(times)
    count = calls(schedules_by_name["karras"])
    return {name: sigmas for name, sigmas in schedules_by_name.items() if calls(sigmas) == count}


def karras(steps: int) -> Tensor:
    """Return ComfyUI's karras schedule of this many steps, float64 `[steps + 1]`."""
    return host.schedule("karras", steps, SIGMA_MIN, SIGMA_MAX).double()


def ends(
    sampler: HostSampler, problem_set: Problem, sigmas: Tensor, fitted: Any = None
) -> tuple[Tensor, int]:
    """Run a ComfyUI sampler, plain or with fitted AMED constants; return images and number of evaluations."""

    def sample(model: Any, noise: Tensor, args: dict[str, Any]) -> Tensor:
        denoiser = model if fitted is None else ScaledDenoiser(model, fitted.at)
        return sampler.run(denoiser, noise * float(sigmas[0]), sigmas, args)

    with torch.no_grad():
        run_ends = problem_set.run(sample)
    return run_ends.images, run_ends.nfe


def measure(name: str, nfe: int, guidance: float) -> dict[str, Any]:
    """Measure a ComfyUI sampler with and without AMED-Plugin; return its entry of docs/samplers.json."""
    sampler, search_problem, test_problem = (
        sampler_of(name),
        problem(guidance, OTHERS),
        problem(guidance, SEED),
    )
    search_reference, test_reference = (
        load_file(file_of(guidance, seed))["images"] for seed in (OTHERS, SEED)
    )
    sigmas_by_name = schedules_of(sampler, nfe)
    errors = {
        k: rmse(ends(sampler, search_problem, sigmas)[0], search_reference)
        for k, sigmas in sigmas_by_name.items()
    }
    best = min(errors, key=lambda k: errors[k])
    fit_target = replace(target(guidance, dtype=DTYPE), features=None)
    settings = Settings(nfe, budget=budget_of("quick", nfe), guidance=guidance)
    calibration, begin = HostCalibration(fit_target, settings, sampler), time.process_time()
    for _ in calibration.run():
        pass
    seconds, result = time.process_time() - begin, calibration.result()
    outside = result.fitted.predictor
    row: dict[str, Any] = {"sampler": name, "guidance": guidance, "noises": NOISES, "schedule": best}
    row |= {"fit_evaluations": calibration.evaluations, "improved": result.improved}
    row |= {"fit_seconds": rounded(seconds)}  # processor seconds on one thread
    runs = {"karras": (sigmas_by_name["karras"], None), "best": (sigmas_by_name[best], None)}
    runs["amed"] = (with_zero(result.fitted.sigmas()), outside)
    features = test_problem.target.features
    for label, (sigmas, constants) in runs.items():
        images, counted = ends(sampler, test_problem, sigmas, constants)
        distance = frechet(Statistics.of(features(images)), Statistics.of(features(test_reference)))
        row |= {
            "nfe": counted,
            f"rmse_{label}": rounded(rmse(images, test_reference)),
            f"fd_{label}": rounded(distance),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.samplers", description=__doc__.splitlines()[0])
    parser.add_argument("--match", default="", help="only samplers whose name contains this; saves nothing")
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    sets = [(g, seed) for g in GUIDANCES for seed in (SEED, OTHERS) if not file_of(g, seed).is_file()]
    with Workers(2) as workers:
        parts = [(g, seed, s, s + PART) for g, seed in sets
                 for s in range(0, NOISES if seed == SEED else SEARCHED, PART)]  # fmt: skip
        images = dict(workers.each("references", reference, parts))
        for g, seed in sets:
            set_parts = [images[job] for job in parts if job[:2] == (g, seed)]
            save_file({"images": torch.cat(set_parts)}, file_of(g, seed))
        jobs = [(name, nfe, g) for g in GUIDANCES for nfe in NFES for name in SAMPLERS if args.match in name]
        rows = dict(workers.each("samplers", measure, jobs, work=lambda job: job[1] * (1 + (job[2] != 1))))
    for row in (rows[job] for job in jobs):
        print(json.dumps(row), flush=True)
    if not args.match:
        FILE.write_text(json.dumps([rows[job] for job in jobs], indent=1) + "\n")


if __name__ == "__main__":
    main()
