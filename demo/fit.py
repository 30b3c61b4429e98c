"""Fit the demo model's bundled predictors by Algorithm 1: `python -m demo.fit`.

    python -m demo.fit [--nfe 5] [--guidance 1]    # default: 3 solvers x NFE 3 5 7 9 x guidance 1 and 2

For each NFE and guidance:

1. The best settings of each plain solver are searched (amed.fit.plain_solvers) and measured on 256 noises.
2. A plugin starts as its plain solver at that solver's best schedule with AFS, AMED-Solver from its two best
   schedules with constant mid points. `coarse` then improves these constants by forward evaluations.
3. Algorithm 1 trains the network from there. The state with the lowest error times root Fréchet distance, on
   noises used for nothing else, is chosen; it may be the start, because training often cannot improve it.
4. A file is written only if its Fréchet distance, and its error times the root of it, are below those of its
   plain solver at that solver's best setting (for AMED-Solver: the best of DPM-Solver-2, Heun and Euler).
   All rows are written to predictors/measured.json."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from amed import BottleneckPredictor, Constants, Fitted, Solver, load, save
from amed.fit import plain_solvers
from amed.fit.algorithm1 import Settings, Teacher, train
from amed.fit.measures import rmse
from amed.fit.plain_solvers import Setting

from . import model as demo
from .measuring import TITLES, Bench
from .rows import Row, table
from .starts import mid_times, start_from
from .target import NAME

FOLDER = Path(__file__).parent.parent / "predictors"
STUDENTS = ("amed", "ipndm", "dpmpp")


def kind(solver: Solver) -> str:
    """Return "single-step" for a single-step solver, else its name with its order, e.g. "ipndm-2"."""
    return "single-step" if solver.single_step else f"{solver.name}-{solver.max_order}"


def rival_of(student: Solver, measured: dict[str, Row]) -> Row:
    """Return the measured errors of the solver without AMED that a newly fitted AMED solver must beat.

    An AMED-Plugin on iPNDM must beat iPNDM at its best order, one on DPM++ must beat DPM++ at the same order,
    and AMED-Solver the best single-step solver. Best means the lowest Fréchet distance."""
    prefix = "ipndm" if student.name == "ipndm" else kind(student)
    return min((row for name, row in measured.items() if name.startswith(prefix)), key=lambda row: row.fd_ref)


BEST_PLAIN = Path(__file__).parent / "best_plain.json"
RATE = 2e-3  # Adam's learning rate; low, because the start is already near the optimum
SCALE_DIR, SCALE_TIME = 0.1, 0.1  # how far the networks' c and a may be from 1
MOVES = ((0.08, 0.02, 0.9), (0.04, 0.9, 1.1), (0.04, 0.9, 1.1))  # first step, lowest, highest of r, c, a


def search(bench: Bench, settings: list[Setting], keep: int = 16) -> list[Setting]:
    """Sort pairs of a solver and a schedule, best first.

    All are sorted by the RMSE of images from 16 noises to those of a 60-evaluation run, then the best `keep`
    again by RMSE times the root of the Fréchet distance, on 64 noises."""
    ranking = sorted(settings, key=lambda s: rmse(*bench.tried(s.solver, s.sigmas(), 16, s.afs)))
    best = ranking[:keep]
    best.sort(key=lambda s: bench.distance(*bench.tried(s.solver, s.sigmas(), 64, s.afs)))
    return best + ranking[keep:]


def coarse(bench: Bench, start: Setting, base: Tensor, r: list[float]) -> tuple[float, list[list[float]]]:
    """Search good constants r, c and a of AMED for each step, without training a network.

    r is the position of the mid time; c scales the direction, a the time given to the network. One value at
    a time is changed where that lowers the distance (RMSE times the root of the Fréchet distance) of images
    from 32 noises to those of a 60-evaluation run.

    Args:
        start: AMED-Solver, or the solver that an AMED-Plugin extends.
        base: noise levels `[N]`; each step goes from one to the next.
        r: first values of r, `[N-1]`; c and a start at 1.

    Returns the lowest distance and [r, c, a]."""

    def value(now: list[list[float]]) -> float:
        moved = Constants(base, **dict(zip("rca", now)))
        return bench.distance(*bench.tried(start.solver, base, 32, True, moved))

    constants = [list(r), [1.0] * len(r), [1.0] * len(r)]
    best = value(constants)
    for share in (1.0, 0.5, 0.25):
        for i in range(len(base) - 1):
            for which, (step, low, high) in enumerate(MOVES):
                for sign in (1, -1):
                    moved = [list(v) for v in constants]
                    moved[which][i] = min(max(moved[which][i] + sign * share * step, low), high)
                    if (now := value(moved)) < best:
                        constants, best = moved, now
    return best, constants


def base_times(start: Setting) -> Tensor:
    """Return the noise levels between which AMED inserts a mid time.

    `start` is a solver with its schedule. For AMED-Solver the result is all levels of that schedule; for a
    solver that an AMED-Plugin extends, every other level."""
    return start.sigmas() if start.solver.name == "amed" else mid_times(start)[0]


def amed_starts(bench: Bench, nfe: int, count: int = 2) -> list[tuple[Setting, list[float]]]:
    """Return the `count` best schedules for AMED-Solver at `nfe` evaluations, each with its best mid times.

    Best means the lowest RMSE of images from 16 noises to those of a 60-evaluation run. The mid times are
    given by r, their position between two noise levels (0: at the higher), the same in all steps."""
    starts = []
    num_steps = (nfe + 1) // 2 + 1
    for schedule, rho in plain_solvers.SCHEDULES:
        setting = Setting(Solver("amed"), schedule, rho, num_steps, True, demo.SIGMA_MIN, demo.SIGMA_MAX)
        base, trials = setting.sigmas(), []
        for r in (0.15, 0.2, 0.25, 0.3, 0.4, 0.5):
            predictor = Constants(base, r=[r] * (num_steps - 1))
            trials.append((rmse(*bench.tried(setting.solver, base, 16, True, predictor)), r))
        error, r = min(trials)
        starts.append((error, setting, [r] * (num_steps - 1)))
    return [(setting, r) for _, setting, r in sorted(starts, key=lambda start: start[0])[:count]]


def fit(bench: Bench, student: str, ranking: list[Setting], nfe: int, settings: Settings) -> Fitted:
    """Fit AMED-Solver or an AMED-Plugin: search constants, then train by the paper's Algorithm 1.

    Args:
        student: "amed" for AMED-Solver, or the name of the solver that an AMED-Plugin extends.
        ranking: solvers without AMED on their schedules, best first; a plugin starts at those noise levels.
        nfe: number of evaluations.
        settings: settings of the training, e.g. the number of images and the learning rate."""
    if student == "amed":
        starts = amed_starts(bench, nfe)
    else:
        orders = {}
        for setting in ranking:
            if (
                setting.solver.name == student
                and setting.afs
                and (student, setting.solver.max_order) != ("dpmpp", 3)
            ):
                orders.setdefault(setting.solver.max_order, setting)
        starts = [(start, mid_times(start)[1].tolist()) for start in list(orders.values())[:2]]
    tried = [(*coarse(bench, start, base_times(start), r), start) for start, r in starts]
    _, constants, start = min(tried, key=lambda t: t[0])
    base, solver, predictor = base_times(start), start.solver, BottleneckPredictor(SCALE_DIR, SCALE_TIME)
    start_from(predictor, base, *map(torch.tensor, constants))
    teacher = Teacher(Solver("heun") if student == "amed" else solver, 2)
    times = teacher.times(start.kind, len(base), demo.SIGMA_MIN, demo.SIGMA_MAX, start.rho)
    print(f"  {TITLES[student]}, from {start.name} on {start.schedule}...", flush=True)

    for step in train(
        bench.fast.model,
        solver,
        predictor,
        times,
        bench.draw,
        teacher,
        settings,
        afs=True,
        evaluate=bench.fast.evaluate,
        error=bench.held_out_error,
    ):
        if step.measured:
            print(
                f"    {step.images:5d} images, loss {step.loss:8.3f}, held out {step.held_out:.4f}, "
                f"best {step.best:.4f}",
                flush=True,
            )
    spec = bench.exact.spec(
        solver,
        base,
        bench.guidance,
        schedule=start.kind,
        rho=start.rho,
        afs=True,
        features="bottleneck",
        scale_dir=predictor.scale_dir,
        scale_time=predictor.scale_time,
        how=f"coarse search of r, c, a, then Algorithm 1: {settings.images} images, batch {settings.batch}, "
        f"{teacher.solver.name} teacher, "
        f"M={teacher.extra}, seed {settings.seed}; the best state on held-out noises kept",
    )
    return Fitted(spec, predictor.eval(), base)


def fit_all(bench: Bench, nfe: int, students: list[str], settings: Settings) -> list[dict]:
    """Measure the solvers without AMED at one NFE, fit AMED predictors, and save those that beat them.

    A plugin must beat the solver that it extends, AMED-Solver the best single-step one. Returns the errors
    of each solver as a dict; its `kept` is True for a saved predictor, False for one that lost, None for a
    solver without AMED."""
    print(f"NFE {nfe}, guidance {bench.guidance:g}: searching the plain solvers ...", flush=True)
    ranking = search(bench, plain_solvers.settings_for(bench.exact, nfe))
    settings_by_kind: dict[str, Setting] = {}
    for setting in ranking:
        settings_by_kind.setdefault(kind(setting.solver), setting)
    measured = {kind: bench.measure(setting) for kind, setting in settings_by_kind.items()}
    rows = [row.as_dict() | {"kept": None} for row in measured.values()]
    best = min(measured, key=lambda name: measured[name].fd_ref)
    chosen = settings_by_kind[best]
    remember(
        BEST_PLAIN,
        lambda old: (
            old
            | {
                f"{nfe} {bench.guidance:g}": {
                    "solver": chosen.name,
                    "schedule": chosen.kind,
                    "rho": chosen.rho,
                    "afs": chosen.afs,
                }
            }
        ),
    )
    print(table(list(measured.values())), flush=True)
    for student in students:
        fitted = fit(bench, student, ranking, nfe, settings)
        row = bench.measure_fitted(fitted)
        rival = rival_of(fitted.spec.student, measured)
        is_bundled = (
            row.fd_ref < rival.fd_ref and row.fd_ref * row.rmse_ref**2 < rival.fd_ref * rival.rmse_ref**2
        )
        file = FOLDER / f"{NAME}-{student}-nfe{nfe}-cfg{bench.guidance:g}.safetensors"
        if is_bundled:
            metrics = {k: v for k, v in row.as_dict().items() if k not in ("seconds", "schedule", "solver")}
            metrics |= {
                "plain": rival.solver,
                "plain_schedule": rival.schedule,
                "plain_rmse_ref": rival.rmse_ref,
                "plain_fd_ref": rival.fd_ref,
                "noises": len(bench.noise),
            }
            save(file, replace(fitted, spec=replace(fitted.spec, metrics=metrics)))
        else:
            file.unlink(missing_ok=True)
        rows.append(row.as_dict() | {"kept": is_bundled})
        print(
            f"{table([row])}\n  {'kept' if is_bundled else 'not kept'}: "
            f"plain {rival.solver} on {rival.schedule} has error {rival.rmse_ref:.3f}, FD {rival.fd_ref:.2f}",
            flush=True,
        )
    return rows


def measure_tables(bench: Bench, nfes: list[int]) -> None:
    """Measure the bundled calibrated predictors on fixed test noises; write the results into their files.

    These are the error and Fréchet distances, which the automatic choice of a predictor ("auto") compares."""
    for nfe in nfes:
        file = FOLDER / f"{NAME}-multistep-nfe{nfe}-cfg{bench.guidance:g}.safetensors"
        fitted = load(file)
        row = bench.measure_fitted(fitted).as_dict()
        metrics = {name: row[name] for name in ("rmse_ref", "fd_ref", "fd_data")} | {
            "noises": len(bench.noise)
        }
        save(file, replace(fitted, spec=replace(fitted.spec, metrics=fitted.spec.metrics | metrics)))
        print(json.dumps(row), flush=True)


def merged(old: list[dict], new: list[dict]) -> list[dict]:
    """Return the errors measured now (`new`), and the `old` ones of AMED solvers that were not fitted now."""

    def student(row: dict) -> str | None:
        return next((name for name, title in TITLES.items() if row["solver"].startswith(title)), None)

    fitted = {student(row) for row in new}
    return new + [row for row in old if student(row) not in fitted]


def remember(file: Path, change) -> None:
    """Replace a JSON file by `change(old content)`, through a temporary file, so it is never incomplete."""
    old = json.loads(file.read_text()) if file.is_file() else {}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(dict(sorted(change(old).items())), indent=1) + "\n")
    part.replace(file)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.fit", description=__doc__.splitlines()[0])
    parser.add_argument("--student", nargs="*", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--nfe", nargs="+", type=int, default=[3, 5, 7, 9])
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--images", type=int, default=240, help="training trajectories per fit")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--weights", type=Path, default=demo.WEIGHTS)
    parser.add_argument("--tables", action="store_true", help="only measure the bundled calibrated tables")
    args = parser.parse_args(argv)
    for guidance in args.guidance:
        bench = Bench(guidance, args.weights)
        if args.tables:
            measure_tables(bench, args.nfe)
            continue
        for nfe in args.nfe:
            settings = Settings(args.images, args.batch, lr=RATE, held_out=96, every=5)
            rows = fit_all(bench, nfe, args.student, settings)
            key = f"{nfe} {guidance:g}"
            remember(FOLDER / "measured.json", lambda old: old | {key: merged(old.get(key, []), rows)})  # noqa: B023


if __name__ == "__main__":
    main()
