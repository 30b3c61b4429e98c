"""AMED-Plugin from outside around ComfyUI's own samplers: `python -m bench.samplers` (some 20 minutes).

Each sampler at 5 and 8 evaluations (heun: 5 and 7), guidance 1 and 4: as its users have it, on karras; on the
best of fourteen schedules, searched on other noises; with constants fitted by a quick calibration, seed 0,
once. Error and FD to the reference on noises that nothing else uses; kept in docs/samplers.json."""

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
from amed.fit.measures import Statistics, frechet, rmse, run
from amed.fit.outer import with_zero
from amed.fit.outside import OuterCalibration
from amed.fit.plain import SCHEDULES
from amed.outside import Wrapped
from demo.target import target

from . import host
from .plan import OUT, rounded
from .problem import SIGMA_MAX, SIGMA_MIN, Problem
from .report import ROOT
from .search import reference_plan
from .workers import Workers

SAMPLERS = ("dpmpp_2m", "uni_pc", "deis", "res_multistep", "gradient_estimation", "heun", "euler", "lms")
NFES, GUIDANCES = (5, 8), (1.0, 4.0)
NOISES, SEARCHED, SEED, OTHERS, PART = 256, 32, 4343, 4344, 32
FILE = ROOT / "docs" / "samplers.json"
DTYPE = torch.bfloat16


def sampler_of(name: str) -> HostSampler:
    """ComfyUI's sampler of a name, around any denoiser."""
    function = host.modules().samplers.sampler_object(name).sampler_function

    def sample(model: Any, x: Tensor, sigmas: Tensor, args: dict[str, Any]) -> Tensor:
        own = host.HostModel(model, afs=False)
        return function(own, x, sigmas.to(x).clone(), extra_args=dict(args), disable=True)

    return HostSampler(name, sample)


@cache
def problem(guidance: float, seed: int) -> Problem:
    return Problem(guidance, NOISES if seed == SEED else SEARCHED, seed, DTYPE)


def reference(guidance: float, seed: int, start: int, stop: int) -> Tensor:
    part, plan = problem(guidance, seed).part(start, stop), reference_plan(60)
    return run(part.guided, part.noise, plan.sigmas(), plan.solver, part.args)[0]


def file_of(guidance: float, seed: int) -> Any:
    return OUT / f"samplers-reference-{guidance:g}-{seed}.safetensors"


def lists(sampler: HostSampler, nfe: int) -> dict[str, Tensor]:
    """The schedules, float64 `[n + 1]` with their 0, of as many evaluations as the sampler can take up to
    `nfe`; karras first."""
    own, noise = host.HostModel(lambda x, sigma, **args: x, afs=False), torch.zeros(1, 3, 8, 8)

    def calls(sigmas: Tensor) -> int:
        return len(sampler.calls(noise, sigmas, own))

    steps = max(n for n in range(2, nfe + 1) if calls(karras(n)) <= nfe)
    made = {kind: host.schedule(kind, steps, SIGMA_MIN, SIGMA_MAX).double() for kind in host.HOST_SCHEDULES}
    for kind, rho in SCHEDULES:
        for longer in (0, 1):
            times = schedules.make(kind, steps + longer, SIGMA_MIN, SIGMA_MAX, rho)[:steps]
            made[f"{kind} {rho:g}{', no last level' * longer}"] = with_zero(times)
    count = calls(made["karras"])
    return {name: sigmas for name, sigmas in made.items() if calls(sigmas) == count}


def karras(steps: int) -> Tensor:
    return host.schedule("karras", steps, SIGMA_MIN, SIGMA_MAX).double()


def ends(sampler: HostSampler, on: Problem, sigmas: Tensor, fitted: Any = None) -> tuple[Tensor, int]:
    """Images, and evaluations counted."""

    def sample(model: Any, noise: Tensor, args: dict[str, Any]) -> Tensor:
        seen = model if fitted is None else Wrapped(model, fitted.at)
        return sampler.run(seen, noise * float(sigmas[0]), sigmas, args)

    with torch.no_grad():
        made = on.run(sample)
    return made.images, made.nfe


def measure(name: str, nfe: int, guidance: float) -> dict[str, Any]:
    """One row of docs/samplers.json."""
    sampler, small, whole = sampler_of(name), problem(guidance, OTHERS), problem(guidance, SEED)
    near, wanted = (load_file(file_of(guidance, seed))["images"] for seed in (OTHERS, SEED))
    offered = lists(sampler, nfe)
    errors = {k: rmse(ends(sampler, small, sigmas)[0], near) for k, sigmas in offered.items()}
    best = min(errors, key=lambda k: errors[k])
    own = replace(target(guidance, dtype=DTYPE), features=None)
    settings = Settings(nfe, budget=budget_of("quick", nfe), guidance=guidance)
    calibration, begin = OuterCalibration(own, settings, sampler), time.process_time()
    for _ in calibration.run():
        pass
    seconds, result = time.process_time() - begin, calibration.result()
    outside = result.fitted.predictor
    row: dict[str, Any] = {"sampler": name, "guidance": guidance, "noises": NOISES, "schedule": best}
    row |= {"fit_evaluations": calibration.evaluations, "improved": result.improved}
    row |= {"fit_seconds": rounded(seconds)}  # of a processor: one thread
    runs = {"karras": (offered["karras"], None), "best": (offered[best], None)}
    runs["amed"] = (with_zero(result.fitted.sigmas()), outside)
    features = whole.target.features
    for label, (sigmas, constants) in runs.items():
        images, counted = ends(sampler, whole, sigmas, constants)
        distance = frechet(Statistics.of(features(images)), Statistics.of(features(wanted)))
        row |= {
            "nfe": counted,
            f"rmse_{label}": rounded(rmse(images, wanted)),
            f"fd_{label}": rounded(distance),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.samplers", description=__doc__.splitlines()[0])
    parser.add_argument("--match", default="", help="only this sampler")
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    sets = [(g, seed) for g in GUIDANCES for seed in (SEED, OTHERS) if not file_of(g, seed).is_file()]
    with Workers(2) as workers:
        parts = [(g, seed, s, s + PART) for g, seed in sets
                 for s in range(0, NOISES if seed == SEED else SEARCHED, PART)]  # fmt: skip
        images = dict(workers.each("references", reference, parts))
        for g, seed in sets:
            made = [images[job] for job in parts if job[:2] == (g, seed)]
            save_file({"images": torch.cat(made)}, file_of(g, seed))
        jobs = [(name, nfe, g) for g in GUIDANCES for nfe in NFES for name in SAMPLERS if args.match in name]
        rows = dict(workers.each("samplers", measure, jobs, work=lambda job: job[1] * (1 + (job[2] != 1))))
    for row in (rows[job] for job in jobs):
        print(json.dumps(row), flush=True)
    if not args.match:
        FILE.write_text(json.dumps([rows[job] for job in jobs], indent=1) + "\n")


if __name__ == "__main__":
    main()
