"""The parts of docs/RESULTS.md on geometry and cost."""

from textwrap import wrap
from typing import Any

from .text import guided, number, table, verdict

LOOP = {"AMED multistep, table": 1.2, "AMED multistep, bands": 1.5}  # goals: ratio to dpmpp_2m, at LOOP_AT
LOOP_AT = ("4x128x128", 1)


def geometry_values(figures: dict[str, Any]) -> dict[str, Any]:
    """Return numbers on the AMED paper's figures 4 and 5, for the placeholders of the results page."""
    worst, students = max(figures["error_mean"]), figures["students"]
    body = []
    for name, student in students.items():
        for quantity, key in (("removed", "alignment"), ("best r", "r_mean"), ("spread of r", "r_spread")):
            body.append([name, quantity, *(f"{v:.2f}" for v in student[key])])
    amed, dpm = (students[n]["r_spread"] for n in ("AMED-Solver", "DPM-Solver-2"))
    return {
        "trajectories": figures["trajectories"],
        "plane_worst": f"{100 * worst:.1f}",
        "plane_at": f"{figures['sigmas'][figures['error_mean'].index(worst)]:.3g}",
        "plane_95": f"{100 * max(figures['error_95']):.1f}",
        "plane_two": f"{100 * sum(figures['variance'][:2]):.2f}",
        "plane_one": f"{100 * figures['variance'][0]:.2f}",
        "r_samples": figures["samples"],
        "best_r": table(["solver", "", *(f"interval {i + 1}" for i in range(len(amed)))], body),
        "r_smaller": sum(a < b for a, b in zip(amed, dpm)),
        "r_count": len(amed),
        "r_amed": f"{sum(amed) / len(amed):.2f}",
        "r_dpm": f"{sum(dpm) / len(dpm):.2f}",
    }


def overhead(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of each sampler's milliseconds per run, without a network.

    In brackets is the ratio to the time of a k-diffusion sampler."""
    names = list(dict.fromkeys(r["sampler"] for r in rows))
    by_cell = {(r["sampler"], r["latent"], r["batch"]): r for r in rows}
    body = []
    for latent, batch in dict.fromkeys((r["latent"], r["batch"]) for r in rows):
        cell_rows = [by_cell[name, latent, batch] for name in names]
        shown = [f"{r['ms']:.3g}" + (f" ({r['ratio']:.2f})" if "ratio" in r else "") for r in cell_rows]
        body.append([f"{batch} x {latent}", *shown])
    return table(["batch x latent", *names], body)


def loop_goals(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of the goals for the sampling loop's time, and whether they were reached."""
    body = []
    for row in rows:
        goal = LOOP.get(row["sampler"]) if (row["latent"], row["batch"]) == LOOP_AT else None
        if goal is not None:
            body.append([row["sampler"], f"<= {goal}", row["ratio"], verdict(row["ratio"], goal)])
    head = ["sampler", "goal", f"x dpmpp_2m, {LOOP_AT[1]} x {LOOP_AT[0]}", ""]
    return ["", *table(head, body)] if body else []


def fit_cost(points: list[dict[str, Any]]) -> list[str]:
    """Return the results page's section on how the quality of a fit grows with its cost.

    It is empty if docs/fit_cost.json does not exist."""
    if not points:
        return []
    body = [
        [p["fit"], p["size"], p["passes"], number(p["rmse_ref"]), number(p["fd_ref"])]
        for p in sorted(points, key=lambda p: (p["fit"], p["passes"]))
    ]
    first = points[0]
    return [
        "",
        "### What a fit's passes buy",
        "",
        "![error and FD against passes spent](bench/fit-cost.png)",
        "",
        f"NFE {first['nfe']}, no guidance, fp32, measured on {first['noises']} noises that nothing else uses",
        "(`python -m bench.fitcost`). All passes are counted: references, teachers, searches, comparisons; a",
        "gradient counts as two more. Algorithm 1 trains AMED-Solver's network, in one run per size.",
        "",
        *table(["fit", "size", "passes", "error", "FD"], body),
        "",
    ]


def floor(rows: list[dict[str, Any]]) -> list[str]:
    """Return the results page's section on whether a longer calibration improves an AMED solver.

    It compares three calibrations with the best ComfyUI sampler; empty if docs/floor.json does not exist."""
    if not rows:
        return []
    body = []
    for nfe, guidance in dict.fromkeys((row["nfe"], row["guidance"]) for row in rows):
        cell_rows = [row for row in rows if (row["nfe"], row["guidance"]) == (nfe, guidance)]
        best = {m: min(row[m] for row in cell_rows if row["kind"] == "other") for m in ("rmse_ref", "fd_ref")}
        cells = [" / ".join(number(value) for value in best.values())]
        for kind in ("normal", "thorough", "wide"):
            row = next(row for row in cell_rows if row["kind"] == kind)
            ratios = " / ".join(f"{row[m] / best[m]:.2f}" for m in best)
            cells.append(f"{number(row['rmse_ref'])} / {number(row['fd_ref'])} ({ratios})")
        body.append([nfe, guided(guidance), *cells])
    head = ["NFE", "guidance", "best other", "normal", "thorough", "512 samples"]
    wide_evaluations = max(row["fit_evaluations"] for row in rows if row["kind"] == "wide")
    text = f"""
        Made by `python -m bench.floor`: error / FD to the reference on {rows[0]["noises"]} noises that no fit
        has seen, in brackets their ratios to the best other solver's. *512 samples* is the same fit on 512
        samples and 128 held-out ones, with up to {wide_evaluations:,} evaluations; *thorough* has 128 and 96
        samples, *normal* (bundled) 32 to 48 and 40 to 64."""
    text = wrap(" ".join(text.split()), 120)
    return ["### How far the form goes", "", *text, "", *table(head, body), ""]


def fits(costs: dict[str, Any]) -> list[str]:
    """Return the results page's sections on the cost of a fit, empty if it was not measured.

    They also show how the times of sampling and of calibration grow with the NFE and the image size."""
    if "fits" not in costs:
        return []
    fit_rows = [
        [r["fit"], r["nfe"], r["passes"], f"{r['seconds']:.0f}", number(r["rmse_ref"])] for r in costs["fits"]
    ]
    sampling_rows = [
        [r["nfe"], r["batch"], f"{r['side']}x{r['side']}", f"{r['seconds']:.3g}"]
        for r in costs["growth"]["sampling"]
    ]
    fitting_rows = [
        [r["nfe"], r["latent"], r["evaluations"], f"{r['seconds']:.3g}"]
        for r in costs["growth"]["calibration of a model of no cost"]
    ]
    return [
        "",
        "### Fitting",
        "",
        "A pass is one sample through the network; a gradient counts as two more. The demo model without",
        "guidance in fp32; the error is on 64 noises that neither fit saw.",
        "",
        *table(["fit", "NFE", "passes", "seconds", "error"], fit_rows),
        "",
        "### Growth",
        "",
        "Sampling the demo model with a calibrated table, one thread:",
        "",
        *table(["NFE", "batch", "pixels", "seconds"], sampling_rows),
        "",
        "Quick calibration of a model that costs nothing: the number of evaluations it makes, and the",
        "seconds of its own arithmetic.",
        "",
        *table(["NFE", "latent", "evaluations", "seconds"], fitting_rows),
    ]


def cost_values(costs: dict[str, Any]) -> dict[str, Any]:
    """Return text on sampling time, memory, imports and fitting, for the placeholders of the results page."""
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
