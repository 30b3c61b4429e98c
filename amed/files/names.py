"""Names of predictor files."""

import re

LONGEST_NAME = 180  # bytes: file systems take 255, of which saving and numbering need some
LONGEST_PART = 80  # bytes of a name that is made up of several
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def file_name(name: str) -> str:
    """A predictor's file name from what a user typed. Raises ValueError for what is no plain name."""
    stem = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"\w[\w .+-]*", stem):
        raise ValueError(f"{name[:99]!r} is no file name: use letters, digits, spaces and . _ + -")
    if DEVICES.fullmatch(stem) or len(stem.encode()) > LONGEST_NAME:
        raise ValueError(f"{name[:99]!r} is no file name: too long, or Windows' name for a device")
    return f"{stem}.safetensors"


def as_name(text: str, otherwise: str = "model") -> str:
    """Any text as a part of a predictor's name: what a file name cannot hold becomes a hyphen."""
    short = re.sub(r"[^\w+]+", "-", text).strip("-+").encode()[:LONGEST_PART]
    return short.decode(errors="ignore") or otherwise


def saved_as(name: str, nfe: int, guidance: float, passes: int | None = None) -> str:
    """The file a fit is saved as. Raises ValueError for a name that is none."""
    return file_name(f"{name}-nfe{nfe}-cfg{guidance:g}" + (f"-passes{passes}" if passes else ""))
