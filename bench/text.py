"""Tables and numbers of a page."""

from typing import Any


def table(head: list[str], body: list[list[Any]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + [
        "| " + " | ".join(str(cell) for cell in line) + " |" for line in body
    ]


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def guided(guidance: float) -> str:
    return "none" if guidance == 1 else f"{guidance:g}"


def verdict(value: float, goal: float, strictly: bool = False) -> str:
    if value < goal or (value == goal and not strictly):
        return "**reached**"
    return f"missed by {value - goal:.2f}"
