"""The benchmark: `make bench` (under two hours on 2 cores) or `make bench-quick` (minutes, nothing in docs).

    python -m bench [--quick] [--share 0.5] [--resume] [--noises 2000] [--dtype float32] [--report]

Writes docs/RESULTS.md, results.json, flow.json, geometry.json, cost.json, pictures in docs/bench, and the
README's table; --quick writes the same into bench/out/quick. --resume goes on from rows that a stopped run
has measured; --share takes large sets of that share of their size; --noises measures every row on so many
(2000 take hours). --report writes the pages of a finished run again, from bench/out and the JSON files, with
docs/fit_cost.json of `python -m bench.fitcost`, floor.json of `python -m bench.floor` and samplers.json of
`python -m bench.samplers`, if they are there."""

import argparse
import json
import sys
import time
from dataclasses import replace

from demo.tables import write

from . import host, plots, report
from .compare import all_compared
from .cost import cost
from .geometry import SAMPLES, TRAJECTORIES, geometry
from .plan import OUT, QUICK, Plan
from .quality import own_distances, quality
from .report import ROOT
from .workers import Workers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="few noises, 3 5 7 evaluations; docs stay as they are"
    )
    parser.add_argument("--resume", action="store_true", help="keep what a stopped run has measured")
    parser.add_argument("--share", type=float, default=1.0, help="large sets of this share of their size")
    parser.add_argument("--noises", type=int, help="measure every row on so many noises")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the network")
    parser.add_argument("--report", action="store_true", help="only write a finished run's pages again")
    args = parser.parse_args(argv)
    plan = replace(QUICK if args.quick else Plan(), dtype=args.dtype)
    plan = replace(plan, many={guidance: int(args.share * count) for guidance, count in plan.many.items()})
    if args.noises:
        plan = replace(plan, noises=dict.fromkeys(plan.noises, args.noises), many={})
    try:
        host.modules()
    except RuntimeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    folder = OUT / "quick" if args.quick else ROOT / "docs"
    OUT.mkdir(exist_ok=True)
    begin = time.perf_counter()
    if args.report:
        costs, shape = (json.loads((folder / f"{name}.json").read_text()) for name in ("cost", "geometry"))
        found = quality(plan, resume=True)
    else:
        print("cost", flush=True)
        costs = cost(args.quick)  # first, while no other process runs
        print("quality", flush=True)
        found = quality(plan, args.resume)
        print("geometry", flush=True)
        with Workers(plan.workers) as workers:
            shape = geometry(plan, workers, *((32, 8) if args.quick else (TRAJECTORIES, SAMPLES)))
        costs["minutes"] = round((time.perf_counter() - begin) / 60)

    pictures = folder / "bench"
    pictures.mkdir(parents=True, exist_ok=True)
    plots.quality(found.rows, pictures / "quality.png")
    plots.figure_4(shape, pictures / "figure-4.png")
    plots.figure_5(shape, pictures / "figure-5.png")
    grids = plots.grids(found.rows, pictures)
    files = {name: ROOT / "docs" / f"{name}.json" for name in report.MORE}
    more = {name: json.loads(file.read_text()) if file.is_file() else [] for name, file in files.items()}
    if more["fit_cost"]:
        plots.fit_cost(more["fit_cost"], pictures / "fit-cost.png")
    own = own_distances(plan, plan.many or plan.noises)
    text = report.page(plan, found, own, shape, costs, grids, more)
    report.write_all(folder, text, found, shape, costs)
    comparisons = all_compared(found.large, own)
    if not args.quick:
        write(ROOT / "README.md", {"results": report.readme(comparisons)})
    print("\n".join(report.readme(comparisons, plan.nfes)))
    print(f"\n{folder / 'RESULTS.md'}, {costs['minutes']} minutes")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from what is measured")
