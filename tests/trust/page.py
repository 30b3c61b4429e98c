"""docs/TRUST.md: what the long runs found. Each puts its own part here; the others stay as they are.

put(Part("fuzz", "Broken predictor files", "make fuzz", "What is done.", [("files", "10,000")]))
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIGURES, PAGE = ROOT / "docs" / "trust.json", ROOT / "docs" / "TRUST.md"
ORDER = (
    "fuzz",
    "pickles",
    "matrix",
    "graphs",
    "hosts",
    "faults",
    "kills",
    "memory",
    "numerics",
    "soak",
    "supply",
)
HEAD = """# Trust

What is thrown at AMED, and what came of it. Each part is made by the command it names, the quick form of each
runs in `make test`. Written by the runs: not by hand.
"""


@dataclass(frozen=True)
class Part:
    """One part of the page: its name in ORDER, a title, the command that made it, what it does in a sentence
    or two, and rows of (what, figure)."""

    name: str
    title: str
    command: str
    about: str
    rows: list[tuple[str, str]]


def put(part: Part) -> None:
    """Write a part into docs/trust.json, and the page anew. Raises ValueError for a name that ORDER has
    not."""
    if part.name not in ORDER:
        raise ValueError(f"part {part.name!r}: name it in ORDER, which has {', '.join(ORDER)}")
    known = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    known[part.name] = {k: v for k, v in asdict(part).items() if k != "name"}
    write(FIGURES, json.dumps({name: known[name] for name in ORDER if name in known}, indent=1) + "\n")
    write(PAGE, page({name: Part(name, **known[name]) for name in ORDER if name in known}))


def page(parts: dict[str, Part]) -> str:
    text = [HEAD]
    for part in parts.values():
        text += [f"## {part.title}\n", f"{part.about} `{part.command}`\n", "| | |\n|---|---|"]
        text += [f"| {what} | {figure} |" for what, figure in part.rows]
        text += [""]
    return "\n".join(text)


def write(path: Path, text: str) -> None:
    """As a whole or not at all."""
    made = path.with_suffix(".part")
    made.write_text(text)
    os.replace(made, path)
