"""The command line: calibrate, train, evaluate, inspect, convert.

python -m amed calibrate --nfe 5 --out my.safetensors
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from . import convert, plain, store, target
from .calibration import PRESETS, Calibration, References, Settings, budget_of
from .evaluation import Statistics, cut, frechet, rmse, run
from .predictor import BottleneckPredictor
from .sampling import SAMPLERS, Solver
from .training import Settings as Training
from .training import plan, train


def say(text: str, last: bool = False) -> None:
    """One line on stderr, rewritten in place on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:110]}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(text, file=sys.stderr, flush=True)


def out_file(out: Path, nfe: int, several: bool) -> Path:
    return out.with_name(f"{out.stem}-nfe{nfe}{out.suffix or '.safetensors'}") if several else out


def run_calibrate(args: argparse.Namespace) -> None:
    made = target.load(args.model, args.guidance)
    start = store.load(args.start) if args.start else None
    references = None
    for nfe in args.nfe:
        budget = budget_of(args.budget, nfe)
        settings = Settings(
            nfe, made.sigma_min, made.sigma_max, args.sampler, budget, args.guidance, made.afs,
            args.scale_guidance, args.seed, prediction_type=made.prediction_type, model_family=made.family,
            model_fingerprint=made.fingerprint, model_name=made.name,
        )  # fmt: skip
        references = references or References(made.model, made.draw, settings)
        calibration = Calibration(
            made.model, made.draw, settings, references=references, guide=made.guide, start=start,
            features=made.features if args.features else None,
        )  # fmt: skip
        file, begin = out_file(args.out, nfe, len(args.nfe) > 1), time.perf_counter()
        try:
            for progress in calibration.run():
                say(f"{progress.evaluations:6d} of {budget}  {progress.text}")
        except KeyboardInterrupt:
            if calibration.ready:
                store.save(file, calibration.result().fitted)
                say(f"stopped; the best so far is in {file}", last=True)
            raise
        result = calibration.result()
        store.save(file, result.fitted)
        say(f"{result.evaluations} evaluations, {time.perf_counter() - begin:.0f} s", last=True)
        print(result.text)
        for row in result.rows:
            print(f"  {row.solver:18s} {row.schedule:24s} error {row.error:.4f}  RMSE {row.rmse_ref:.4f}")
        print(file)


def run_train(args: argparse.Namespace) -> None:
    made = target.load(args.model, args.guidance)
    if made.capture is None:
        raise ValueError("this model gives no bottleneck (Target.capture): calibrate a table instead")
    planned = plan(args.sampler, args.nfe, args.extra, made.afs)
    solver, teacher = planned.solver, planned.teacher
    times = teacher.times(args.schedule, planned.num_steps, made.sigma_min, made.sigma_max, args.rho)
    predictor = BottleneckPredictor(0.01, 0.0)
    torch.manual_seed(args.seed)

    def draw(generator: torch.Generator, count: int):
        noise, extra = made.draw(generator, count)
        return noise * made.sigma_max, extra

    settings = Training(args.images, args.batch, seed=args.seed, checkpointing=args.checkpointing)
    progress = None
    for progress in train(
        made.model, solver, predictor, times, draw, teacher, settings, afs=planned.afs, capture=made.capture
    ):
        say(
            f"{progress.images:6d} of {args.images} images  loss {progress.loss:.4f}  "
            f"held out {progress.held_out:.4f}"
        )
    base = times[:: args.extra + 1]
    spec = store.Spec(
        solver=solver.name, max_order=solver.max_order, predict_x0=solver.predict_x0, num_steps=len(base),
        schedule=args.schedule, rho=args.rho, sigma_min=made.sigma_min, sigma_max=made.sigma_max,
        afs=planned.afs,
        prediction_type=made.prediction_type, guidance=args.guidance, model_family=made.family,
        model_fingerprint=made.fingerprint, model_name=made.name, features="bottleneck",
        scale_dir=predictor.scale_dir, scale_time=predictor.scale_time,
        how=f"Algorithm 1: {args.images} images, batch {args.batch}, {teacher.solver.name} teacher, "
        f"M={args.extra}",
    )  # fmt: skip
    store.save(args.out, store.Fitted(spec, predictor.eval(), base))
    say(f"held-out error {progress.best:.4f}", last=True)
    print(args.out)


def run_evaluate(args: argparse.Namespace) -> None:
    files = [store.load(path) for path in args.file]
    scales = {fitted.spec.guidance for fitted in files}
    if len(scales) > 1:
        raise ValueError(
            f"these files are for guidance {', '.join(f'{s:g}' for s in sorted(scales))}: one at a time"
        )
    guidance = scales.pop()
    made = target.load(args.model, guidance)
    x, extra = made.draw(torch.Generator().manual_seed(args.seed), args.noises)

    def sampled(sigmas, solver, text, **options):
        begin = time.perf_counter()
        ends, nfe = run(made.model, x, sigmas, solver, extra, batch=args.batch, **options,
                        done=lambda n: say(f"{text}: {n} of {args.noises}"))  # fmt: skip
        return ends, nfe, time.perf_counter() - begin

    fine = plain.Setting(Solver("ipndm", 4), "polynomial", 7.0, 61, False, made.sigma_min, made.sigma_max)
    truth = sampled(fine.sigmas(), fine.solver, "reference")[0]
    rows = []

    def row(solver, schedule, ends, nfe, seconds):
        told = {"solver": solver, "schedule": schedule, "nfe": nfe, "guidance": guidance,
                "rmse_ref": round(rmse(ends, truth), 5)}  # fmt: skip
        if made.features:
            statistics = [Statistics.of(made.features(v)) for v in (ends, truth)]
            told["fd_ref"] = round(frechet(*statistics), 5)
        rows.append(told | {"seconds": round(seconds, 2)})

    for path, fitted in zip(args.file, files):
        spec = fitted.spec
        made_by = sampled(fitted.sigmas(), spec.settings, path.name, predictor=fitted, afs=spec.afs,
                          **({"capture": made.capture} if made.capture else {}))  # fmt: skip
        row(path.stem, spec.schedule, *made_by)
    part = slice(0, min(16, args.noises))
    few = {k: cut(v, part) for k, v in extra.items()}
    for nfe in sorted({fitted.nfe for fitted in files}):
        best: dict[str, tuple[float, plain.Setting]] = {}
        for setting in plain.candidates(nfe, made.sigma_min, made.sigma_max):
            if setting.afs and not made.afs:
                continue
            say(f"searching {setting.name} at {nfe} evaluations")
            ends, _ = run(made.model, x[part], setting.sigmas(), setting.solver, few, afs=setting.afs)
            best[setting.name] = min(best.get(setting.name, (float("inf"), setting)),
                                     (rmse(ends, truth[part]), setting), key=lambda b: b[0])  # fmt: skip
        for name, (_, setting) in best.items():
            row(name, setting.schedule, *sampled(setting.sigmas(), setting.solver, name, afs=setting.afs))
    say(f"{args.noises} noises, seed {args.seed}", last=True)
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for told in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in told.values()) + " |")
    if args.json:
        part_file = args.json.with_suffix(".part")
        part_file.write_text(json.dumps(rows, indent=1) + "\n")
        part_file.replace(args.json)


def run_inspect(args: argparse.Namespace) -> None:
    for path in args.file:
        fitted = store.load(path)
        tensors = store.tensors_of(fitted)
        if args.json:
            told = {k: json.loads(v) for k, v in store.to_header(fitted.spec).items() if k != "amed_format"}
            print(json.dumps(told | {"tensors": {k: v.tolist() for k, v in tensors.items()}}))
            continue
        print(f"{path}\n{fitted.label}")
        for name, value in store.to_header(fitted.spec).items():
            if value not in ('""', "{}"):
                print(f"  {name:20s} {value}")
        if fitted.wants_bottleneck:
            print(f"  {sum(v.numel() for k, v in tensors.items() if k != 'sigmas')} parameters")
            print("  sigmas               " + "  ".join(f"{v:.5g}" for v in tensors["sigmas"].tolist()))
            continue
        names = [name for name in ("r", "c", "a", "g", "weights") if name in tensors]
        print("  " + "".join(f"{name:>11s}" for name in ("sigma", "next", *names)))
        for n in range(fitted.spec.num_steps - 1):
            values = [tensors["sigmas"][n], tensors["sigmas"][n + 1]]
            values += [v for name in names for v in tensors[name][n].reshape(-1)]
            print("  " + "".join(f"{float(v):11.5g}" for v in values))


def run_convert(args: argparse.Namespace) -> None:
    fitted = convert.convert(
        args.source, sigma_min=args.sigma_min, sigma_max=args.sigma_max, model_family=args.family,
        model_name=args.name,
    )  # fmt: skip
    print(store.save(args.out, fitted), fitted.label)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m amed", description="Fit, measure and read AMED predictors.")
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, run_, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run_)
        return added

    def model(p: argparse.ArgumentParser, guidance: bool = True) -> None:
        p.add_argument("--model", default=target.DEMO, help="module:function giving an amed.target.Target "
                       "(default: the demo model)")  # fmt: skip
        p.add_argument("--seed", type=int, default=0)
        if guidance:
            p.add_argument("--guidance", type=float, default=1.0, help="guidance scale (default 1: none)")

    p = command("calibrate", run_calibrate, "fit constants to a model by forward evaluations only")
    model(p)
    p.add_argument(
        "--nfe", type=int, nargs="+", required=True, help="evaluations; several share their references"
    )
    p.add_argument(
        "--out", type=Path, required=True, help="safetensors file to write (-nfeN added for several)"
    )
    p.add_argument("--sampler", choices=list(SAMPLERS), default="amed_multistep")
    p.add_argument("--budget", default="normal", help=f"{', '.join(PRESETS)} or a number of evaluations")
    p.add_argument("--start", type=Path, help="a file fitted before, to go on from (use another --seed)")
    p.add_argument(
        "--features", action="store_true", help="let a feature distance choose too, where the model has one"
    )
    p.add_argument(
        "--scale-guidance", action="store_true", help="fit a factor on each evaluation's guidance scale"
    )

    p = command("train", run_train, "train the paper's network by gradient (Algorithm 1)")
    model(p)
    p.add_argument("--nfe", type=int, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--sampler", choices=[s for s in SAMPLERS if s != "amed_multistep"], default="amed")
    p.add_argument("--images", type=int, default=800)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--schedule", choices=["polynomial", "logsnr", "time_uniform"], default="time_uniform")
    p.add_argument("--rho", type=float, default=1.0)
    p.add_argument("--extra", type=int, default=1, help="M: the teacher's points inside each interval")
    p.add_argument("--checkpointing", action="store_true", help="less memory, more time")

    p = command("evaluate", run_evaluate, "measure predictors beside every plain solver at its best schedule")
    model(p, guidance=False)
    p.add_argument("file", type=Path, nargs="+")
    p.add_argument("--noises", type=int, default=128)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--json", type=Path, help="write the rows here")

    p = command("inspect", run_inspect, "print a predictor file as a table")
    p.add_argument("file", type=Path, nargs="+")
    p.add_argument("--json", action="store_true")

    p = command(
        "convert", run_convert, "turn one of the authors' pickles into safetensors; nothing in it is run"
    )
    p.add_argument("source", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--sigma-min", type=float)
    p.add_argument("--sigma-max", type=float)
    p.add_argument("--family", default="", help="model family, for matching")
    p.add_argument("--name", default="", help="model name, for people")
    return top


def main(argv: list[str] | None = None) -> int:
    """0 done, 1 an error told in one line, 2 wrong usage, 130 stopped."""
    args = parser().parse_args(argv)
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
