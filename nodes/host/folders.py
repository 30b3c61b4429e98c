"""ComfyUI's model folders and the library of predictors in them. Host: folder_paths.py."""

import hashlib
from pathlib import Path

import folder_paths

from ...amed import Library, PredictorError
from ...amed.files.code import code_of

FOLDER = "amed_predictors"
BUNDLED = Path(__file__).resolve().parents[2] / "predictors"


def add_folder() -> None:
    """Register models/amed_predictors as a model folder of ComfyUI; idempotent."""
    folder = Path(folder_paths.models_dir) / FOLDER
    folder_paths.add_model_folder_path(FOLDER, str(folder))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})  # else it lists every file


_library = Library([])


def library() -> Library:
    """Return the library: the user's predictor folders (see `user_folders`), then the bundled predictors."""
    _library.folders = [*user_folders(), BUNDLED]
    return _library


def content_hash(name: str | None) -> str:
    """Return a hash of a predictor file's content, by which ComfyUI sees that the file has changed.

    Args:
        name: the file's name in the library. None: return the hashes of all files, in one text.

    Returns:
        The hash; the error's text if the file cannot be loaded; "" if there is no such file."""
    files = library()
    if name is None:
        return " ".join(map(content_hash, files.names()))
    if name not in files.paths():
        return ""
    try:
        return hashlib.sha256(code_of(files.load(name)).encode()).hexdigest()
    except PredictorError as error:
        return str(error)


def user_folders() -> list[Path]:
    """Return models/amed_predictors and the folders that extra_model_paths.yaml adds to it.

    Only models/amed_predictors if it could not be registered as a model folder of ComfyUI."""
    if FOLDER not in folder_paths.folder_names_and_paths:
        return [Path(folder_paths.models_dir) / FOLDER]
    return [Path(p) for p in folder_paths.get_folder_paths(FOLDER)]


def user_folder() -> Path:
    """Return the folder where new predictors are saved: the first of `user_folders`."""
    return user_folders()[0]


def output_folder() -> Path:
    """Return the folder where ComfyUI saves images."""
    return Path(folder_paths.get_output_directory())
