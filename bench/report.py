"""What was measured, written down: docs/results.json, docs/RESULTS.md, the pictures, and the README's
table."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import host
from .measures import Measured
from .plots import CALIBRATED
from .quality import MEASURES, Plan, Row, best_others

ROOT = Path(__file__).parent.parent
SHORT = {"rmse_ref": "error", "fd_ref": "FD", "fd_data": "above the reference's FD to data", "swd": "SWD"}
GOALS = {  # (with guidance) -> measure -> at most this share of the best other solver's
    False: {"rmse_ref": 0.6, "fd_ref": 0.15, "fd_data": 0.4},
    True: {"rmse_ref": 0.8, "fd_ref": 0.4},
}
GOAL_NFES = (5, 7, 9)


@dataclass
class Compared:
    """The calibrated table beside the best other solver in one measure, at one NFE and guidance."""

    nfe: int
    guidance: float
    measure: str
    ours: float
    other: float
    row: Row
    ratio: float | None
    interval: tuple[float, float] | None

    @property
    def text(self) -> str:
        if self.ratio is None:
            return "none: the best other is at the reference's own distance"
        return f"{self.ratio:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})"


def above(measured: Measured, measure: str, reference: Measured | None) -> tuple[float, Tensor]:
    """A measure's value and resamples; FD to data as what it is above the reference's own."""
    if measure != "fd_data" or reference is None:
        return measured.value, measured.resampled
    return measured.value - reference.value, measured.resampled - reference.resampled


def compared(rows: list[Row], references: dict[float, Measured], nfe: int, guidance: float) -> list[Compared]:
    """In each measure of SHORT; the resamples are of the same noises, so their ratios are paired."""
    here = [r for r in rows if (r.nfe, r.entry.guidance) == (nfe, guidance)]
    mine = [r for r in here if r.predictor == CALIBRATED]
    others = [r for r in here if not r.entry.file]
    if not mine or not others:
        return []
    found = []
    for measure in SHORT:
        reference = references.get(guidance)
        best = min(others, key=lambda r, m=measure: r.measures[m].value)
        ours, ours_again = above(mine[0].measures[measure], measure, reference)
        other, other_again = above(best.measures[measure], measure, reference)
        ratio = interval = None
        if other > 0:
            ratio = ours / other
            good = other_again > 0
            span = torch.quantile(
                (ours_again / other_again)[good], torch.tensor([0.05, 0.95], dtype=torch.float64)
            )
            interval = tuple(span.tolist())
        found.append(Compared(nfe, guidance, measure, ours, other, best, ratio, interval))
    return found


def table(head: list[str], body: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + [
        "| " + " | ".join(str(cell) for cell in line) + " |" for line in body
    ]


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def guided(guidance: float) -> str:
    return "none" if guidance == 1 else f"{guidance:g}"


def goals(all_compared: list[Compared]) -> list[str]:
    """Every goal with its figure."""
    body = []
    for c in all_compared:
        goal = GOALS[c.guidance != 1].get(c.measure) if c.nfe in GOAL_NFES else None
        if goal is not None:
            met = c.ratio is not None and c.ratio <= goal
            body.append(
                [
                    c.nfe,
                    guided(c.guidance),
                    SHORT[c.measure],
                    number(c.ours),
                    number(c.other),
                    f"{c.row.solver}, {c.row.entry.setting.schedule_name}",
                    c.text,
                    goal,
                    "**reached**" if met else "missed",
                ]
            )
    head = ["NFE", "guidance", "measure", "calibrated", "best other", "which", "ratio (90 %)", "goal", ""]
    return table(head, body)


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
        text += ["It is behind here:", ""]
        text += table(
            ["NFE", "guidance", "measure", "calibrated", "best other", "which", "ratio (90 %)"],
            [
                [
                    c.nfe,
                    guided(c.guidance),
                    SHORT[c.measure],
                    number(c.ours),
                    number(c.other),
                    f"{c.row.solver}, {c.row.entry.setting.schedule_name}",
                    c.text,
                ]
                for c in behind
            ],
        )
    return text


def readme(all_compared: list[Compared], nfes: tuple[int, ...] = (3, 5, 7, 9)) -> list[str]:
    """The README's table: error and Frechet distance of the best other solvers and of the calibrated
    table."""
    cells: dict[tuple, dict[str, Compared]] = {}
    for c in all_compared:
        cells.setdefault((c.guidance, c.nfe), {})[c.measure] = c
    body = []
    for (guidance, nfe), found in sorted(cells.items()):
        if nfe in nfes:
            error, fd = found["rmse_ref"], found["fd_ref"]
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


def rank(values: list[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def agreement(rows: list[Row]) -> list[tuple[int, float, float]]:
    """(NFE, guidance, Spearman's rank correlation of the two Frechet distances over all rows)."""
    found = []
    for guidance, nfe in sorted({(r.entry.guidance, r.nfe) for r in rows}):
        here = [r for r in rows if (r.entry.guidance, r.nfe) == (guidance, nfe)]
        a, b = (rank([r.measures[m].value for r in here]) for m in ("fd_ref", "fd_ref_unet"))
        found.append((nfe, guidance, float(torch.corrcoef(torch.stack([a, b]))[0, 1])))
    return found


def spread(row: Row, name: str) -> str:
    measured = row.measures[name]
    if not len(measured.resampled):
        return number(measured.value)
    low, high = measured.interval
    return f"{number(measured.value)} ({number(low)}–{number(high)})"


def everything(rows: list[Row]) -> list[str]:
    """All rows, a table an NFE and guidance, the least Frechet distance first."""
    lines: list[str] = []
    for guidance, nfe in sorted({(r.entry.guidance, r.nfe) for r in rows}):
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
        lines += table(
            [
                "solver",
                "predictor",
                "schedule",
                "error",
                "FD to reference",
                "FD to data",
                "SWD",
                "FD, U-Net features",
            ],
            body,
        )
        lines += ["", "</details>"]
    return lines


def many_noises(rows: list[Row], references: dict[float, Measured]) -> list[str]:
    if not rows:
        return []
    body = []
    for nfe in sorted({r.nfe for r in rows}):
        for r in sorted((r for r in rows if r.nfe == nfe), key=lambda r: r.measures["fd_ref"].value):
            body.append([nfe, r.solver, r.schedule, *(spread(r, name) for name in MEASURES)])
    lines = table(
        ["NFE", "solver", "schedule", "error", "FD to reference", "FD to data", "SWD", "FD, U-Net features"],
        body,
    )
    ratios = [c for nfe in sorted({r.nfe for r in rows}) for c in compared(rows, references, nfe, 1.0)]
    lines += [
        "",
        "Ratios to the best of these other rows: "
        + "; ".join(f"NFE {c.nfe} {SHORT[c.measure]} {c.text}" for c in ratios)
        + ".",
    ]
    return lines


def geometry_text(told: dict[str, Any]) -> list[str]:
    worst = max(told["error_mean"])
    at = told["sigmas"][told["error_mean"].index(worst)]
    pair = sum(told["variance"][:2])
    lines = [
        "### A trajectory lies nearly in a plane (the paper's fig. 4)",
        "",
        "![projection error and variance by component](bench/figure-4.png)",
        "",
        f"{told['trajectories']} trajectories of 80 evaluations (Heun, polynomial 7, no guidance), PCA of "
        f"each by "
        f"itself. With two components the mean relative projection error is at most {100 * worst:.1f} % "
        f"(at sigma "
        f"{at:.3g}); 95 % of the trajectories stay below {100 * max(told['error_95']):.1f} %. Two "
        f"components have "
        f"{100 * pair:.2f} % of the variance (the first alone {100 * told['variance'][0]:.2f} %). The "
        f"paper: at most "
        "8 % with two components.",
        "",
        "### The best mid time, interval by interval (fig. 5)",
        "",
        "![share of the error removed and the best r](bench/figure-5.png)",
        "",
        f"N = 6, {told['samples']} noises, r from 0.05 to 0.95 in steps of 0.05, each noise its own best "
        f"r; c = a = 1, "
        "against the 80-evaluation trajectory. *Removed*: the share of the error at r = 1/2 that the best "
        "r takes "
        "away. *Spread*: the standard deviation of the best r over noises.",
        "",
    ]
    body = []
    for name, found in told["students"].items():
        for what, key in (("removed", "alignment"), ("best r", "r_mean"), ("spread of r", "r_spread")):
            body.append([name, what, *(f"{v:.2f}" for v in found[key])])
    lines += table(["solver", "", *(f"interval {i + 1}" for i in range(len(body[0]) - 2))], body)
    amed, dpm = (told["students"][n]["r_spread"] for n in ("AMED-Solver", "DPM-Solver-2"))
    smaller = sum(a < b for a, b in zip(amed, dpm))
    lines += [
        "",
        f"The paper says that AMED's best r is far more stable than DPM-Solver-2's. Here its spread is the "
        f"smaller one in {smaller} of {len(amed)} intervals (mean {sum(amed) / len(amed):.2f} against "
        f"{sum(dpm) / len(dpm):.2f}).",
    ]
    return lines


def cost_text(told: dict[str, Any]) -> list[str]:
    names = list(dict.fromkeys(r["sampler"] for r in told["overhead"]))
    cells = list(dict.fromkeys((r["latent"], r["batch"]) for r in told["overhead"]))
    by = {(r["sampler"], r["latent"], r["batch"]): r for r in told["overhead"]}
    body = [
        [
            f"{batch} x {latent}",
            *(
                f"{r['ms']:.3g}" + (f" ({r['ratio']:.2f})" if "ratio" in r else "")
                for r in (by[name, latent, batch] for name in names)
            ),
        ]
        for latent, batch in cells
    ]
    lines = [
        "### The sampling loop",
        "",
        f"Processor milliseconds of a run of {told['nfe']} evaluations with a model of no cost, one "
        f"thread; in brackets "
        "the ratio to k-diffusion's own sampler at equal evaluations (dpmpp_2m for the one-evaluation "
        "solvers, heun "
        "for AMED-Solver).",
        "",
        *table(["batch x latent", *names], body),
        "",
        "Share of the whole run that is not the demo model (at 32x32, one thread): "
        + "; ".join(
            f"{r['sampler']}, batch {r['batch']}: {100 * r['share']:.1f} %"
            for r in told["share"]
            if r["sampler"].startswith("AMED")
        )
        + ".",
        "",
        "Peak memory beyond the start noise, in latents: "
        + ", ".join(f"{name} {value:g}" for name, value in told["memory"].items())
        + ".",
        "",
        "Import, milliseconds: "
        + ", ".join(f"{name} {value:.0f}" for name, value in told["imports"].items())
        + " (over torch; the pack over ComfyUI).",
    ]
    if "fits" in told:
        lines += [
            "",
            "### Fitting",
            "",
            "A pass is one sample through the network; a gradient counts as two more. Same model, no "
            "guidance, "
            "error on 64 noises neither saw.",
            "",
        ]
        lines += table(
            ["fit", "NFE", "passes", "seconds", "error"],
            [
                [r["fit"], r["nfe"], r["passes"], f"{r['seconds']:.0f}", number(r["rmse_ref"])]
                for r in told["fits"]
            ],
        )
        lines += ["", "### Growth", "", "Sampling the demo model with a calibrated table, one thread:", ""]
        lines += table(
            ["NFE", "batch", "pixels", "seconds"],
            [
                [r["nfe"], r["batch"], f"{r['side']}x{r['side']}", f"{r['seconds']:.3g}"]
                for r in told["growth"]["sampling"]
            ],
        )
        lines += [
            "",
            "Calibration, quick, of a model of no cost: the evaluations it asks for, and the seconds that "
            "are "
            "its own arithmetic.",
            "",
        ]
        lines += table(
            ["NFE", "latent", "evaluations", "seconds"],
            [
                [r["nfe"], r["latent"], r["evaluations"], f"{r['seconds']:.3g}"]
                for r in told["growth"]["calibration of a model of no cost"]
            ],
        )
    return lines


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
    minutes: float,
) -> str:
    """docs/RESULTS.md."""
    found = [
        c for g, n in sorted({(r.entry.guidance, r.nfe) for r in rows}) for c in compared(rows, own, n, g)
    ]
    told = agreement(rows)
    lowest = min(told, key=lambda t: t[2])
    noises = ", ".join(
        f"{count} {'without guidance' if g == 1 else f'at {g:g}'}" for g, count in plan.noises.items()
    )
    lines = [
        "# Results",
        "",
        f"Made by `make bench` in {minutes:.0f} minutes with {plan.workers} processes of one thread each "
        f"({platform.machine()}, torch {torch.__version__.split('+')[0]}, samplers of ComfyUI "
        f"{host.modules().version}). "
        "Everything here is written by it; [results.json](results.json) has every row.",
        "",
        f"**Model**: the demo's emoji network, computed in {plan.dtype} as hosts run theirs in half "
        f"precision. "
        f"**Noises**: seed {plan.seed}, the same for every solver: {noises}; "
        + (f"and {plan.many} for the closest comparisons without guidance. " if plan.many else "")
        + "**Evaluations** are counted around the network; under guidance each is two passes. "
        "**Error**: root mean square distance to the reference's images, pixels in [-1, 1]. **FD**: "
        "Fréchet distance on "
        "64 features of a small emoji classifier (`demo/features.py`); to the data it is biased by the "
        "number of noises, "
        "so what counts is how far it is above the reference's own. **SWD**: sliced Wasserstein distance "
        "to the "
        f"reference's images, pixels, 128 directions. In brackets: the middle 90 % of {plan.resamples} "
        f"bootstrap resamples of "
        "the noises, the same resamples for every solver, so that ratios are paired.",
        "",
        "**Every other solver at its best**: ComfyUI's own functions, each at the best of ten schedules "
        "(polynomial 7 and "
        "3, logsnr, time_uniform 1 and 2, a grid searched by dynamic programming as in GITS, and the "
        "host's karras, exponential, beta, "
        "kl_optimal), with and without the analytic first step (AFS), and orders where it has them: 252 to "
        "260 settings "
        "for each number of evaluations, searched for every guidance on other noises (`make bench-search`, "
        "`bench/settings.json`). DDIM is Euler.",
        "",
        "![quality against evaluations](bench/quality.png)",
        "",
        "## The goals",
        "",
        *goals(found),
        "",
        "## Where AMED leads, and where it does not",
        "",
        *ahead(found),
        "",
        "The paper's AMED-Solver and AMED-Plugins, by its network (MLP), stand in the tables below as they "
        "are.",
        "",
    ]
    if many:
        lines += [
            f"## The same on {plan.many} noises, no guidance",
            "",
            "The calibrated table and the other solvers that were best in error or FD above.",
            "",
            *many_noises(many, own_many),
            "",
        ]
    lines += [
        "## The reference",
        "",
        "iPNDM-4 on polynomial 7 with 100 evaluations. Its distance to the same with 200, which says how "
        "far it can be "
        "trusted:",
        "",
        *convergence(references),
        "",
        "## Another set of features",
        "",
        "The order of solvers under the Fréchet distance on the U-Net's own bottleneck (128 features at "
        "sigma 0.2) against "
        f"that on the classifier: Spearman's rank correlation {sum(t[2] for t in told) / len(told):.2f} on "
        f"average over "
        f"{len(told)} tables, lowest {lowest[2]:.2f} (NFE {lowest[0]}, guidance {guided(lowest[1])}). "
        + second_opinion(rows),
        "",
        "## All rows",
        *everything(rows),
        "",
        "## Images",
        "",
        *(f"![{name[:-4]}](bench/{name})" for name in pictures),
        "",
        "## The geometry",
        "",
        *geometry_text(shape),
        "",
        "## Cost",
        "",
        *cost_text(cost),
    ]
    return "\n".join(lines) + "\n"


def second_opinion(rows: list[Row]) -> str:
    """In how many tables the calibrated one also has the least distance under the second features."""
    count = first = second = 0
    for guidance, nfe in sorted({(r.entry.guidance, r.nfe) for r in rows}):
        here = [r for r in rows if (r.entry.guidance, r.nfe) == (guidance, nfe)]
        mine = [r for r in here if r.predictor == CALIBRATED]
        if mine:
            best = best_others(rows, nfe, guidance)
            count += 1
            first += mine[0].measures["fd_ref"].value < best["fd_ref"].measures["fd_ref"].value
            second += (
                mine[0].measures["fd_ref_unet"].value < best["fd_ref_unet"].measures["fd_ref_unet"].value
            )
    return (
        f"The calibrated table is ahead of every other solver in {first} of {count} tables by the first, "
        f"in {second} "
        "by the second."
    )


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
