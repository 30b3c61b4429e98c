"""The predictors in some folders."""

from pathlib import Path

from .spec import PredictorError
from .store import Fitted, load


class Library:
    """The predictors in some folders (the user's first, then the bundled): by name."""

    def __init__(self, folders: list[Path]):
        self.folders = [Path(f) for f in folders]
        self._cache: dict[Path, tuple[float, Fitted | PredictorError]] = {}

    def paths(self) -> dict[str, Path]:
        """name -> file; of two with the same name, the first folder's."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else ():
                found.setdefault(path.relative_to(folder).as_posix(), path)
        return found

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

    def _try(self, path: Path) -> Fitted | PredictorError:
        try:
            return self._read(path)
        except PredictorError as error:
            return error

    def _read(self, path: Path) -> Fitted:
        stamp = path.stat().st_mtime if path.is_file() else 0.0
        if path not in self._cache or self._cache[path][0] != stamp:
            try:
                self._cache[path] = stamp, load(path)
            except PredictorError as error:
                self._cache[path] = stamp, error
        result = self._cache[path][1]
        if isinstance(result, PredictorError):
            raise result
        return result
