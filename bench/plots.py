"""The pictures: quality against evaluations, images of the same noises, and the paper's figures 4 and 5."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import host
from .plan import CALIBRATED, OUT, QUICK_TABLE, SHOWN, SHOWN_NFES, Row
from .quality import best_others, strip_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

NAMES = {"fd_ref": "Fréchet distance to the reference", "rmse_ref": "error to the reference"}
COLOURS = dict(zip(host.SOLVERS, plt.cm.tab20(np.linspace(0, 1, len(host.SOLVERS)))))


def lines(rows: list[Row], guidance: float, measure: str) -> dict[str, dict[int, float]]:
    """Return the lines of a plot, {name: {NFE: value of `measure`}}.

    There is a line for each ComfyUI sampler at its best settings, each kind of calibrated AMED multistep
    solver, the best AMED-Plugin, and AMED-Solver. A solver that skips the negative prompt in some evaluations
    is placed at the NFE that costs as many network passes."""
    names = {CALIBRATED: "AMED multistep, calibrated", QUICK_TABLE: "AMED multistep, calibrated quick"}
    by_name: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.entry.guidance != guidance:
            continue
        if row.entry.setting is not None:
            name = row.entry.setting.variant.solver
        elif row.predictor.startswith(CALIBRATED):
            name = names.get(row.predictor, "AMED multistep, passes spared")
        else:
            name = "AMED-Solver" if row.solver == "AMED-Solver" else "best AMED-Plugin"
        value = row.measures[measure].value
        line = by_name.setdefault(name, {})
        line[row.entry.cell] = min(value, line.get(row.entry.cell, value))
    return by_name


def quality(rows: list[Row], file: Path) -> None:
    """Plot error and Fréchet distance against evaluations, for each guidance scale."""
    guidances = sorted({row.entry.guidance for row in rows})
    figure, axes = plt.subplots(
        2, len(guidances), figsize=(4.6 * len(guidances), 8), sharex=True, squeeze=False, layout="constrained"
    )
    ours = {
        "AMED multistep, calibrated": ("k", "o"),
        "AMED multistep, calibrated quick": ("0.45", "o"),
        "AMED multistep, passes spared": ("tab:red", "o"),
        "best AMED-Plugin": ("k", "s"),
        "AMED-Solver": ("k", "^"),
    }
    for i, measure in enumerate(NAMES):
        for j, guidance in enumerate(guidances):
            axis, by_name = axes[i][j], lines(rows, guidance, measure)
            for name in sorted(by_name, key=lambda n: n in ours):
                points = sorted(by_name[name].items())
                style = {"color": COLOURS.get(name), "lw": 1.1, "alpha": 0.8}
                if name in ours:
                    colour, marker = ours[name]
                    style = {"color": colour, "marker": marker, "ms": 5, "lw": 2.2 if marker == "o" else 1}
                    style["ls"] = "-" if marker == "o" else ":"
                axis.plot(*zip(*points), label=name, **style)
            low = min(v for line in by_name.values() for v in line.values())
            axis.set_yscale("log")
            axis.set_ylim(low * 0.7, low * (400 if measure == "fd_ref" else 20))
            axis.set_title(f"guidance {guidance:g}" if guidance != 1 else "no guidance", fontsize=10)
            axis.grid(alpha=0.3, which="both")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_xlabel("evaluations") if i else None
            axis.set_ylabel(NAMES[measure]) if j == 0 else None
    known = {n: h for axis in axes.flat for h, n in zip(*axis.get_legend_handles_labels())}
    figure.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=2 + len(guidances), fontsize=8
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def grid(rows: list[Row], guidance: float, nfe: int, file: Path, scale: int = 2) -> None:
    """Draw images of the same noises, one line of images per sampler, to compare them by eye.

    The lines are the reference, AMED, the best ComfyUI sampler, and a few common ones."""
    cell_rows = [r for r in rows if (r.entry.guidance, r.entry.cell) == (guidance, nfe)]
    best = best_others(rows, nfe, guidance)
    shown = [("reference, 100", OUT / "strips" / f"{guidance:g}-reference.png")]

    def add(row: Row, text: str) -> None:
        if strip_file(row) not in [file for _, file in shown]:
            shown.append((text, strip_file(row)))

    for row in sorted(
        (r for r in cell_rows if r.entry.file), key=lambda r: (CALIBRATED not in r.predictor, r.predictor)
    ):
        add(row, f"{row.solver}, {row.predictor.replace(CALIBRATED, 'calibrated')}")
    add(best["fd_ref"], f"best other: {best['fd_ref'].solver}")
    for solver in ("dpmpp_2m", "uni_pc", "euler"):
        for row in cell_rows:
            if row.entry.setting is not None and row.entry.setting.variant.solver == solver:
                add(row, row.solver)
    side, left = 32 * scale, 270
    page = Image.new("RGB", (left + SHOWN * side, len(shown) * side), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for i, (text, strip) in enumerate(shown):
        draw.text((6, i * side + side // 2 - 8), text, "black", font)
        with Image.open(strip) as images:
            page.paste(images.resize((SHOWN * side, side), Image.Resampling.BICUBIC), (left, i * side))
    page.save(file, optimize=True)


def grids(rows: list[Row], folder: Path) -> list[str]:
    """Draw a grid of images at 3, 5 and 7 evaluations for each guidance; return the file names."""
    names = []
    for guidance, nfe in sorted(
        {(r.entry.guidance, r.entry.cell) for r in rows if r.entry.cell in SHOWN_NFES}
    ):
        names.append(f"grid-nfe{nfe}-cfg{guidance:g}.png")
        grid(rows, guidance, nfe, folder / names[-1])
    return names


def figure_4(figures: dict[str, Any], file: Path) -> None:
    """Draw the AMED paper's figure 4, on how flat sampling trajectories are.

    It shows the error of projecting them onto a plane, over sigma, and their variance by component."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(figures["sigmas"], [100 * v for v in figures["error_mean"]], "k-o", ms=3, label="mean")
    left.plot(
        figures["sigmas"], [100 * v for v in figures["error_95"]], "k:", label="95 % of trajectories below"
    )
    left.axhline(8, color="tab:red", lw=1, ls="--", label="the paper's bound, 8 %")
    left.set(xscale="log", xlabel="sigma", ylabel="relative projection error, %", ylim=(0, None))
    left.invert_xaxis()
    left.legend(fontsize=8)
    right.bar(range(1, len(figures["variance"]) + 1), figures["variance"], color="0.3")
    right.set(yscale="log", xlabel="component", ylabel="share of variance")
    figure.suptitle(
        f"{figures['trajectories']} trajectories of 80 evaluations, each projected on its two components",
        fontsize=10,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def figure_5(figures: dict[str, Any], file: Path) -> None:
    """Draw the AMED paper's figure 5: the best mid time r in each interval, and the error it removes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for i, (name, student) in enumerate(figures["students"].items()):
        x = np.arange(1, len(student["alignment"]) + 1)
        left.plot(x, student["alignment"], "-o", ms=3, label=name)
        right.errorbar(
            x + 0.06 * (i - 2), student["r_mean"], student["r_spread"], fmt="-o", ms=3, capsize=2, label=name
        )
    left.set(xlabel="interval, from the noise on", ylabel="share of the error removed by the best r")
    right.set(xlabel="interval, from the noise on", ylabel="best r, its spread over noises", ylim=(0, 1))
    left.legend(fontsize=8)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def fit_cost(points: list[dict[str, Any]], file: Path) -> None:
    """Plot error and Fréchet distance of fitted AMED solvers against the cost of fitting them."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, measure in zip(axes, ("rmse_ref", "fd_ref")):
        for name in dict.fromkeys(p["fit"] for p in points):
            line = sorted((p["passes"], p[measure]) for p in points if p["fit"] == name)
            axis.plot(*zip(*line), "-o", ms=4, label=name)
        axis.set(xscale="log", yscale="log", xlabel="passes spent on the fit", ylabel=NAMES[measure])
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)
