"""Write the tables of predictors/README.md: `python -m demo.tables`.

The figures come from the predictor files, predictors/measured.json (made by `python -m demo.fit`) and
docs/results.json (made by `make bench`)."""

import json
from pathlib import Path

from amed import load

from .fit import FOLDER

RESULTS = FOLDER.parent / "docs" / "results.json"
KINDS = ("calibrated table, quick", "calibrated table")


def files() -> list[str]:
    """Return the lines of a Markdown table of the bundled predictor files."""
    lines = ["| file | for | solver | NFE | guidance | how |", "|" + "---|" * 6]
    for path in sorted(FOLDER.glob("*.safetensors")):
        spec = load(path).spec
        order = f"-{spec.max_order}" if spec.max_order > 1 else ""
        lines.append(
            f"| `{path.stem}` | {spec.model_name} | {spec.solver}{order} | {spec.nfe} | {spec.guidance:g} | "
            f"{spec.how.split(';')[0]} |"
        )
    return lines


def measured() -> list[str]:
    """Return the lines of a Markdown table of fitted predictors and of the best solvers without one.

    They are grouped by guidance and NFE; the lowest Fréchet distance of each group is bold."""
    head = "| NFE | guidance | solver | schedule | error | FD to reference | FD to data | |"
    lines = [head, "|" + "---|" * 8]
    rows_by_key = json.loads((FOLDER / "measured.json").read_text())
    for key in sorted(rows_by_key, key=lambda k: (float(k.split()[1]), int(k.split()[0]))):
        best = min(rows_by_key[key], key=lambda row: row["fd_ref"])
        for row in rows_by_key[key]:
            mark = {True: "bundled", False: "loses to its plain solver: left out", None: ""}[row["kept"]]
            fd = f"**{row['fd_ref']:.2f}**" if row is best else f"{row['fd_ref']:.2f}"
            lines.append(
                f"| {row['nfe']} | {row['guidance']:g} | {row['solver']} | {row['schedule']} | "
                f"{row['rmse_ref']:.3f} | {fd} | {row['fd_data']:.2f} | {mark} |"
            )
    return lines


def calibrated() -> list[str]:
    """Return the lines of a Markdown table of the calibrated predictors beside the best other solvers.

    For each NFE and guidance it has the lowest error and Fréchet distance of solvers without a predictor,
    those of predictors of the quick and the normal calibration, and the ratios of the latter to the former.
    Only the measurements with the most images count."""
    names = ["NFE", "guidance", "noises", "best other", "quick", "normal", "quick / best", "normal / best"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    rows = [row for row in json.loads(RESULTS.read_text()) if "solver" in row]
    large = {
        g: max(row["noises"] for row in rows if row["guidance"] == g) for g in {r["guidance"] for r in rows}
    }
    rows = [row for row in rows if row["noises"] == large[row["guidance"]]]
    measures = "rmse_ref", "fd_ref"

    def text(values: dict[str, float] | None) -> str:
        return f"{values['rmse_ref']:.3f} / {values['fd_ref']:.3f}" if values else ""

    for guidance, nfe in sorted({(row["guidance"], row["nfe"]) for row in rows if row["nfe"] < 100}):
        group = [row for row in rows if (row["guidance"], row["nfe"]) == (guidance, nfe)]
        others = [row for row in group if not row["predictor"]]
        best = {m: min(row[m] for row in others) for m in measures}
        calibrated_rows = [next((r for r in group if r["predictor"] == kind), None) for kind in KINDS]
        ratios = [r and {m: r[m] / best[m] for m in measures} for r in calibrated_rows]
        shares = [r and f"**{r['rmse_ref']:.2f}** / **{r['fd_ref']:.2f}**" for r in ratios]
        cells = [
            nfe,
            f"{guidance:g}",
            group[0]["noises"],
            text(best),
            *map(text, calibrated_rows),
            *(s or "" for s in shares),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def write(page: Path, tables: dict[str, list[str]]) -> None:
    """Replace each table of a Markdown file, between `<!-- name -->` and `<!-- end -->`, by new lines."""
    text = page.read_text()
    for name, lines in tables.items():
        head, rest = text.split(f"<!-- {name} -->\n")
        tail = rest.split("<!-- end -->", 1)[1]
        text = f"{head}<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->" + tail
    page.write_text(text)


def main() -> None:
    write(FOLDER / "README.md", {"files": files(), "measured": measured(), "calibrated": calibrated()})


if __name__ == "__main__":
    main()
