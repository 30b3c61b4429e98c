"""The command line: calibrate, train, evaluate, inspect and convert predictors.

python -m amed calibrate --nfe 5 --out my.safetensors
"""

import argparse
import dataclasses
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import files
from .choose import mismatches
from .files import store
from .files.description import as_json, describe
from .files.keep import keep
from .fit import PRESETS, Job, Outcome, fit, plain_solvers, target
from .fit import algorithm1 as training
from .fit.measures import Statistics, cut, frechet, rmse, run
from .kdiffusion import SAMPLERS
from .network import BottleneckPredictor
from .recipes import Solver

OTHER_NOISE = 2**40  # added to a seed: noise that no calibration draws
CONVERTER = "predictors.authors", "convert"  # by name, like the demo model: the engine depends on neither


def show(text: str, last: bool = False) -> None:
    """Print a progress line on stderr over the previous one; outside a terminal, print only the `last`."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:110]}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(text, file=sys.stderr, flush=True)


def run_calibrate(args: argparse.Namespace) -> None:
    """Calibrate one predictor for each number of evaluations in --nfe, save them, and print their errors."""
    model, out = target.load(args.model, args.guidance), Path(args.out)
    if args.features and model.features is None:
        raise ValueError(
            f"--features cannot be used, because the Target that {args.model} returns has no feature "
            "function (Target.features): leave out --features"
        )
    if args.scale_guidance:
        show("--scale-guidance has no effect any more: it did not improve the results", last=True)
    model = model if args.features else dataclasses.replace(model, features=None)
    start = files.load(args.start) if args.start else None
    job = Job(tuple(args.nfe), args.sampler, args.guidance, args.budget, args.seed, passes=args.passes)

    def path_for(nfe: int) -> Path:
        name = f"{out.stem}-nfe{nfe}{out.suffix or '.safetensors'}" if len(args.nfe) > 1 else out.name
        return out.with_name(name)

    outcome, begin = Outcome(), time.perf_counter()
    try:
        fit(
            model,
            job,
            path_for,
            lambda p: show(f"{p.evaluations:6d} of {p.budget}  {p.text}"),
            outcome,
            start,
        )
    finally:
        for saved in outcome.fits:
            print(saved.result.text)
            for row in saved.result.rows:
                print(f"  {row.solver:18s} {row.schedule:24s} error {row.error:.4f}  RMSE {row.rmse_ref:.4f}")
            print(f"{saved.text}\n{saved.path}")
        if outcome.fits:
            show(f"{time.perf_counter() - begin:.0f} s; to measure on more noise: python -m amed evaluate "
                 f"--model {args.model} {outcome.fits[-1].path}", last=True)  # fmt: skip


def run_train(args: argparse.Namespace) -> None:
    """Train the network of the AMED paper (its Algorithm 1), save it, and print the path of its file."""
    model = target.load(args.model, args.guidance)
    if model.evaluate is None:
        raise ValueError(
            f"the network cannot be trained, because the Target that {args.model} returns has no "
            "Target.evaluate, which the training calls: use the command calibrate"
        )
    store.check_writable(args.out)
    plan = training.plan(args.sampler, args.nfe, args.extra, not model.flow)
    ends = model.sigma_min, model.sigma_max
    times = plan.teacher.times(args.schedule, plan.num_steps, *ends, args.rho)
    torch.manual_seed(args.seed % 2**64)
    predictor = BottleneckPredictor(0.01, 0.0)

    def draw(generator: torch.Generator, count: int) -> tuple[torch.Tensor, dict[str, Any]]:
        noise, extra = model.draw(generator, count)
        return noise * model.sigma_max, extra

    settings = training.Settings(args.images, args.batch, seed=args.seed, checkpointing=args.checkpointing)
    steps = training.train(model.model, plan.solver, predictor, times, draw, plan.teacher, settings,
                           afs=plan.afs, evaluate=model.evaluate)  # fmt: skip
    best = float("nan")
    for step in steps:
        best = step.best
        show(f"{step.images:6d} of {args.images} images  loss {step.loss:.4f}  held out {step.held_out:.4f}")
    how = f"Algorithm 1: {args.images} images, batch {args.batch}, {plan.teacher.solver.name} teacher, "
    spec = model.spec(plan.solver, times[:: args.extra + 1], args.guidance, schedule=args.schedule,
                      rho=args.rho, afs=plan.afs, features="bottleneck", scale_dir=predictor.scale_dir,
                      how=f"{how}M={args.extra}", metrics={"error": best})  # fmt: skip
    saved_path, text = keep(args.out, files.Fitted(spec, predictor.eval(), times[:: args.extra + 1]))
    show(f"held-out error {best:.4f}; {text}", last=True)
    print(saved_path)


def run_evaluate(args: argparse.Namespace) -> None:
    """Print a table of the errors of predictor files, and of solvers that ran without a predictor.

    Each solver without a predictor runs on the schedule that suits it best. An error is the root-mean-square
    difference to the images of a run with many steps from the same noise."""
    fits = [files.load(path) for path in args.file]
    scales = {fitted.spec.guidance for fitted in fits}
    if len(scales) > 1:
        listed = ", ".join(f"{scale:g}" for scale in sorted(scales))
        raise ValueError(
            f"the files are for different guidance scales ({listed}): evaluate those of one scale at a time"
        )
    guidance = scales.pop()
    model = target.load(args.model, guidance)
    for fitted in fits:
        for remark in mismatches(fitted, model.identity, guidance):
            show(f"note: {fitted.name}: {remark}", last=True)
    noise, extra = model.draw(target.seeded(OTHER_NOISE + args.seed), args.noises)
    few, everything, rows = slice(0, min(16, args.noises)), slice(None), list[dict[str, Any]]()

    def sample(
        label: str, part: slice, sigmas: torch.Tensor, solver: Solver, **options: Any
    ) -> tuple[torch.Tensor, int, float]:
        """Generate images from the part of the noises that a slice selects.

        Args:
            label: name of the solver, for the progress line.
            part: slice of the noises.
            sigmas: noise levels of the run.
            solver: the solver.
            options: further arguments of `run`, e.g. the predictor.

        Returns:
            The images, the number of evaluations per image, and the seconds taken.
        """
        begin = time.perf_counter()
        options |= {"batch": args.batch, "done": lambda n: show(f"{label}: {n}")}
        images, nfe = run(model.model, noise[part], sigmas, solver, cut(extra, part), **options)
        return images, nfe, time.perf_counter() - begin

    def add_row(solver: str, schedule: str, images: torch.Tensor, nfe: int, seconds: float) -> None:
        """Add a line to the printed table: a solver, and the error of its images (see `run_evaluate`)."""
        error = round(rmse(images, reference), 5)
        row = {"solver": solver, "schedule": schedule, "nfe": nfe, "guidance": guidance, "rmse_ref": error}
        if model.features:
            statistics = (Statistics.of(model.features(v)) for v in (images, reference))
            row["fd_ref"] = round(frechet(*statistics), 5)
        rows.append(row | {"seconds": round(seconds, 2)})

    fine = plain_solvers.Setting(
        Solver("ipndm", 4), "polynomial", 7.0, 61, False, model.sigma_min, model.sigma_max
    )
    reference = sample("reference", everything, fine.sigmas(), fine.solver)[0]
    options = {"evaluate": model.evaluate} if model.evaluate else {}
    for path, fitted in zip(args.file, fits):
        spec = fitted.spec
        result = sample(path.name, everything, fitted.sigmas(), spec.student, predictor=fitted.predictor,
                        afs=spec.afs, **options)  # fmt: skip
        add_row(path.stem, spec.schedule, *result)
    for nfe in sorted({fitted.nfe for fitted in fits}):
        best: dict[str, tuple[float, plain_solvers.Setting]] = {}
        for setting in plain_solvers.settings_for(model, nfe):
            label, name = f"{setting.name} at {nfe}", setting.name
            images = sample(label, few, setting.sigmas(), setting.solver, afs=setting.afs)[0]
            candidate = rmse(images, reference[few]), setting
            best[name] = min(best.get(name, candidate), candidate, key=lambda pair: pair[0])
        for name, (_, setting) in best.items():
            result = sample(name, everything, setting.sigmas(), setting.solver, afs=setting.afs)
            add_row(name, setting.schedule, *result)
    show(f"{args.noises} noises, seed {args.seed}", last=True)
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    if args.json:
        temporary = args.json.with_suffix(".part")
        temporary.write_text(json.dumps(rows, indent=1) + "\n")
        temporary.replace(args.json)


def run_inspect(args: argparse.Namespace) -> None:
    """Print the content of predictor files, as text or as JSON."""
    for path in args.file:
        fitted = files.load(path)
        print(json.dumps(as_json(fitted)) if args.json else f"{path}\n{describe(fitted)}")


def run_convert(args: argparse.Namespace) -> None:
    """Convert a pickle of AMED's authors to a predictor file, and print the path and label of this file."""
    module, function = CONVERTER
    try:
        convert = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the command convert needs {module} ({error}): run it in the folder of AMED for artists"
        ) from error
    ends = {"sigma_min": args.sigma_min, "sigma_max": args.sigma_max}
    fitted = convert(args.source, **ends, model_family=args.family, model_name=args.name)
    print(files.save(args.out, fitted), fitted.label)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line. Its result has the function of the chosen command as `run`."""
    top = argparse.ArgumentParser(prog="python -m amed", description="Fit, measure and read AMED predictors.")
    top.add_argument("--threads", type=int, help="number of torch's threads; 1 is fastest for small networks")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, work: Any, text: str, guidance: bool | None = None) -> Any:
        """Add a command to the command line; return the function that adds an option to it.

        Args:
            name: the command.
            work: function that runs it.
            text: its help text.
            guidance: which options to add: --model, --seed and --guidance (True), only --model and --seed
                (False), or none of these (None).
        """
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(run=work)
        if guidance is not None:
            subparser.add_argument("--model", default=target.DEMO, help="module:function that returns an "
                                   "amed.fit.target.Target (default: the demo model)")  # fmt: skip
            subparser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
        if guidance:
            subparser.add_argument("--guidance", type=float, default=1.0,
                                   help="guidance scale (default 1: no guidance)")  # fmt: skip
        return subparser.add_argument

    add = command("calibrate", run_calibrate, "fit constants to a model with forward evaluations only", True)
    add("--nfe", type=int, nargs="+", required=True, help="evaluations per image; several numbers give a "
        "file each and share their references")  # fmt: skip
    add("--out", type=Path, required=True, help="file to write (for several numbers of evaluations -nfeN is "
        "added); a better finished file is not replaced")  # fmt: skip
    add("--sampler", choices=list(SAMPLERS), default="amed_multistep", help="sampler to calibrate")
    add("--budget", default="normal", help=f"{', '.join(PRESETS)}, or a number of evaluations")
    add("--passes", type=int, help="passes through the network per image, under guidance; with fewer than "
        "two per evaluation some evaluations skip the negative prompt")  # fmt: skip
    add("--start", type=Path, help="predictor file to resume from (use another --seed)")
    add("--features", action="store_true", help="also use the model's feature distance to choose a result")
    add("--scale-guidance", action="store_true", help=argparse.SUPPRESS)

    add = command("train", run_train, "train the paper's network by gradient descent (Algorithm 1)", True)
    add("--nfe", type=int, required=True, help="evaluations per image")
    add("--out", type=Path, required=True, help="file to write; a better finished file is not replaced")
    add("--sampler", choices=[s for s in SAMPLERS if s != "amed_multistep"], default="amed",
        help="sampler to train for")  # fmt: skip
    add("--images", type=int, default=800, help="training images (default 800)")
    add("--batch", type=int, default=16, help="images per batch (default 16)")
    add("--schedule", choices=["polynomial", "logsnr", "time_uniform"], default="time_uniform",
        help="schedule of the noise levels (default time_uniform)")  # fmt: skip
    add("--rho", type=float, default=1.0, help="exponent of the schedule (default 1)")
    add("--extra", type=int, default=1, help="M, the teacher's points inside each interval (default 1)")
    add("--checkpointing", action="store_true", help="use less memory and more time")

    text = "measure predictors beside every plain solver at its best schedule"
    add = command("evaluate", run_evaluate, text, False)
    add("file", type=Path, nargs="+", help="predictor files")
    add("--noises", type=int, default=128, help="number of noises (default 128)")
    add("--batch", type=int, default=64, help="images per batch (default 64)")
    add("--json", type=Path, help="also write the rows to this JSON file")

    add = command("inspect", run_inspect, "print the content of predictor files")
    add("file", type=Path, nargs="+", help="predictor files")
    add("--json", action="store_true", help="print JSON instead of text")

    text = "convert a pickle of the method's authors to safetensors; nothing in the pickle is executed"
    add = command("convert", run_convert, text)
    add("source", type=Path, help="pickle to read")
    add("out", type=Path, help="file to write")
    add("--sigma-min", type=float, help="last noise level (default: the pickle's, else 0.002)")
    add("--sigma-max", type=float, help="first noise level (default: the pickle's, else 80)")
    add("--family", default="", help="model family, e.g. sd15, used to find the predictor")
    add("--name", default="", help="model name to show")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; default: those of the process.

    Returns:
        The exit code: 0, 1 after an error (printed in one line), or 130 after an interrupt.

    Raises:
        SystemExit: for --help (code 0) and wrong usage (code 2).
    """
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
