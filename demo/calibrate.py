"""Calibrate the demo model and measure the result beside every plain solver at its best setting.

    python -m demo.calibrate                                 # NFE 3 5 7 9 x guidance 1 2 4, quick and normal
    python -m demo.calibrate --nfe 5 --guidance 1            # a part of it; rows of other parts are kept

The fit draws its own noise (the engine's default: errors decide, no feature distance); all rows are measured
on 256 other noises, in one run. Opponents: of every kind of plain solver the best of all its settings (five
schedules, with and without the analytic first step) by a search on 64 noises (`known` from an earlier run,
where there was one), and AMED-Solver and the plugins bundled for the same evaluations and guidance, which
`python -m demo.fit` trained by Algorithm 1. Rows go to predictors/calibrated.json, normal results that beat
every plain setting to predictors/."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from amed import load, save
from amed.fit import PRESETS, Job, Progress, Result, fit, plain

from . import model as demo
from .fit import CACHE, FOLDER, TITLES, Bench, kind, remember, search
from .target import NAME

ROWS = FOLDER / "calibrated.json"
EVERY = 15.0  # seconds between two lines of progress


def calibrated(bench: Bench, nfe: int, preset: str, seed: int) -> tuple[Result, float]:
    """A calibration as a user would run it, and its seconds; its file is kept in demo/data."""
    begin = shown = time.perf_counter()

    def tell(progress: Progress) -> None:
        nonlocal shown
        if time.perf_counter() - shown > EVERY:
            shown = time.perf_counter()
            print(f"  {progress.evaluations:6d} of {progress.budget}  {progress.text}", flush=True)

    job = Job((nfe,), guidance=bench.guidance, budget=preset, seed=seed)
    file = CACHE / f"{NAME}-{preset}-nfe{nfe}-cfg{bench.guidance:g}.safetensors"
    outcome = fit(replace(bench.exact, features=None), job, lambda nfe: file, tell)
    return outcome.kept[0].result, time.perf_counter() - begin


def known(settings: list[plain.Setting], nfe: int, guidance: float) -> list[plain.Setting]:
    """Of all settings the best of an earlier search of the same model, one a kind; they are measured anew."""
    for file in (FOLDER / "measured.json", ROWS):
        rows = json.loads(file.read_text()).get(f"{nfe} {guidance:g}", []) if file.is_file() else []
        best = {(row["solver"], row["schedule"]) for row in rows}
        if chosen := [s for s in settings if (s.name, s.schedule) in best]:
            return chosen
    return []


def best_of_each(bench: Bench, nfe: int) -> dict[str, plain.Setting]:
    """Each kind of plain solver at its best: the known ones, and a search of the kinds that are not."""
    settings = plain.settings_for(bench.exact, nfe)
    best = {kind(s.solver): s for s in known(settings, nfe, bench.guidance)}
    for setting in search(bench, [s for s in settings if kind(s.solver) not in best]):
        best.setdefault(kind(setting.solver), setting)
    return best


def measure(bench: Bench, nfe: int, presets: list[str], seed: int) -> list[dict]:
    """All rows of one NFE and guidance; the plain solvers first."""
    rows = [bench.measure(setting).as_dict() for setting in best_of_each(bench, nfe).values()]
    least = {name: min(row[name] for row in rows) for name in ("rmse_ref", "fd_ref")}
    for path in sorted(FOLDER.glob(f"{NAME}-*-nfe{nfe}-cfg{bench.guidance:g}.safetensors")):
        fitted = load(path)
        if fitted.spec.solver in TITLES:
            rows.append(bench.measure_fitted(fitted).as_dict() | {"how": "Algorithm 1"})
    for preset in presets:
        result, seconds = calibrated(bench, nfe, preset, seed)
        row = bench.measure_fitted(result.fitted).as_dict()
        row |= {
            "solver": "amed_multistep",
            "schedule": "fitted",
            "how": preset,
            "evaluations": result.evaluations,
            "fit_seconds": round(seconds, 1),
            "start": result.fitted.spec.how.split(";")[0],
        }
        row |= {f"{name}_ratio": round(row[name] / least[name], 3) for name in least}
        rows.append(row)
        print(json.dumps(row), flush=True)
        file = FOLDER / f"{NAME}-multistep-nfe{nfe}-cfg{bench.guidance:g}.safetensors"
        if preset == "normal" and result.improved and all(row[name] < least[name] for name in least):
            spec = result.fitted.spec
            metrics = spec.metrics | {name: row[name] for name in ("rmse_ref", "fd_ref", "fd_data")}
            metrics |= {f"plain_{name}": least[name] for name in least} | {"noises": len(bench.noise)}
            save(file, replace(result.fitted, spec=replace(spec, metrics=metrics)))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("--nfe", nargs="+", type=int, default=[3, 5, 7, 9])
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 2.0, 4.0])
    parser.add_argument("--preset", nargs="+", choices=list(PRESETS), default=["quick", "normal"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=demo.WEIGHTS)
    args = parser.parse_args(argv)
    for guidance in args.guidance:
        bench = Bench(guidance, args.weights)
        for nfe in args.nfe:
            print(f"NFE {nfe}, guidance {guidance:g}", flush=True)
            rows = measure(bench, nfe, args.preset, args.seed)
            remember(ROWS, lambda old: old | {f"{nfe} {guidance:g}": rows})  # noqa: B023


if __name__ == "__main__":
    main()
