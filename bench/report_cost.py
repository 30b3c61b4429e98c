"""The pages' parts on geometry and cost."""

from textwrap import wrap
from typing import Any

from .text import guided, number, table, verdict

LOOP = {"AMED multistep, table": 1.2, "AMED multistep, bands": 1.5}  # of dpmpp_2m's time, at LOOP_AT
LOOP_AT = ("4x128x128", 1)


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


def loop_goals(rows: list[dict[str, Any]]) -> list[str]:
    """Whether the loop costs little enough beside dpmpp_2m."""
    body = []
    for row in rows:
        goal = LOOP.get(row["sampler"]) if (row["latent"], row["batch"]) == LOOP_AT else None
        if goal is not None:
            body.append([row["sampler"], f"<= {goal}", row["ratio"], verdict(row["ratio"], goal)])
    head = ["sampler", "goal", f"x dpmpp_2m, {LOOP_AT[1]} x {LOOP_AT[0]}", ""]
    return ["", *table(head, body)] if body else []


def fit_cost(points: list[dict[str, Any]]) -> list[str]:
    """docs/fit_cost.json, if there is one."""
    if not points:
        return []
    body = [
        [p["fit"], p["size"], p["passes"], number(p["rmse_ref"]), number(p["fd_ref"])]
        for p in sorted(points, key=lambda p: (p["fit"], p["passes"]))
    ]
    one = points[0]
    return [
        "",
        "### What a fit's passes buy",
        "",
        "![error and FD against passes spent](bench/fit-cost.png)",
        "",
        f"NFE {one['nfe']}, no guidance, fp32, measured on {one['noises']} noises nothing else uses",
        "(`python -m bench.fitcost`). Everything is counted: references, teachers, searches, comparisons; a",
        "gradient as two more passes. Algorithm 1 trains AMED-Solver's network, a run for each size.",
        "",
        *table(["fit", "size", "passes", "error", "FD"], body),
        "",
    ]


def floor(rows: list[dict[str, Any]]) -> list[str]:
    """docs/floor.json, if there is one: each kind of fit beside the best other solver in its cell."""
    if not rows:
        return []
    body = []
    for nfe, guidance in dict.fromkeys((row["nfe"], row["guidance"]) for row in rows):
        here = [row for row in rows if (row["nfe"], row["guidance"]) == (nfe, guidance)]
        best = {m: min(row[m] for row in here if row["kind"] == "other") for m in ("rmse_ref", "fd_ref")}
        cells = [" / ".join(number(value) for value in best.values())]
        for kind in ("normal", "thorough", "wide"):
            own = next(row for row in here if row["kind"] == kind)
            ratios = " / ".join(f"{own[m] / best[m]:.2f}" for m in best)
            cells.append(f"{number(own['rmse_ref'])} / {number(own['fd_ref'])} ({ratios})")
        body.append([nfe, guided(guidance), *cells])
    head = ["NFE", "guidance", "best other", "normal", "thorough", "512 samples"]
    spent = max(row["fit_evaluations"] for row in rows if row["kind"] == "wide")
    said = f"""
        Made by `python -m bench.floor`: error / FD to the reference on {rows[0]["noises"]} noises that no fit
        has seen, in brackets as shares of the best other solver's. *512 samples*: the same fit on 512 samples
        and 128 held-out ones, with up to {spent:,} evaluations; *thorough* has 128 and 96, *normal* (bundled)
        32 to 48 and 40 to 64."""
    said = wrap(" ".join(said.split()), 120)
    return ["### How far the form goes", "", *said, "", *table(head, body), ""]


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
        "loop_goals": loop_goals(costs["overhead"]),
        "share": "; ".join(f"{r['sampler']}, batch {r['batch']}: {100 * r['share']:.1f} %" for r in ours),
        "memory": ", ".join(f"{name} {value:g}" for name, value in costs["memory"].items()),
        "imports": ", ".join(f"{name} {value:.0f}" for name, value in costs["imports"].items()),
        "fits": fits(costs),
    }
