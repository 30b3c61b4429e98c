"""The tables of predictors/README.md, written into it: `python -m demo.tables`.

From the files themselves, predictors/measured.json (made by `python -m demo.fit`) and
predictors/calibrated.json (by `python -m demo.calibrate`)."""

import json
from pathlib import Path

from amed import load

from .fit import FOLDER


def files() -> list[str]:
    """A line a bundled file."""
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
    """For each NFE and guidance the plain solvers, each at its best setting, and the fitted predictors."""
    head = "| NFE | guidance | solver | schedule | error | FD to reference | FD to data | |"
    lines = [head, "|" + "---|" * 8]
    rows_of = json.loads((FOLDER / "measured.json").read_text())
    for key in sorted(rows_of, key=lambda k: (float(k.split()[1]), int(k.split()[0]))):
        best = min(rows_of[key], key=lambda row: row["fd_ref"])
        for row in rows_of[key]:
            mark = {True: "bundled", False: "loses to its plain solver: left out", None: ""}[row["kept"]]
            fd = f"**{row['fd_ref']:.2f}**" if row is best else f"{row['fd_ref']:.2f}"
            lines.append(
                f"| {row['nfe']} | {row['guidance']:g} | {row['solver']} | {row['schedule']} | "
                f"{row['rmse_ref']:.3f} | {fd} | {row['fd_data']:.2f} | {mark} |"
            )
    return lines


def calibrated() -> list[str]:
    """For each NFE and guidance: the least error and the least Fréchet distance of any plain solver at any
    setting, AMED-Solver by Algorithm 1, the quick and the normal calibration."""
    names = ["NFE", "guidance", "best plain", "AMED-Solver, Algorithm 1", "quick", "normal"]
    names.append("normal / best plain")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]

    def both(row: dict | None) -> str:
        return f"{row['rmse_ref']:.3f} / {row['fd_ref']:.2f}" if row else ""

    rows_of = json.loads((FOLDER / "calibrated.json").read_text())
    for key in sorted(rows_of, key=lambda k: (float(k.split()[1]), int(k.split()[0]))):
        rows = {row.get("how", ""): row for row in rows_of[key] if row["solver"] == "amed_multistep"}
        plain = [row for row in rows_of[key] if "how" not in row]
        best = {name: min(row[name] for row in plain) for name in ("rmse_ref", "fd_ref")}
        paper = next((row for row in rows_of[key] if row["solver"].startswith("AMED-Solver")), None)
        cells = [*key.split(), both(best), both(paper), both(rows.get("quick")), both(rows.get("normal"))]
        ratio = rows.get("normal")
        cells.append(f"**{ratio['rmse_ref_ratio']:.2f}** / **{ratio['fd_ref_ratio']:.2f}**" if ratio else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write(page: Path, tables: dict[str, list[str]]) -> None:
    """Put each table between its marks."""
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
