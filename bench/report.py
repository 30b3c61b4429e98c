"""What was measured, written down: docs/results.json, docs/RESULTS.md (from page.md), the README's table."""

import json
import platform
from pathlib import Path
from string import Template
from typing import Any

import torch

from . import host
from .compare import SHORT, Compared, agreement, ahead_by, all_compared, cells
from .measures import DIRECTIONS, Measured
from .quality import MEASURES, Plan, Row

ROOT = Path(__file__).parent.parent
GOALS = {  # (with guidance) -> measure -> at most this share of the best other solver's
    False: {"rmse_ref": 0.6, "fd_ref": 0.15, "fd_data": 0.4},
    True: {"rmse_ref": 0.8, "fd_ref": 0.4},
}
GOAL_NFES = (5, 7, 9)
COLUMNS = ["error", "FD to reference", "FD to data", "SWD", "FD, U-Net features"]


def table(head: list[str], body: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + [
        "| " + " | ".join(str(cell) for cell in line) + " |" for line in body
    ]


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def guided(guidance: float) -> str:
    return "none" if guidance == 1 else f"{guidance:g}"


HEAD = ["NFE", "guidance", "measure", "calibrated", "best other", "which", "ratio (90 %)"]


def line(c: Compared) -> list[Any]:
    """A comparison's cells under HEAD."""
    which = f"{c.row.solver}, {c.row.entry.setting.schedule_name}"
    return [c.nfe, guided(c.guidance), SHORT[c.measure], number(c.ours), number(c.other), which, c.text]


def goals(all_compared: list[Compared]) -> list[str]:
    """Every goal with its figure."""
    body = []
    for c in all_compared:
        goal = GOALS[c.guidance != 1].get(c.measure) if c.nfe in GOAL_NFES else None
        if goal is not None:
            met = c.ratio is not None and c.ratio <= goal
            body.append([*line(c), goal, "**reached**" if met else "missed"])
    return table([*HEAD, "goal", ""], body)


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
        here = [r for r in rows if (r.entry.guidance, r.nfe) == (guidance, nfe)]
        here.sort(key=lambda r: r.measures["fd_ref"].value)
        lines += ["", "<details>", f"<summary>{nfe} evaluations, guidance {guided(guidance)}</summary>", ""]
        body = [
            [
                f"**{r.solver}**" if r.entry.file else r.solver,
                r.predictor,
                r.schedule,
                *(spread(r, name) for name in MEASURES),
            ]
            for r in here
        ]
        lines += table(["solver", "predictor", "schedule", *COLUMNS], body)
        lines += ["", "</details>"]
    return lines


def many_noises(plan: Plan, rows: list[Row], references: dict[float, Measured]) -> list[str]:
    if not rows:
        return []
    body = []
    for nfe in sorted({r.nfe for r in rows}):
        for r in sorted((r for r in rows if r.nfe == nfe), key=lambda r: r.measures["fd_ref"].value):
            body.append([nfe, r.solver, r.schedule, *(spread(r, name) for name in MEASURES)])
    ratios = [
        [c.nfe, SHORT[c.measure], number(c.ours), number(c.other), c.text]
        for c in all_compared(rows, references)
    ]
    return [
        "",
        f"## The same on {plan.many} noises, no guidance",
        "",
        "The calibrated table and the other solvers that were best in error or FD above.",
        "",
        *table(["NFE", "solver", "schedule", *COLUMNS], body),
        "",
        *table(["NFE", "measure", "calibrated", "best of these others", "ratio (90 %)"], ratios),
        "",
    ]


def convergence(references: list[dict[str, Any]]) -> list[str]:
    body = [
        [
            guided(r["guidance"]),
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


def geometry_values(shape: dict[str, Any]) -> dict[str, Any]:
    worst, students = max(shape["error_mean"]), shape["students"]
    body = []
    for name, figures in students.items():
        for what, key in (("removed", "alignment"), ("best r", "r_mean"), ("spread of r", "r_spread")):
            body.append([name, what, *(f"{v:.2f}" for v in figures[key])])
    amed, dpm = (students[n]["r_spread"] for n in ("AMED-Solver", "DPM-Solver-2"))
    return {
        "trajectories": shape["trajectories"],
        "plane_worst": f"{100 * worst:.1f}",
        "plane_at": f"{shape['sigmas'][shape['error_mean'].index(worst)]:.3g}",
        "plane_95": f"{100 * max(shape['error_95']):.1f}",
        "plane_two": f"{100 * sum(shape['variance'][:2]):.2f}",
        "plane_one": f"{100 * shape['variance'][0]:.2f}",
        "r_samples": shape["samples"],
        "best_r": table(["solver", "", *(f"interval {i + 1}" for i in range(len(amed)))], body),
        "r_smaller": sum(a < b for a, b in zip(amed, dpm)),
        "r_count": len(amed),
        "r_amed": f"{sum(amed) / len(amed):.2f}",
        "r_dpm": f"{sum(dpm) / len(dpm):.2f}",
    }


def overhead(rows: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(r["sampler"] for r in rows))
    by = {(r["sampler"], r["latent"], r["batch"]): r for r in rows}
    body = []
    for latent, batch in dict.fromkeys((r["latent"], r["batch"]) for r in rows):
        here = [by[name, latent, batch] for name in names]
        shown = [f"{r['ms']:.3g}" + (f" ({r['ratio']:.2f})" if "ratio" in r else "") for r in here]
        body.append([f"{batch} x {latent}", *shown])
    return table(["batch x latent", *names], body)


def fits(costs: dict[str, Any]) -> list[str]:
    """Fitting and growth, if measured."""
    if "fits" not in costs:
        return []
    done = [
        [r["fit"], r["nfe"], r["passes"], f"{r['seconds']:.0f}", number(r["rmse_ref"])] for r in costs["fits"]
    ]
    sampling = [
        [r["nfe"], r["batch"], f"{r['side']}x{r['side']}", f"{r['seconds']:.3g}"]
        for r in costs["growth"]["sampling"]
    ]
    fitting = [
        [r["nfe"], r["latent"], r["evaluations"], f"{r['seconds']:.3g}"]
        for r in costs["growth"]["calibration of a model of no cost"]
    ]
    return [
        "",
        "### Fitting",
        "",
        "A pass is one sample through the network; a gradient counts as two more. The same model, no",
        "guidance, fp32, error on 64 noises neither saw.",
        "",
        *table(["fit", "NFE", "passes", "seconds", "error"], done),
        "",
        "### Growth",
        "",
        "Sampling the demo model with a calibrated table, one thread:",
        "",
        *table(["NFE", "batch", "pixels", "seconds"], sampling),
        "",
        "Calibration, quick, of a model of no cost: the evaluations it asks for (each costs what the model",
        "costs at that size), and the seconds that are its own arithmetic.",
        "",
        *table(["NFE", "latent", "evaluations", "seconds"], fitting),
    ]


def cost_values(costs: dict[str, Any]) -> dict[str, Any]:
    ours = [r for r in costs["share"] if r["sampler"].startswith("AMED")]
    return {
        "cost_nfe": costs["nfe"],
        "overhead": overhead(costs["overhead"]),
        "share": "; ".join(f"{r['sampler']}, batch {r['batch']}: {100 * r['share']:.1f} %" for r in ours),
        "memory": ", ".join(f"{name} {value:g}" for name, value in costs["memory"].items()),
        "imports": ", ".join(f"{name} {value:.0f}" for name, value in costs["imports"].items()),
        "fits": fits(costs),
    }


def page(
    plan: Plan,
    references: list[dict],
    rows: list[Row],
    many: list[Row],
    own: dict[float, Measured],
    own_many: dict[float, Measured],
    shape: dict,
    cost: dict,
    pictures: list[str],
) -> str:
    """docs/RESULTS.md: page.md with everything filled in."""
    comparisons, ranks = all_compared(rows, own), agreement(rows)
    least = min(ranks, key=lambda r: r[2])
    noises = [f"{n} without guidance" if g == 1 else f"{n} at guidance {g:g}" for g, n in plan.noises.items()]
    if plan.many:
        noises.append(f"{plan.many} for the closest comparisons without guidance")
    values = {
        "minutes": cost["minutes"],
        "workers": plan.workers,
        "machine": platform.machine(),
        "torch": torch.__version__.split("+")[0],
        "comfyui": host.modules().version,
        "dtype": plan.dtype,
        "seed": plan.seed,
        "noises": ", ".join(noises),
        "directions": DIRECTIONS,
        "resamples": plan.resamples,
        "goals": goals(comparisons),
        "ahead": ahead(comparisons),
        "many": many_noises(plan, many, own_many),
        "convergence": convergence(references),
        "rank_mean": f"{sum(r[2] for r in ranks) / len(ranks):.2f}",
        "rank_count": len(ranks),
        "rank_least": f"{least[2]:.2f}",
        "rank_where": f"{least[0]} evaluations, guidance {guided(least[1])}",
        "first": ahead_by(rows, "fd_ref"),
        "second": ahead_by(rows, "fd_ref_unet"),
        "everything": everything(rows),
        "pictures": [f"![{name[:-4]}](bench/{name})" for name in pictures],
    }
    values |= geometry_values(shape) | cost_values(cost)
    text = {k: "\n".join(v) if isinstance(v, list) else str(v) for k, v in values.items()}
    return Template((Path(__file__).parent / "page.md").read_text()).substitute(text)


def results(references: list[dict], rows: list[Row]) -> list[dict[str, Any]]:
    """The list in docs/results.json: the reference's own rows, then the others."""
    rows = sorted(rows, key=lambda r: (r.entry.count, r.entry.guidance, r.nfe, r.measures["fd_ref"].value))
    return references + [row.as_dict() for row in rows]


def write_all(folder: Path, page_text: str, listed: list[dict], shape: dict, cost: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("results.json", "[\n" + ",\n".join(json.dumps(row) for row in listed) + "\n]\n"),
        ("geometry.json", json.dumps(shape) + "\n"),
        ("cost.json", json.dumps(cost, indent=1) + "\n"),
        ("RESULTS.md", page_text),
    ):
        part = folder / f"{name}.part"
        part.write_text(text)
        part.replace(folder / name)
