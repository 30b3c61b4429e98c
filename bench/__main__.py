"""Run the benchmark: `make bench` (under two hours on 2 cores) or `make bench-quick` (minutes).

    python -m bench [--quick] [--share 0.5] [--resume] [--noises 2000] [--dtype float32] [--report]

Writes docs/RESULTS.md, results.json, flow.json, geometry.json, cost.json, pictures in docs/bench, and the
README's table. Options:

--quick    few noises; writes the same files into bench/out/quick and changes nothing in docs
--resume   keeps the rows that an interrupted run has measured
--share    the share of the large sets of noises to use
--noises   measures every row on this many noises (2,000 take hours)
--report   only writes the pages of a finished run again, from bench/out and the JSON files

The pages also include docs/fit_cost.json of `python -m bench.fitcost`, floor.json of `python -m bench.floor`
and samplers.json of `python -m bench.samplers`, where these exist."""

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
from .quality import quality, reference_fd_to_data
from .report import ROOT
from .workers import Workers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="few noises, 3, 5 and 7 evaluations; nothing in docs changes"
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows of an interrupted run")
    parser.add_argument("--share", type=float, default=1.0, help="share of the large sets of noises to use")
    parser.add_argument("--noises", type=int, help="measure every row on this many noises")
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
        costs, figures = (json.loads((folder / f"{name}.json").read_text()) for name in ("cost", "geometry"))
        measured = quality(plan, resume=True)
    else:
        print("cost", flush=True)
        costs = cost(args.quick)  # first, while no other process runs
        print("quality", flush=True)
        measured = quality(plan, args.resume)
        print("geometry", flush=True)
        with Workers(plan.workers) as workers:
            figures = geometry(plan, workers, *((32, 8) if args.quick else (TRAJECTORIES, SAMPLES)))
        costs["minutes"] = round((time.perf_counter() - begin) / 60)

    pictures = folder / "bench"
    pictures.mkdir(parents=True, exist_ok=True)
    plots.quality(measured.rows, pictures / "quality.png")
    plots.figure_4(figures, pictures / "figure-4.png")
    plots.figure_5(figures, pictures / "figure-5.png")
    grids = plots.grids(measured.rows, pictures)
    files = {name: ROOT / "docs" / f"{name}.json" for name in report.MORE}
    extra_rows = {
        name: json.loads(file.read_text()) if file.is_file() else [] for name, file in files.items()
    }
    if extra_rows["fit_cost"]:
        plots.fit_cost(extra_rows["fit_cost"], pictures / "fit-cost.png")
    reference_distances = reference_fd_to_data(plan, plan.many or plan.noises)
    text = report.page(plan, measured, reference_distances, figures, costs, grids, extra_rows)
    report.write_all(folder, text, measured, figures, costs)
    comparisons = all_compared(measured.large, reference_distances)
    if not args.quick:
        write(ROOT / "README.md", {"results": report.readme(comparisons)})
    print("\n".join(report.readme(comparisons, plan.nfes)))
    print(f"\n{folder / 'RESULTS.md'}, {costs['minutes']} minutes")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume continues from what was measured")
