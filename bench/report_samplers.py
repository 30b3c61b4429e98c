"""The page's part on ComfyUI's own samplers with AMED-Plugin around them."""

from textwrap import wrap
from typing import Any

from .text import guided, number, table

COMMAND = "python -m bench.samplers"


def fitted_with(row: dict[str, Any]) -> str:
    seconds = row.get("fit_seconds")
    return f"{row['fit_evaluations']}" + (f", {seconds:.0f} s" if seconds else "")


def outside(rows: list[dict[str, Any]]) -> list[str]:
    """docs/samplers.json, if there is one."""
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
    halved = sum(row["fd_amed"] / row["fd_karras"] for row in rows) / len(rows)
    head = ["sampler", "NFE", "guidance", "karras", "best schedule", "which", "AMED-Plugin", "of the best's",
            "fitted with"]  # fmt: skip
    said = f"""
        Made by `{COMMAND}`. ComfyUI's own samplers as they are, then with the noise levels of their list and
        two numbers for each of their evaluations fitted by a quick calibration (`amed/outside.py`): error /
        FD to the reference, {rows[0]["noises"]} noises that nothing else uses. The best schedule of fourteen
        is searched by error on other noises. *Fitted with*: evaluations of the model, each of one image,
        and seconds of one processor where they were taken."""
    end = f"""
        Better than on its best schedule, in error and FD: {better} of {len(rows)}. FD is {halved:.2f} of that
        on karras, on average. No better in both: {"; ".join(behind) or "none"}."""
    said, end = (wrap(" ".join(text.split()), 120) for text in (said, end))
    return ["", "## Any sampler: AMED-Plugin from outside", "", *said, "", *table(head, body), "", *end]
