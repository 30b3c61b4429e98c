"""Formatting of the tables and numbers of a page."""

from typing import Any


def table(head: list[str], body: list[list[Any]]) -> list[str]:
    """Return the lines of a Markdown table with the headings `head` and the lines `body`."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + [
        "| " + " | ".join(str(cell) for cell in line) + " |" for line in body
    ]


def number(value: float) -> str:
    """Format a number with three decimals if it is below 1, otherwise with two."""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def guided(guidance: float) -> str:
    """Format a guidance scale as text; "none" for 1, which means no guidance."""
    return "none" if guidance == 1 else f"{guidance:g}"


def verdict(value: float, goal: float, strictly: bool = False) -> str:
    """Say whether a value reaches its goal, e.g. "missed by 0.10".

    It must be at most the goal, or below it if `strictly`."""
    if value < goal or (value == goal and not strictly):
        return "**reached**"
    return f"missed by {value - goal:.2f}"
