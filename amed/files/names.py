"""File names of predictors."""

import re

MAX_NAME = 180  # bytes; file systems allow 255, and saving and numbering add some
MAX_PART = 80  # bytes of each part of a generated name
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def file_name(name: str) -> str:
    """Return the file name NAME.safetensors for a name that a user typed.

    Raises:
        ValueError: if the name cannot be a file name on every system.
    """
    stem = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"\w[\w .+-]*", stem):
        raise ValueError(
            f"{name[:99]!r} is not a valid file name: begin with a letter, a digit or _, and use only "
            "letters, digits, spaces and . _ + -"
        )
    if len(stem.encode()) > MAX_NAME:
        raise ValueError(f"{name[:99]!r} is not a valid file name: too long; shorten it")
    if DEVICES.fullmatch(stem):
        raise ValueError(
            f"{name[:99]!r} is not a valid file name: Windows reserves it for a device; choose another"
        )
    return f"{stem}.safetensors"


def name_part(text: str, default: str = "model") -> str:
    """Return `text` as a part of a predictor's file name, e.g. "my-model" for "my/model".

    Args:
        default: returned if `text` has no character that is allowed in a file name.
    """
    short = re.sub(r"[^\w+]+", "-", text).strip("-+").encode()[:MAX_PART]
    return short.decode(errors="ignore") or default


def fit_file_name(name: str, nfe: int, guidance: float, passes: int | None = None) -> str:
    """Return a predictor's file name, e.g. "NAME-nfe6-cfg4-passes10.safetensors".

    Args:
        name: the beginning of the file name.
        nfe: evaluations of the model per image.
        guidance: guidance scale.
        passes: network passes per image (two per evaluation with guidance); None: not part of the name.

    Raises:
        ValueError: if `name` is not a valid file name.
    """
    return file_name(f"{name}-nfe{nfe}-cfg{guidance:g}" + (f"-passes{passes}" if passes else ""))
