"""The predictors in some folders, by name."""

import os
import threading
from pathlib import Path

from .errors import PredictorError, shown
from .fitted import Fitted
from .store import load

Stamp = tuple[int, int]


def stamp_of(path: Path) -> Stamp:
    """What differs when a file was replaced: its time, and which it is, for the clock may stand for two."""
    try:
        seen = path.stat()
    except OSError:  # gone since it was listed
        return 0, 0
    return seen.st_mtime_ns, seen.st_ino


class Library:
    """The predictors in some folders (the user's first, then the bundled): by name. Threads may share one."""

    def __init__(self, folders: list[Path]):
        self.folders = [Path(f) for f in folders]
        self._cache: dict[Path, tuple[Stamp, Fitted | str]] = {}  # or why it does not load
        self._lock = threading.RLock()  # held around every use of the cache

    def paths(self) -> dict[str, Path]:
        """name -> file; of two with the same name, the first folder's."""
        paths: dict[str, Path] = {}
        for folder in self.folders:
            for path in sorted(folder.rglob("*.safetensors")) if os.path.isdir(folder) else ():
                paths.setdefault(shown(path.relative_to(folder).as_posix()), path)
        there = set(paths.values())
        with self._lock:
            self._cache = {path: read for path, read in self._cache.items() if path in there}
        return paths

    def names(self) -> list[str]:
        return sorted(self.paths())

    def path(self, name: str) -> Path:
        """Raises PredictorError naming what exists."""
        paths = self.paths()
        if name not in paths:
            there = ", ".join(sorted(paths))
            raise PredictorError(f"no predictor named {name!r} in {self.where()}; there are: {there}")
        return paths[name]

    def load(self, name: str) -> Fitted:
        return self._read(self.path(name))

    def problems(self) -> list[str]:
        """What is wrong with the files that do not load."""
        read = (self._try(path) for path in self.paths().values())
        return [str(result) for result in read if isinstance(result, PredictorError)]

    def fitted(self) -> list[Fitted]:
        """All that load, in the folders' order."""
        return list(self.named().values())

    def named(self) -> dict[str, Fitted]:
        """name -> predictor, of all that load, in the folders' order."""
        read = {name: self._try(path) for name, path in self.paths().items()}
        return {name: result for name, result in read.items() if isinstance(result, Fitted)}

    def where(self) -> str:
        return " or ".join(str(f) for f in self.folders)

    def leaves(self, path: Path) -> bool:
        """Whether a file of these folders is a link to a place outside them. (No linked folder is
        searched.)"""
        if not path.is_symlink():
            return False
        real = Path(os.path.realpath(path))
        return not any(real.is_relative_to(os.path.realpath(folder)) for folder in self.folders)

    def _try(self, path: Path) -> Fitted | PredictorError:
        try:
            return self._read(path)
        except PredictorError as error:
            return error

    def _read(self, path: Path) -> Fitted:
        if self.leaves(path):
            raise PredictorError(f"{shown(path)}: a link out of its folder: put the file itself there")
        changed = stamp_of(path)
        with self._lock:
            if path not in self._cache or self._cache[path][0] != changed:
                try:
                    self._cache[path] = changed, load(path)
                except PredictorError as error:
                    self._cache[path] = changed, str(error)
            result = self._cache[path][1]
        if isinstance(
            result, str
        ):  # a new error each time: one that is kept keeps the frames it went through
            raise PredictorError(result)
        return result
