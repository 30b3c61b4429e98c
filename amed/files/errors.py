"""The errors of predictor files, and helpers for their messages."""

from pathlib import Path


class PredictorError(ValueError):
    """A predictor that is missing, broken, unsuitable or cannot be saved; the message names its file."""


class UnsavedError(PredictorError):
    """A predictor file that could not be written: the disk is full, or the folder is read-only."""


def printable(path: str | Path) -> str:
    """Return a path as text; bytes in a file name that are not valid text become "?"."""
    return str(path).encode("utf-8", "replace").decode()


def shortened(error: Exception, most: int = 600) -> str:
    """Return the message of an error, its middle replaced by "..." if it has more than `most` characters."""
    text = str(error)
    return text if len(text) <= most else f"{text[: most - 50]} ... {text[-40:]}"
