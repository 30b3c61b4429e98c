"""Names of host features that an adapter treats as optional, collected from its source code."""

import ast
from pathlib import Path

from demo.comfyui import ROOT


def optional_names_in(folder: str) -> set[str]:
    """Return the optional names of all files in a folder of the pack."""
    return set().union(*(optional_names(file) for file in (ROOT / folder).rglob("*.py")))


def optional_names(file: Path) -> set[str]:
    """Return names that a file passes to getattr or hasattr, and modules that it imports in a `try`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            names |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant)}
        if isinstance(node, ast.Try):
            within = [n for part in node.body for n in ast.walk(part)]
            names |= {n.module for n in within if isinstance(n, ast.ImportFrom) and not n.level}
    return names
