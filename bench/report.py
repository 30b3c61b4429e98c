"""Write the results: docs/results.json, docs/RESULTS.md (from page.md), and the README's table."""

import json
import platform
from pathlib import Path
from string import Template
from typing import Any

import torch

from . import host
from .compare import SHORT, Compared, against_best, agreement, ahead_by, all_compared, cells, equal_passes
from .measures import DIRECTIONS, Measured
from .plan import CALIBRATED, MEASURES, QUICK_TABLE, Plan, Row
from .quality import Results
from .report_cost import cost_values, fit_cost, floor, geometry_values
from .report_samplers import outside
from .text import guided, number, table, verdict

ROOT = Path(__file__).parent.parent
# the goals: shares of the best other solver's value that are to be reached at most
AVERAGE = {"rmse_ref": 0.75, "fd_ref": 0.45}  # averaged over all cells
UNGUIDED, GUIDED = {"rmse_ref": 0.6, "fd_ref": 0.15}, {"rmse_ref": 0.8, "fd_ref": 0.4}  # at GOAL_NFES
GOAL_NFES = (5, 7, 9)
MORE = ("fit_cost", "floor", "samplers")  # docs/NAME.json that other commands write
COLUMNS = ["error", "FD to reference", "FD to data", "SWD", "FD, U-Net features"]


HEAD = ["NFE", "guidance", "measure", "calibrated", "best other", "which", "ratio (90 %)"]


def line(c: Compared) -> list[Any]:
    """Format the comparison of an AMED solver with a ComfyUI solver as a line of a Markdown table."""
    which = f"{c.row.solver}, {c.row.entry.setting.schedule_name}"
    return [c.nfe, guided(c.guidance), SHORT[c.measure], number(c.ours), number(c.other), which, c.text]


def at(guidance: float, nfe: int) -> str:
    """Format an NFE and guidance as text, e.g. "NFE 5, guidance 2"; a guidance of 1 is omitted."""
    return f"NFE {nfe}" + (f", guidance {guidance:g}" if guidance != 1 else "")


def ratios(tables: dict[str, list[Compared]]) -> dict[str, dict[tuple, float]]:
    """Return AMED's errors and other measures, divided by those of the best ComfyUI solver.

    The ratios are grouped by calibration budget and measure, e.g. {"normal rmse_ref": {(guidance, NFE):
    ratio}}; "rmse_ref" is the error."""
    ratios_by_table: dict[str, dict[tuple, float]] = {}
    for name, comparisons in tables.items():
        for c in comparisons:
            if c.ratio is not None:
                ratios_by_table.setdefault(f"{name} {c.measure}", {})[c.guidance, c.nfe] = c.ratio
    return ratios_by_table


def ratio_table(tables: dict[str, list[Compared]]) -> list[str]:
    """Return a Markdown table of AMED's error and Fréchet distance, divided by the best ComfyUI solver's.

    It has a line for each NFE and guidance, and one with the averages over these. The best solver is the one
    with the lowest error or, for the ratio of Fréchet distances, the lowest distance."""
    kinds = [(name, measure) for name in tables for measure in ("rmse_ref", "fd_ref")]
    comparison_of = {(n, c.measure, c.guidance, c.nfe): c for n, cs in tables.items() for c in cs}
    body = []
    for guidance, nfe in sorted({(g, n) for _, _, g, n in comparison_of}):
        cell_rows = [comparison_of.get((*kind, guidance, nfe)) for kind in kinds]
        which = [
            comparison_of[kinds[i][0], m, guidance, nfe].row.solver
            for i, m in ((0, "rmse_ref"), (1, "fd_ref"))
            if (kinds[i][0], m, guidance, nfe) in comparison_of
        ]
        body.append(
            [
                nfe,
                guided(guidance),
                *(c.text if c else "" for c in cell_rows),
                ", ".join(dict.fromkeys(which)),
            ]
        )
    ratios_by_table = ratios(tables)
    means = [list(ratios_by_table.get(f"{n} {m}", {}).values()) for n, m in kinds]
    body.append(["average", "", *(f"**{sum(v) / len(v):.2f}** of {len(v)}" if v else "" for v in means), ""])
    return table(["NFE", "guidance", *(f"{n}: {SHORT[m]}" for n, m in kinds), "best others"], body)


def goals(tables: dict[str, list[Compared]], rows: list[Row]) -> list[str]:
    """Return a Markdown table of the benchmark's goals, the measured values, and which goals were reached."""
    ratios_by_table, body, total = ratios(tables), [], len(cells(rows))
    for name in tables:
        for measure in ("rmse_ref", "fd_ref"):
            cell_ratios = ratios_by_table.get(f"{name} {measure}", {})
            figure = f"{sum(v < 1 for v in cell_ratios.values())} of {total}"
            if cell_ratios:
                worst = max(cell_ratios, key=lambda k, h=cell_ratios: h[k])
                figure += f"; worst {cell_ratios[worst]:.2f} at {at(*worst)}"
            if missing := total - len(cell_ratios):
                figure += f"; {missing} without a table that beats its plain solvers"
            reached = verdict(max(cell_ratios.values()), 1.0, True) if not missing else "missed"
            body.append([f"{name}: {SHORT[measure]} below every other solver's", "< 1", figure, reached])
    for measure, goal in AVERAGE.items():
        if cell_ratios := list(ratios_by_table.get(f"normal {measure}", {}).values()):
            mean = sum(cell_ratios) / len(cell_ratios)
            text = f"normal: {SHORT[measure]} ratio, average of {len(cell_ratios)}"
            body.append([text, f"<= {goal}", f"{mean:.2f}", verdict(mean, goal)])
    for guidance, nfe in cells(rows):
        our_row = equal_passes(rows, nfe, guidance) if nfe in GOAL_NFES else None
        for measure, goal in (UNGUIDED if guidance == 1 else GUIDED).items():
            if our_row is not None:
                c = against_best(our_row, rows, measure)
                spared = (
                    f", {our_row.nfe} evaluations in {our_row.passes} passes" if our_row.nfe != nfe else ""
                )
                text = f"{at(guidance, nfe)}{spared}: {SHORT[measure]} ratio"
                missed = verdict(c.ratio, goal) if c.ratio is not None else "missed"
                body.append([text, f"<= {goal}", c.text, missed])
    return table(["goal", "", "measured", ""], body)


def ahead(all_compared: list[Compared]) -> list[str]:
    """Say in how many comparisons AMED is ahead, and list those where it is behind."""
    behind = [c for c in all_compared if c.ours > c.other]
    total = len(all_compared)
    text = [
        f"The calibrated table is ahead of the best other solver in {total - len(behind)} of {total} "
        f"comparisons (evaluations x guidance x {len(SHORT)} measures, "
        "each with the solver that is best in it)."
    ]
    if behind:
        text += ["It is behind in these:", "", *table(HEAD, [line(c) for c in behind])]
    return text


def flow_rows(rows: list[Row]) -> list[str]:
    """Return the results page's section on the demo model as a flow model, empty if it was not measured."""
    if not rows:
        return []
    body = [
        [r.nfe, f"**{r.solver}**" if r.entry.file else r.solver, r.schedule.removeprefix("flow "),
         *(spread(r, name) for name in MEASURES)]
        for r in sorted(rows, key=lambda r: (r.nfe, r.measures["rmse_ref"].value))
    ]  # fmt: skip
    return [
        "",
        "## In flow form",
        "",
        f"The same model was sampled as a flow model, without guidance, on {rows[0].entry.count} noises: the",
        "levels are s = sigma / (1 + sigma) from 1 down, and x = (1 - s) image + s noise (`bench/flow.py`).",
        "The other solvers are ComfyUI's on flow schedules (polynomial 1, 2, 3; simple, shift 1, 3, 6, 12),",
        "each on the one with the lowest error on other noises (`python -m bench.search --flow`).",
        "",
        *table(["NFE", "solver", "schedule", *COLUMNS], body),
        "",
    ]


def readme(all_compared: list[Compared], nfes: tuple[int, ...] = (3, 5, 7, 9)) -> list[str]:
    """Return the README's table: error and Fréchet distance of the best ComfyUI solvers and of AMED."""
    cells: dict[tuple, dict[str, Compared]] = {}
    for c in all_compared:
        cells.setdefault((c.guidance, c.nfe), {})[c.measure] = c
    body = []
    for (guidance, nfe), measures in sorted(cells.items()):
        if nfe in nfes:
            error, fd = measures["rmse_ref"], measures["fd_ref"]
            names = dict.fromkeys(c.row.entry.setting.variant.solver for c in (error, fd))
            body.append(
                [
                    nfe,
                    guided(guidance),
                    f"{number(error.other)} / {number(fd.other)}",
                    ", ".join(names),
                    f"{number(error.ours)} / {number(fd.ours)}",
                    f"**{error.ratio:.2f}** / **{fd.ratio:.2f}**",
                ]
            )
    return table(
        ["NFE", "guidance", "best other: error / FD", "which", "AMED, calibrated: error / FD", "ratio"], body
    )


def spread(row: Row, name: str) -> str:
    """Format the value of one measure, e.g. the error, with its 90 % interval if it has one."""
    measured = row.measures[name]
    if not len(measured.resampled):
        return number(measured.value)
    low, high = measured.interval
    return f"{number(measured.value)} ({number(low)}–{number(high)})"


def everything(rows: list[Row]) -> list[str]:
    """Return all results as Markdown tables, one for each NFE and guidance, sorted by Fréchet distance."""
    lines: list[str] = []
    for guidance, nfe in cells(rows):
        cell_rows = [r for r in rows if (r.entry.guidance, r.entry.cell) == (guidance, nfe)]
        cell_rows.sort(key=lambda r: r.measures["fd_ref"].value)
        lines += ["", "<details>", f"<summary>{nfe} evaluations, guidance {guided(guidance)}</summary>", ""]
        body = [[name_of(r), r.schedule, *(spread(r, name) for name in MEASURES)] for r in cell_rows]
        lines += table(["solver", "schedule", *COLUMNS], body)
        lines += ["", "</details>"]
    return lines


def many_noises(rows: list[Row]) -> list[str]:
    """Return the results page's section on the best solvers, measured again on more noises.

    It is empty if none were."""
    if not rows:
        return []
    order = sorted(rows, key=lambda r: (r.entry.guidance, r.entry.cell, r.measures["fd_ref"].value))
    body = [
        [r.entry.cell, guided(r.entry.guidance), name_of(r), r.schedule, *(spread(r, m) for m in MEASURES)]
        for r in order
    ]
    return [
        "",
        "## The closest again, on many noises",
        "",
        "The calibrated tables were measured again with three other solvers: the best in error above, the",
        "best in FD, and the next best by error times the root of FD.",
        "",
        *table(["NFE", "guidance", "solver", "schedule", *COLUMNS], body),
        "",
    ]


def name_of(row: Row) -> str:
    """Return a solver's name for the tables; for AMED in bold and with e.g. "calibrated table" after it."""
    if not row.entry.file:
        return row.solver
    predictor = row.predictor + (f" of {row.nfe} evaluations" if row.nfe != row.entry.cell else "")
    return f"**{row.solver}**, {predictor}"


def convergence(references: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table that shows how far the reference images have converged.

    It has their distances to reference images of twice the evaluations."""
    body = [
        [
            f"{guided(r['guidance'])}{', flow form' * ('form' in r)}",
            f"{t['rmse_ref']:.4f}",
            f"{t['median']:.4f}",
            f"{t['fd_ref']:.4f}",
            f"{t['swd']:.4f}",
            t["noises"],
            number(r["fd_data"]),
        ]
        for r in references
        for t in [r["to_200_evaluations"]]
    ]
    return table(
        ["guidance", "error", "median noise", "FD", "SWD", "noises", "the reference's own FD to data"], body
    )


def page(
    plan: Plan,
    measured: Results,
    reference_distances: dict[float, Measured],
    figures: dict,
    cost: dict,
    pictures: list[str],
    extra_rows: dict[str, list[dict]],
) -> str:
    """Return the text of docs/RESULTS.md, i.e. the template page.md with all values filled in.

    Args:
        plan: the benchmark plan that was run.
        measured: the results of the run.
        reference_distances: Fréchet distance of the reference images to the data, by guidance scale.
        figures: numbers for the AMED paper's figures 4 and 5, from bench.geometry.
        cost: measured times and memory, from bench.cost.
        pictures: file names of the pictures that compare images of several samplers.
        extra_rows: contents of docs/fit_cost.json, docs/floor.json and docs/samplers.json, by "fit_cost"
            etc.; an empty list for a missing file."""
    rows, large, ranks = measured.rows, measured.large, agreement(measured.rows)
    tables = {
        name: all_compared(large, reference_distances, kind)
        for name, kind in (("normal", CALIBRATED), ("quick", QUICK_TABLE))
    }
    least = min(ranks, key=lambda r: r[2])
    sets = [f"{n} {'without guidance' if g == 1 else f'at guidance {g:g}'}" for g, n in plan.noises.items()]
    more = [f"{n} {'without guidance' if g == 1 else f'at guidance {g:g}'}" for g, n in plan.many.items()]
    share = plan.many.get(1.0, 0) / Plan().many[1.0]
    values = {
        "command": "make bench" if plan.many == Plan().many else f'make bench ARGS="--share {share:g}"',
        "minutes": cost["minutes"],
        "workers": plan.workers,
        "machine": platform.machine(),
        "torch": torch.__version__.split("+")[0],
        "comfyui": host.modules().version,
        "dtype": plan.dtype,
        "seed": plan.seed,
        "noises": ", ".join(sets) + (f"; for the goals {', '.join(more)}" if more else ""),
        "directions": DIRECTIONS,
        "resamples": plan.resamples,
        "ratios": ratio_table(tables),
        "goals": goals(tables, large),
        "ahead": ahead(tables["normal"]),
        "many": many_noises(measured.many),
        "flow": flow_rows(measured.flow),
        "convergence": convergence(measured.references),
        "rank_mean": f"{sum(r[2] for r in ranks) / len(ranks):.2f}",
        "rank_count": len(ranks),
        "rank_least": f"{least[2]:.2f}",
        "rank_where": f"{least[0]} evaluations, guidance {guided(least[1])}",
        "first": ahead_by(rows, "fd_ref"),
        "second": ahead_by(rows, "fd_ref_unet"),
        "everything": everything(rows),
        "pictures": [f"![{name[:-4]}](bench/{name})" for name in pictures],
        "fit_cost": fit_cost(extra_rows["fit_cost"]),
        "floor": floor(extra_rows["floor"]),
        "outside": outside(extra_rows["samplers"]),
    }
    values |= geometry_values(figures) | cost_values(cost)
    text = {k: "\n".join(v) if isinstance(v, list) else str(v) for k, v in values.items()}
    return Template((Path(__file__).parent / "page.md").read_text()).substitute(text)


def results(measured: Results) -> list[dict[str, Any]]:
    """Return the results for docs/results.json: the reference's first, then the solvers'."""

    def order(row: Row) -> tuple:
        return row.entry.count, row.entry.guidance, row.entry.cell, row.measures["fd_ref"].value

    rows = sorted(measured.rows + measured.many, key=order)
    return [r for r in measured.references if "form" not in r] + [row.as_dict() for row in rows]


def flow_results(measured: Results) -> list[dict[str, Any]]:
    """Return the flow model's results for docs/flow.json: the reference's first, then the solvers'."""
    rows = sorted(measured.flow, key=lambda r: (r.nfe, r.measures["rmse_ref"].value))
    return [r for r in measured.references if "form" in r] + [row.as_dict() for row in rows]


def listed(rows: list[dict[str, Any]]) -> str:
    """Format a list of results as JSON with one result per line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def write_all(folder: Path, page_text: str, measured: Results, figures: dict, cost: dict) -> None:
    """Write RESULTS.md and its JSON files into `folder`, without leaving a partial file if interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("results.json", listed(results(measured))),
        *((("flow.json", listed(flow_results(measured))),) if measured.flow else ()),
        ("geometry.json", json.dumps(figures) + "\n"),
        ("cost.json", json.dumps(cost, indent=1) + "\n"),
        ("RESULTS.md", page_text),
    ):
        part = folder / f"{name}.part"
        part.write_text(text)
        part.replace(folder / name)
