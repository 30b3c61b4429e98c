"""The part of docs/RESULTS.md on ComfyUI's samplers with AMED-Plugin around them."""

from textwrap import wrap
from typing import Any

from .text import guided, number, table

COMMAND = "python -m bench.samplers"


def fitted_with(row: dict[str, Any]) -> str:
    """Format what a fit cost, as evaluations and seconds, e.g. "2500, 12 s"."""
    seconds = row.get("fit_seconds")
    return f"{row['fit_evaluations']}" + (f", {seconds:.0f} s" if seconds else "")


def outside(rows: list[dict[str, Any]]) -> list[str]:
    """Return the results page's section on ComfyUI's samplers with and without AMED-Plugin.

    It is empty if docs/samplers.json does not exist."""
    if not rows:
        return []
    body, behind = [], []
    for row in rows:
        ratios = {m: row[f"{m}_amed"] / row[f"{m}_best"] for m in ("rmse", "fd")}
        body.append([
            row["sampler"], row["nfe"], guided(row["guidance"]),
            *(f"{number(row[f'rmse_{k}'])} / {number(row[f'fd_{k}'])}" for k in ("karras", "best")),
            row["schedule"], f"**{number(row['rmse_amed'])} / {number(row['fd_amed'])}**",
            f"{ratios['rmse']:.2f} / {ratios['fd']:.2f}", fitted_with(row),
        ])  # fmt: skip
        if max(ratios.values()) >= 1:
            behind.append(f"{row['sampler']} at {row['nfe']}, guidance {guided(row['guidance'])}")
    better = len(rows) - len(behind)
    fd_ratio = sum(row["fd_amed"] / row["fd_karras"] for row in rows) / len(rows)
    head = ["sampler", "NFE", "guidance", "karras", "best schedule", "which", "AMED-Plugin", "of the best's",
            "fitted with"]  # fmt: skip
    intro = f"""
        Made by `{COMMAND}`: error / FD to the reference on {rows[0]["noises"]} noises that nothing else uses.
        ComfyUI's samplers are measured as they are, and with a quick calibration around them, which fits
        their noise levels and two numbers for each of their evaluations (`amed/outside.py`). The best of
        fourteen schedules is searched by error on other noises. *Fitted with*: evaluations of the model, each
        of one image, and seconds on one processor where they were measured."""
    outcome = f"""
        With AMED-Plugin {better} of {len(rows)} are better in both error and FD than on their best schedule.
        On average the FD is {fd_ratio:.2f} of that on karras. Not better in both:
        {"; ".join(behind) or "none"}."""
    intro, outcome = (wrap(" ".join(text.split()), 120) for text in (intro, outcome))
    return ["", "## Any sampler: AMED-Plugin from outside", "", *intro, "", *table(head, body), "", *outcome]
