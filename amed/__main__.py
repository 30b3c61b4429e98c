"""The command line: calibrate, train, evaluate, inspect, convert.

python -m amed calibrate --nfe 5 --out my.safetensors
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import files
from .choose import mismatches
from .files import store
from .files.keep import keep
from .fit import PRESETS, Job, Outcome, fit, plain_solvers, target
from .fit import algorithm1 as training
from .fit.measures import Statistics, cut, frechet, rmse, run
from .kdiffusion import SAMPLERS
from .network import BottleneckPredictor
from .recipes import Solver

OTHER_NOISE = 2**40  # added to a seed: noise that no calibration draws


def say(text: str, last: bool = False) -> None:
    """One line on stderr, rewritten in place on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:110]}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(text, file=sys.stderr, flush=True)


def run_calibrate(args: argparse.Namespace) -> None:
    made, out = target.load(args.model, args.guidance), Path(args.out)
    if args.features and made.features is None:
        raise ValueError("--features: this model has none (Target.features)")
    if args.scale_guidance:
        say("--scale-guidance: not fitted any more (it brought nothing)", last=True)
    made = made if args.features else dataclasses.replace(made, features=None)
    start = files.load(args.start) if args.start else None
    job = Job(tuple(args.nfe), args.sampler, args.guidance, args.budget, args.seed, passes=args.passes)

    def path(nfe: int) -> Path:
        name = f"{out.stem}-nfe{nfe}{out.suffix or '.safetensors'}" if len(args.nfe) > 1 else out.name
        return out.with_name(name)

    outcome, begin = Outcome(), time.perf_counter()
    try:
        fit(made, job, path, lambda p: say(f"{p.evaluations:6d} of {p.budget}  {p.text}"), outcome, start)
    finally:
        for kept in outcome.fits:
            print(kept.result.text)
            for row in kept.result.rows:
                print(f"  {row.solver:18s} {row.schedule:24s} error {row.error:.4f}  RMSE {row.rmse_ref:.4f}")
            print(f"{kept.text}\n{kept.path}")
        if outcome.fits:
            say(f"{time.perf_counter() - begin:.0f} s; measure it on more noise: python -m amed evaluate "
                f"--model {args.model} {outcome.fits[-1].path}", last=True)  # fmt: skip


def run_train(args: argparse.Namespace) -> None:
    made = target.load(args.model, args.guidance)
    if made.evaluate is None:
        raise ValueError("this model gives no bottleneck (Target.evaluate): calibrate a table instead")
    store.check_room(args.out)
    planned = training.plan(args.sampler, args.nfe, args.extra, not made.flow)
    ends = made.sigma_min, made.sigma_max
    times = planned.teacher.times(args.schedule, planned.num_steps, *ends, args.rho)
    torch.manual_seed(args.seed % 2**64)
    predictor = BottleneckPredictor(0.01, 0.0)

    def draw(generator: torch.Generator, count: int) -> tuple[torch.Tensor, dict[str, Any]]:
        noise, extra = made.draw(generator, count)
        return noise * made.sigma_max, extra

    settings = training.Settings(args.images, args.batch, seed=args.seed, checkpointing=args.checkpointing)
    steps = training.train(made.model, planned.solver, predictor, times, draw, planned.teacher, settings,
                           afs=planned.afs, evaluate=made.evaluate)  # fmt: skip
    best = float("nan")
    for step in steps:
        best = step.best
        say(f"{step.images:6d} of {args.images} images  loss {step.loss:.4f}  held out {step.held_out:.4f}")
    how = f"Algorithm 1: {args.images} images, batch {args.batch}, {planned.teacher.solver.name} teacher, "
    spec = made.spec(planned.solver, times[:: args.extra + 1], args.guidance, schedule=args.schedule,
                     rho=args.rho, afs=planned.afs, features="bottleneck", scale_dir=predictor.scale_dir,
                     how=f"{how}M={args.extra}", metrics={"error": best})  # fmt: skip
    saved, text = keep(args.out, files.Fitted(spec, predictor.eval(), times[:: args.extra + 1]))
    say(f"held-out error {best:.4f}; {text}", last=True)
    print(saved)


def run_evaluate(args: argparse.Namespace) -> None:
    fits = [files.load(path) for path in args.file]
    scales = {fitted.spec.guidance for fitted in fits}
    if len(scales) > 1:
        several = ", ".join(f"{s:g}" for s in sorted(scales))
        raise ValueError(f"these files are for guidance {several}: one at a time")
    guidance = scales.pop()
    made = target.load(args.model, guidance)
    for fitted in fits:
        for remark in mismatches(fitted, made.identity, guidance):
            say(f"note: {fitted.name}: {remark}", last=True)
    x, extra = made.draw(target.seeded(OTHER_NOISE + args.seed), args.noises)
    few, everything, rows = slice(0, min(16, args.noises)), slice(None), list[dict[str, Any]]()

    def ends(text: str, part: slice, *how: Any, **options: Any) -> tuple[torch.Tensor, int, float]:
        begin, own = time.perf_counter(), cut(extra, part)
        images, nfe = run(made.model, x[part], how[0], how[1], own, batch=args.batch, **options,
                          done=lambda n: say(f"{text}: {n}"))  # fmt: skip
        return images, nfe, time.perf_counter() - begin

    def row(solver: str, schedule: str, images: torch.Tensor, nfe: int, seconds: float) -> None:
        error = round(rmse(images, truth), 5)
        row = {"solver": solver, "schedule": schedule, "nfe": nfe, "guidance": guidance, "rmse_ref": error}
        if made.features:
            row["fd_ref"] = round(frechet(*(Statistics.of(made.features(v)) for v in (images, truth))), 5)
        rows.append(row | {"seconds": round(seconds, 2)})

    fine = plain_solvers.Setting(
        Solver("ipndm", 4), "polynomial", 7.0, 61, False, made.sigma_min, made.sigma_max
    )
    truth = ends("reference", everything, fine.sigmas(), fine.solver)[0]
    for path, fitted in zip(args.file, fits):
        asks = {"evaluate": made.evaluate} if made.evaluate else {}
        how = fitted.sigmas(), fitted.spec.student
        row(path.stem, fitted.spec.schedule, *ends(path.name, everything, *how, predictor=fitted.predictor,
                                                   afs=fitted.spec.afs, **asks))  # fmt: skip
    for nfe in sorted({fitted.nfe for fitted in fits}):
        best: dict[str, tuple[float, plain_solvers.Setting]] = {}
        for one in plain_solvers.settings_for(made, nfe):
            images = ends(f"{one.name} at {nfe}", few, one.sigmas(), one.solver, afs=one.afs)[0]
            tried = rmse(images, truth[few]), one
            best[one.name] = min(best.get(one.name, tried), tried, key=lambda b: b[0])
        for name, (_, one) in best.items():
            row(name, one.schedule, *ends(name, everything, one.sigmas(), one.solver, afs=one.afs))
    say(f"{args.noises} noises, seed {args.seed}", last=True)
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for line in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in line.values()) + " |")
    if args.json:
        part_file = args.json.with_suffix(".part")
        part_file.write_text(json.dumps(rows, indent=1) + "\n")
        part_file.replace(args.json)


def run_inspect(args: argparse.Namespace) -> None:
    for path in args.file:
        fitted = files.load(path)
        print(json.dumps(store.as_json(fitted)) if args.json else f"{path}\n{store.described(fitted)}")


def run_convert(args: argparse.Namespace) -> None:
    from predictors import authors  # what reads a pickle is no part of the engine

    ends = {"sigma_min": args.sigma_min, "sigma_max": args.sigma_max}
    fitted = authors.convert(args.source, **ends, model_family=args.family, model_name=args.name)
    print(files.save(args.out, fitted), fitted.label)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m amed", description="Fit, measure and read AMED predictors.")
    top.add_argument("--threads", type=int, help="of torch; small networks are fastest with one")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, work: Any, text: str, guidance: bool | None = None) -> Any:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=work)
        if guidance is not None:
            added.add_argument("--model", default=target.DEMO, help="module:function giving an "
                               "amed.fit.target.Target (default: the demo model)")  # fmt: skip
            added.add_argument("--seed", type=int, default=0)
        if guidance:
            added.add_argument("--guidance", type=float, default=1.0, help="guidance scale (default 1: none)")
        return added.add_argument

    add = command("calibrate", run_calibrate, "fit constants to a model by forward evaluations only", True)
    add("--nfe", type=int, nargs="+", required=True, help="evaluations; several share their references")
    add("--out", type=Path, required=True, help="file to write (-nfeN added for several; a finished better "
        "one is never replaced)")  # fmt: skip
    add("--sampler", choices=list(SAMPLERS), default="amed_multistep")
    add("--budget", default="normal", help=f"{', '.join(PRESETS)} or a number of evaluations")
    add("--passes", type=int, help="of the network for an image, under guidance: fewer than two an "
        "evaluation leave the negative half out of some")  # fmt: skip
    add("--start", type=Path, help="a file fitted before, to go on from (use another --seed)")
    add("--features", action="store_true", help="let a feature distance choose too, where the model has one")
    add("--scale-guidance", action="store_true", help=argparse.SUPPRESS)

    add = command("train", run_train, "train the paper's network by gradient (Algorithm 1)", True)
    add("--nfe", type=int, required=True)
    add("--out", type=Path, required=True)
    add("--sampler", choices=[s for s in SAMPLERS if s != "amed_multistep"], default="amed")
    add("--images", type=int, default=800)
    add("--batch", type=int, default=16)
    add("--schedule", choices=["polynomial", "logsnr", "time_uniform"], default="time_uniform")
    add("--rho", type=float, default=1.0)
    add("--extra", type=int, default=1, help="M: the teacher's points inside each interval")
    add("--checkpointing", action="store_true", help="less memory, more time")

    text = "measure predictors beside every plain solver at its best schedule"
    add = command("evaluate", run_evaluate, text, False)
    add("file", type=Path, nargs="+")
    add("--noises", type=int, default=128)
    add("--batch", type=int, default=64)
    add("--json", type=Path, help="write the rows here")

    add = command("inspect", run_inspect, "print a predictor file as a table")
    add("file", type=Path, nargs="+")
    add("--json", action="store_true")

    text = "turn one of the authors' pickles into safetensors; nothing in it is run"
    add = command("convert", run_convert, text)
    add("source", type=Path)
    add("out", type=Path)
    add("--sigma-min", type=float)
    add("--sigma-max", type=float)
    add("--family", default="", help="model family, for matching")
    add("--name", default="", help="model name, for people")
    return top


def main(argv: list[str] | None = None) -> int:
    """0 done, 1 an error told in one line, 2 wrong usage, 130 stopped."""
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
