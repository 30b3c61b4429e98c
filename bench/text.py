"""Formatting of the tables and numbers of a page."""

from typing import Any


def table(head: list[str], body: list[list[Any]]) -> list[str]:
    """Return a Markdown table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + [
        "| " + " | ".join(str(cell) for cell in line) + " |" for line in body
    ]


def number(value: float) -> str:
    """Format a number: three decimals below 1, two from there on."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def guided(guidance: float) -> str:
    """Format a guidance scale; "none" for 1."""
    return "none" if guidance == 1 else f"{guidance:g}"


def verdict(value: float, goal: float, strictly: bool = False) -> str:
    """Say whether a value is at most its goal (`strictly`: below it), or by how much it misses it."""
    if value < goal or (value == goal and not strictly):
        return "**reached**"
    return f"missed by {value - goal:.2f}"
