"""The tables of predictors/README.md from predictors/measured.json: `python -m demo.tables`."""

import json

from .fit import FOLDER


def lines() -> list[str]:
    """Markdown: for each NFE and guidance the best plain solver of each kind and the fitted predictors."""
    found = [
        "| NFE | guidance | solver | schedule | error | FD to reference | FD to data | |",
        "|" + "---|" * 8,
    ]
    measured = json.loads((FOLDER / "measured.json").read_text())
    for key in sorted(measured, key=lambda k: (float(k.split()[1]), int(k.split()[0]))):
        best = min(measured[key], key=lambda row: row["fd_ref"])
        for row in measured[key]:
            mark = {True: "bundled", False: "not bundled: loses to its plain solver", None: ""}[row["kept"]]
            fd = f"**{row['fd_ref']:.2f}**" if row is best else f"{row['fd_ref']:.2f}"
            found.append(
                f"| {row['nfe']} | {row['guidance']:g} | {row['solver']} | {row['schedule']} | "
                f"{row['rmse_ref']:.3f} | {fd} | {row['fd_data']:.2f} | {mark} |"
            )
    return found


if __name__ == "__main__":
    print("\n".join(lines()))
