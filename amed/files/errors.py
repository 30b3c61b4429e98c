"""The errors of predictor files, and what their messages are made of."""

from pathlib import Path


class PredictorError(ValueError):
    """A predictor file that is missing, broken or not what was asked for. The message names file and
    field."""


class UnsavedError(PredictorError):
    """A predictor file that the disk did not take: full, or not to be written to."""


def shown(path: str | Path) -> str:
    """A path as text that can be printed and sent: the bytes of a file's name may be none."""
    return str(path).encode("utf-8", "replace").decode()


def brief(error: Exception, most: int = 600) -> str:
    """What an error says, without all of the long list in it."""
    text = str(error)
    return text if len(text) <= most else f"{text[: most - 50]} ... {text[-40:]}"
