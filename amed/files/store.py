"""Predictors in safetensors: everything about one stands in its header, and is checked when it is read.

    fitted = load("predictors/emoji32-amed-nfe5.safetensors")

Nothing is ever unpickled, and a file is written to the side and moved into place."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from .errors import PredictorError, UnsavedError, brief, shown
from .fitted import Fitted, build, checked, checked_base, tensors_of
from .spec import from_header, to_header

ROOM = 64_000  # bytes that every predictor fits into: the paper's network has 38,000
LEFT = 3600.0  # seconds after which nobody writes to a file at the side any more
LARGEST = 4 * 2**20  # bytes of a file: a network's are 38,000, a table's of 200 steps a million


def load(path: str | os.PathLike[str]) -> Fitted:
    """Read and validate a predictor file. Raises PredictorError naming the file and the field."""
    path = Path(path)
    place = shown(path)
    if not os.path.isfile(path):
        what = (
            "no file, but a folder, a pipe or a broken link"
            if os.path.lexists(path)
            else "no such predictor file"
        )
        raise PredictorError(f"{place}: {what}")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"{size} bytes are no predictor's (at most {LARGEST}): not an AMED predictor")
        with safe_open(path, framework="pt") as file:
            spec = from_header(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return checked(spec, tensors, shown(path.name))
    except SafetensorError as error:
        wrong = f"not a whole safetensors file ({error}); download or fit it again"
        raise PredictorError(f"{place}: {wrong}") from None
    except (ValueError, OSError) as error:
        raise PredictorError(f"{place}: {brief(error)}") from None


def save(path: str | os.PathLike[str], fitted: Fitted) -> Path:
    """Write a predictor file, to the side first and then moved into place; what is written loads again.

    Raises PredictorError when the predictor is inconsistent, UnsavedError (which is one) when it cannot be
    written; what was there stays."""
    path, tensors = Path(path), tensors_of(fitted)
    try:
        checked_base(fitted.spec, tensors)
        build(fitted.spec, tensors)
    except ValueError as error:
        raise PredictorError(f"{path}: not saved: {error}") from None
    data = safetensors.torch.save(tensors, metadata=to_header(fitted.spec))
    try:
        part = written(path, data)
        try:
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unsaved(path, error) from error
    return path


def written(path: Path, data: bytes) -> Path:
    """A file beside `path`, whole and on the disk, or none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def tidy(folder: Path) -> None:
    """Remove what was written to the side by those that were killed meanwhile. No list shows it."""
    for part in folder.glob(".*.safetensors.*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > LEFT:
                part.unlink()


def check_room(path: Path) -> None:
    """Raise UnsavedError if no predictor could be written there: to be asked before a long work."""
    try:
        written(path, bytes(ROOM)).unlink()
    except OSError as error:
        raise unsaved(path, error) from error


def unsaved(path: Path, error: OSError) -> UnsavedError:
    """What to raise for a file that the system did not take."""
    todo = f"free some space in {path.parent}, or see to it that files can be written there"
    return UnsavedError(f"{path}: not saved: {error.strerror or error}; {todo}")
