"""docs/TRUST.md, the results of the long runs. Each run replaces its own part and leaves the others.

put(Part("fuzz", "Broken predictor files", "make fuzz", "What is done.", [("files", "10,000")]))"""

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

Stress tests of AMED and their results. Each part is written by the command that it names (do not edit it
by hand); `make test` runs a quick form of each.
"""


@dataclass(frozen=True)
class Part:
    """One part of the page."""

    name: str  # its entry in ORDER
    title: str
    command: str  # command that makes the part, e.g. "make fuzz"
    about: str  # what was done, in a sentence or two
    rows: list[tuple[str, str]]  # (name, figure) of each result


def put(part: Part) -> None:
    """Write a part into docs/trust.json, and rewrite the page. Raises ValueError if ORDER does not have its
    name."""
    if part.name not in ORDER:
        raise ValueError(f"unknown part {part.name!r}: add it to ORDER, which has {', '.join(ORDER)}")
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    figures[part.name] = {k: v for k, v in asdict(part).items() if k != "name"}
    write(FIGURES, json.dumps({name: figures[name] for name in ORDER if name in figures}, indent=1) + "\n")
    write(PAGE, page({name: Part(name, **figures[name]) for name in ORDER if name in figures}))


def page(parts: dict[str, Part]) -> str:
    text = [HEAD]
    for part in parts.values():
        text += [f"## {part.title}\n", f"{part.about} `{part.command}`\n", "| | |\n|---|---|"]
        text += [f"| {name} | {figure} |" for name, figure in part.rows]
        text += [""]
    return "\n".join(text)


def write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    temporary = path.with_suffix(".part")
    temporary.write_text(text)
    os.replace(temporary, path)
