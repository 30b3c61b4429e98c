"""What was measured, written down: docs/results.json, docs/RESULTS.md (from page.md), the README's table."""

import json
import platform
from pathlib import Path
from string import Template
from typing import Any

import torch

from . import host
from .compare import SHORT, Compared, agreement, ahead_by, all_compared, beside, cells, equal_passes
from .measures import DIRECTIONS, Measured
from .plan import CALIBRATED, MEASURES, QUICK_TABLE, Plan, Row
from .quality import Results
from .report_cost import cost_values, fit_cost, floor, geometry_values
from .report_samplers import outside
from .text import guided, number, table, verdict

ROOT = Path(__file__).parent.parent
AVERAGE = {"rmse_ref": 0.75, "fd_ref": 0.45}  # of all cells: at most this share of the best other solver's
UNGUIDED, GUIDED = {"rmse_ref": 0.6, "fd_ref": 0.15}, {"rmse_ref": 0.8, "fd_ref": 0.4}  # at GOAL_NFES
GOAL_NFES = (5, 7, 9)
MORE = ("fit_cost", "floor", "samplers")  # what other commands keep in docs: name.json
COLUMNS = ["error", "FD to reference", "FD to data", "SWD", "FD, U-Net features"]


HEAD = ["NFE", "guidance", "measure", "calibrated", "best other", "which", "ratio (90 %)"]


def line(c: Compared) -> list[Any]:
    """A comparison's cells under HEAD."""
    which = f"{c.row.solver}, {c.row.entry.setting.schedule_name}"
    return [c.nfe, guided(c.guidance), SHORT[c.measure], number(c.ours), number(c.other), which, c.text]


def at(guidance: float, nfe: int) -> str:
    return f"NFE {nfe}" + (f", guidance {guidance:g}" if guidance != 1 else "")


def ratios(tables: dict[str, list[Compared]]) -> dict[str, dict[tuple, float]]:
    """Table and measure -> (guidance, NFE) -> share of the best other solver's."""
    found: dict[str, dict[tuple, float]] = {}
    for name, comparisons in tables.items():
        for c in comparisons:
            if c.ratio is not None:
                found.setdefault(f"{name} {c.measure}", {})[c.guidance, c.nfe] = c.ratio
    return found


def ratio_table(tables: dict[str, list[Compared]]) -> list[str]:
    """Error and Frechet distance of each kind of table as shares of the best other's, in every cell, and
    their averages."""
    kinds = [(name, measure) for name in tables for measure in ("rmse_ref", "fd_ref")]
    by = {(n, c.measure, c.guidance, c.nfe): c for n, cs in tables.items() for c in cs}
    body = []
    for guidance, nfe in sorted({(g, n) for _, _, g, n in by}):
        here = [by.get((*kind, guidance, nfe)) for kind in kinds]
        which = [
            by[kinds[i][0], m, guidance, nfe].row.solver
            for i, m in ((0, "rmse_ref"), (1, "fd_ref"))
            if (kinds[i][0], m, guidance, nfe) in by
        ]
        body.append(
            [nfe, guided(guidance), *(c.text if c else "" for c in here), ", ".join(dict.fromkeys(which))]
        )
    found = ratios(tables)
    means = [list(found.get(f"{n} {m}", {}).values()) for n, m in kinds]
    body.append(["average", "", *(f"**{sum(v) / len(v):.2f}** of {len(v)}" if v else "" for v in means), ""])
    return table(["NFE", "guidance", *(f"{n}: {SHORT[m]}" for n, m in kinds), "best others"], body)


def goals(tables: dict[str, list[Compared]], rows: list[Row]) -> list[str]:
    """Every goal with its figure, and by how much it was missed."""
    found, body, total = ratios(tables), [], len(cells(rows))
    for name in tables:
        for measure in ("rmse_ref", "fd_ref"):
            here = found.get(f"{name} {measure}", {})
            figure = f"{sum(v < 1 for v in here.values())} of {total}"
            if here:
                worst = max(here, key=lambda k, h=here: h[k])
                figure += f"; worst {here[worst]:.2f} at {at(*worst)}"
            if lacking := total - len(here):
                figure += f"; {lacking} without a table that beats its plain solvers"
            reached = verdict(max(here.values()), 1.0, True) if not lacking else "missed"
            body.append([f"{name}: {SHORT[measure]} below every other solver's", "< 1", figure, reached])
    for measure, goal in AVERAGE.items():
        if here := list(found.get(f"normal {measure}", {}).values()):
            mean = sum(here) / len(here)
            text = f"normal: {SHORT[measure]} ratio, average of {len(here)}"
            body.append([text, f"<= {goal}", f"{mean:.2f}", verdict(mean, goal)])
    for guidance, nfe in cells(rows):
        mine = equal_passes(rows, nfe, guidance) if nfe in GOAL_NFES else None
        for measure, goal in (UNGUIDED if guidance == 1 else GUIDED).items():
            if mine is not None:
                c = beside(mine, rows, measure)
                spared = f", {mine.nfe} evaluations in {mine.passes} passes" if mine.nfe != nfe else ""
                text = f"{at(guidance, nfe)}{spared}: {SHORT[measure]} ratio"
                missed = verdict(c.ratio, goal) if c.ratio is not None else "missed"
                body.append([text, f"<= {goal}", c.text, missed])
    return table(["goal", "", "measured", ""], body)


def ahead(all_compared: list[Compared]) -> list[str]:
    """Where AMED is behind, in words."""
    behind = [c for c in all_compared if c.ours > c.other]
    total = len(all_compared)
    text = [
        f"The calibrated table is ahead of the best other solver in {total - len(behind)} of {total} "
        f"comparisons "
        f"(evaluations x guidance x {len(SHORT)} measures, the best other chosen anew for each)."
    ]
    if behind:
        text += ["It is behind here:", "", *table(HEAD, [line(c) for c in behind])]
    return text


def flow_rows(rows: list[Row]) -> list[str]:
    """The model in flow form."""
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
        f"The same model as flow models are sampled, without guidance, on {rows[0].entry.count} noises:",
        "levels s = sigma / (1 + sigma) from 1 on, x = (1 - s) image + s noise (`bench/flow.py`). The other",
        "solvers are ComfyUI's on flow schedules (polynomial 1, 2, 3; simple, shift 1, 3, 6, 12), each at",
        "the one with the least error on other noises (`python -m bench.search --flow`).",
        "",
        *table(["NFE", "solver", "schedule", *COLUMNS], body),
        "",
    ]


def readme(all_compared: list[Compared], nfes: tuple[int, ...] = (3, 5, 7, 9)) -> list[str]:
    """The README's table: error and Frechet distance of the best other solvers and of the calibrated
    table."""
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
    measured = row.measures[name]
    if not len(measured.resampled):
        return number(measured.value)
    low, high = measured.interval
    return f"{number(measured.value)} ({number(low)}–{number(high)})"


def everything(rows: list[Row]) -> list[str]:
    """All rows, a table an NFE and guidance, the least Frechet distance first."""
    lines: list[str] = []
    for guidance, nfe in cells(rows):
        here = [r for r in rows if (r.entry.guidance, r.entry.cell) == (guidance, nfe)]
        here.sort(key=lambda r: r.measures["fd_ref"].value)
        lines += ["", "<details>", f"<summary>{nfe} evaluations, guidance {guided(guidance)}</summary>", ""]
        body = [[name_of(r), r.schedule, *(spread(r, name) for name in MEASURES)] for r in here]
        lines += table(["solver", "schedule", *COLUMNS], body)
        lines += ["", "</details>"]
    return lines


def many_noises(rows: list[Row]) -> list[str]:
    """Every row of the second pass."""
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
        "The calibrated tables and three other solvers: the best in error above, the best in FD, and the",
        "next by error times the root of FD.",
        "",
        *table(["NFE", "guidance", "solver", "schedule", *COLUMNS], body),
        "",
    ]


def name_of(row: Row) -> str:
    """The solver, and which of our tables."""
    if not row.entry.file:
        return row.solver
    own = row.predictor + (f" of {row.nfe} evaluations" if row.nfe != row.entry.cell else "")
    return f"**{row.solver}**, {own}"


def convergence(references: list[dict[str, Any]]) -> list[str]:
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
    found: Results,
    own: dict[float, Measured],
    shape: dict,
    cost: dict,
    pictures: list[str],
    kept: dict[str, list[dict]],
) -> str:
    """docs/RESULTS.md: page.md with everything filled in. own: the reference's FD to data on the noises of
    `found.large`; kept: the rows of MORE, none where there are none."""
    rows, large, ranks = found.rows, found.large, agreement(found.rows)
    tables = {
        name: all_compared(large, own, kind)
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
        "many": many_noises(found.many),
        "flow": flow_rows(found.flow),
        "convergence": convergence(found.references),
        "rank_mean": f"{sum(r[2] for r in ranks) / len(ranks):.2f}",
        "rank_count": len(ranks),
        "rank_least": f"{least[2]:.2f}",
        "rank_where": f"{least[0]} evaluations, guidance {guided(least[1])}",
        "first": ahead_by(rows, "fd_ref"),
        "second": ahead_by(rows, "fd_ref_unet"),
        "everything": everything(rows),
        "pictures": [f"![{name[:-4]}](bench/{name})" for name in pictures],
        "fit_cost": fit_cost(kept["fit_cost"]),
        "floor": floor(kept["floor"]),
        "outside": outside(kept["samplers"]),
    }
    values |= geometry_values(shape) | cost_values(cost)
    text = {k: "\n".join(v) if isinstance(v, list) else str(v) for k, v in values.items()}
    return Template((Path(__file__).parent / "page.md").read_text()).substitute(text)


def results(found: Results) -> list[dict[str, Any]]:
    """The list in docs/results.json: the reference's own rows, then the others."""

    def order(row: Row) -> tuple:
        return row.entry.count, row.entry.guidance, row.entry.cell, row.measures["fd_ref"].value

    rows = sorted(found.rows + found.many, key=order)
    return [r for r in found.references if "form" not in r] + [row.as_dict() for row in rows]


def flow_results(found: Results) -> list[dict[str, Any]]:
    """The list in docs/flow.json."""
    rows = sorted(found.flow, key=lambda r: (r.nfe, r.measures["rmse_ref"].value))
    return [r for r in found.references if "form" in r] + [row.as_dict() for row in rows]


def listed(rows: list[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def write_all(folder: Path, page_text: str, found: Results, shape: dict, cost: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("results.json", listed(results(found))),
        *((("flow.json", listed(flow_results(found))),) if found.flow else ()),
        ("geometry.json", json.dumps(shape) + "\n"),
        ("cost.json", json.dumps(cost, indent=1) + "\n"),
        ("RESULTS.md", page_text),
    ):
        part = folder / f"{name}.part"
        part.write_text(text)
        part.replace(folder / name)
