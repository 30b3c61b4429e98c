"""What a host's adapter can do without: the names it asks for, found in its source."""

import ast
from pathlib import Path

from demo.comfyui import ROOT


def asked_in(folder: str) -> set[str]:
    """Those of every file of a folder of the pack, and of its folders."""
    return set().union(*(asked_for(file) for file in (ROOT / folder).rglob("*.py")))


def asked_for(file: Path) -> set[str]:
    """Names in getattr and hasattr, and modules imported in a `try`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            names |= {a.value for a in node.args[1:2] if isinstance(a, ast.Constant)}
        if isinstance(node, ast.Try):
            within = [n for part in node.body for n in ast.walk(part)]
            names |= {n.module for n in within if isinstance(n, ast.ImportFrom) and not n.level}
    return names
