"""`Library`, the predictor files of some folders by name."""

import os
import threading
from pathlib import Path

from .errors import PredictorError, printable
from .fitted import Fitted
from .store import load

Stamp = tuple[int, int]


def stamp_of(path: Path) -> Stamp:
    """Return a file's modification time in ns and its inode; (0, 0) if the file was deleted.

    If either has changed, the file is loaded again. Two files saved at once can have the same time."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_ino


class Library:
    """The predictor files of some folders, found by name and reloaded when they change. Thread-safe."""

    def __init__(self, folders: list[Path]):
        self.folders = [Path(f) for f in folders]  # the user's first, then the bundled ones
        self._cache: dict[Path, tuple[Stamp, Fitted | str]] = {}  # the predictor, or the message of its error
        self._lock = threading.RLock()  # protects the cache

    def paths(self) -> dict[str, Path]:
        """Return the path of each predictor file by name, e.g. "folder/mine.safetensors".

        Of two files with the same name, the one in the earlier folder counts."""
        paths: dict[str, Path] = {}
        for folder in self.folders:
            for path in sorted(folder.rglob("*.safetensors")) if os.path.isdir(folder) else ():
                paths.setdefault(printable(path.relative_to(folder).as_posix()), path)
        existing = set(paths.values())
        with self._lock:
            self._cache = {path: entry for path, entry in self._cache.items() if path in existing}
        return paths

    def names(self) -> list[str]:
        """Return the names of all predictor files, sorted."""
        return sorted(self.paths())

    def path(self, name: str) -> Path:
        """Return the path of the predictor file called `name`.

        Raises:
            PredictorError: if there is no such file; the message lists the names that exist.
        """
        paths = self.paths()
        if name not in paths:
            folders, names = " or ".join(map(str, self.folders)), ", ".join(sorted(paths)) or "none"
            raise PredictorError(
                f"no predictor named {name!r} in {folders}: choose one that exists there ({names})"
            )
        return paths[name]

    def load(self, name: str) -> Fitted:
        """Return the predictor called `name`. Raises PredictorError if it is missing or broken."""
        return self._load(self.path(name))

    def problems(self) -> list[str]:
        """Return an error message for each broken file."""
        results = (self._try(path) for path in self.paths().values())
        return [str(result) for result in results if isinstance(result, PredictorError)]

    def fitted(self) -> list[Fitted]:
        """Return all predictors that can be loaded, sorted by folder and file name."""
        return list(self.named().values())

    def named(self) -> dict[str, Fitted]:
        """Return all predictors that can be loaded, by file name, sorted by folder and file name."""
        results = {name: self._try(path) for name, path in self.paths().items()}
        return {name: result for name, result in results.items() if isinstance(result, Fitted)}

    def links_outside(self, path: Path) -> bool:
        """Return whether a predictor file is a link to a file outside the predictor folders."""
        if not path.is_symlink():
            return False
        real = Path(os.path.realpath(path))
        return not any(real.is_relative_to(os.path.realpath(folder)) for folder in self.folders)

    def _try(self, path: Path) -> Fitted | PredictorError:
        """Return the predictor in a file, or the error that prevented loading it."""
        try:
            return self._load(path)
        except PredictorError as error:
            return error

    def _load(self, path: Path) -> Fitted:
        """Return the predictor in a file, from the cache if the file has not changed since."""
        if self.links_outside(path):
            raise PredictorError(
                f"{printable(path)}: a link to a place outside the predictor folders: "
                "replace the link by the file itself"
            )
        stamp = stamp_of(path)
        with self._lock:
            if path not in self._cache or self._cache[path][0] != stamp:
                try:
                    self._cache[path] = stamp, load(path)
                except PredictorError as error:
                    self._cache[path] = stamp, str(error)
            result = self._cache[path][1]
        if isinstance(result, str):  # a cached exception would keep alive the frames that it passed through
            raise PredictorError(result)
        return result
