"""Load and save predictor files (safetensors).

    fitted = load("predictors/emoji32-amed-nfe5-cfg1.safetensors")
    save("mine.safetensors", fitted)

Every field and tensor is checked when a file is loaded. Nothing is ever unpickled."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open

from .errors import PredictorError, UnsavedError, printable, shortened
from .fitted import Fitted, base_times, build_predictor, fitted_from, tensors_of
from .spec import from_header, to_header

MAX_BYTES = 4 * 2**20  # of a predictor file; the paper's network has 38,000, a table of 200 steps a million
TRIAL_BYTES = 64_000  # written to test whether a predictor can be saved; more than a network or usual table
ABANDONED = 3600.0  # seconds after which a temporary file belongs to a process that was killed


def load(path: str | os.PathLike[str]) -> Fitted:
    """Read and check a predictor file.

    Raises:
        PredictorError: if the file is missing or invalid; the message names the file and the field.
    """
    path = Path(path)
    place = printable(path)
    if not os.path.lexists(path):
        raise PredictorError(f"{place}: no such predictor file: choose another, or put the file there")
    if not os.path.isfile(path):
        raise PredictorError(
            f"{place}: not a file, but a folder, a pipe or a broken link: choose a predictor file"
        )
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(
                f"{size} bytes are too many for a predictor (at most {MAX_BYTES}), so this is not an AMED "
                "predictor: choose another file"
            )
        with safe_open(path, framework="pt") as file:
            spec = from_header(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return fitted_from(spec, tensors, printable(path.name))
    except SafetensorError as error:
        raise PredictorError(
            f"{place}: incomplete, or not a safetensors file ({error}): download or calibrate it again"
        ) from None
    except OSError as error:
        raise PredictorError(
            f"{place}: cannot be read ({error.strerror or error}): check the file's permissions"
        ) from None
    except ValueError as error:
        problem_and_remedy = shortened(error)
        raise PredictorError(f"{place}: cannot be loaded: {problem_and_remedy}") from None


def save(path: str | os.PathLike[str], fitted: Fitted) -> Path:
    """Write a predictor to `path`, replacing a file there, and return the path.

    A temporary file is written first and then renamed, so that an error leaves the old file unchanged.

    Raises:
        PredictorError: if the predictor contradicts its own header.
        UnsavedError: if the file cannot be written.
    """
    path, tensors = Path(path), tensors_of(fitted)
    try:
        base_times(fitted.spec, tensors)
        build_predictor(fitted.spec, tensors)
    except ValueError as error:
        raise PredictorError(
            f"{path}: not saved, because the predictor contradicts itself ({error}): calibrate it again"
        ) from None
    data = safetensors.torch.save(tensors, metadata=to_header(fitted.spec))
    try:
        temporary = write_temporary(path, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unsaved_error(path, error) from error
    return path


def write_temporary(path: Path, data: bytes) -> Path:
    """Write `data` to a new temporary file beside `path`, flushed to the disk, and return the temporary path.

    Raises OSError if this fails; then no file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files in `folder` that were left by killed processes."""
    for temporary in folder.glob(".*.safetensors.*.part"):
        with suppress(OSError):
            if time.time() - temporary.stat().st_mtime > ABANDONED:
                temporary.unlink()


def check_writable(path: Path) -> None:
    """Raise UnsavedError if no predictor can be written to `path`; call this before a long fit."""
    try:
        write_temporary(path, bytes(TRIAL_BYTES)).unlink()
    except OSError as error:
        raise unsaved_error(path, error) from error


def unsaved_error(path: Path, error: OSError) -> UnsavedError:
    """Return the UnsavedError for a file that could not be written because of the OSError `error`."""
    return UnsavedError(
        f"{path}: not saved: {error.strerror or error}; free some space in {path.parent}, or make it writable"
    )
