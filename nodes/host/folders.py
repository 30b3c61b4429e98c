"""The host's model folders, and the library in them. Host: folder_paths.py."""

import hashlib
from pathlib import Path

import folder_paths

from ...amed import Library, PredictorError
from ...amed.files.code import code_of

FOLDER = "amed_predictors"
BUNDLED = Path(__file__).resolve().parents[2] / "predictors"


def add_folder() -> None:
    """models/amed_predictors as a folder of the host's; idempotent. Without the last line it lists every
    file."""
    folder = Path(folder_paths.models_dir) / FOLDER
    folder_paths.add_model_folder_path(FOLDER, str(folder))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


_library = Library([])


def library() -> Library:
    """The user's predictors (models/amed_predictors, and wherever extra_model_paths says), then the
    bundled."""
    _library.folders = [*user_folders(), BUNDLED]
    return _library


def content(name: str | None) -> str:
    """A code of what a predictor file holds; why it does not load; "" where there is no such file. None: of
    all files, where the name is linked and not known yet."""
    files = library()
    if name is None:
        return " ".join(map(content, files.names()))
    if name not in files.paths():
        return ""
    try:
        return hashlib.sha256(code_of(files.load(name)).encode()).hexdigest()
    except PredictorError as error:
        return str(error)


def user_folders() -> list[Path]:
    """models/amed_predictors, and wherever extra_model_paths says; the first alone where the host did not
    take it as a folder of its own."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        return [Path(folder_paths.models_dir) / FOLDER]
    return [Path(p) for p in folder_paths.get_folder_paths(FOLDER)]


def user_folder() -> Path:
    """Where new predictors are saved: the first folder of models/amed_predictors."""
    return user_folders()[0]


def output_folder() -> Path:
    """Where the host saves images."""
    return Path(folder_paths.get_output_directory())
