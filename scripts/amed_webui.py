"""Load AMED into Stable Diffusion WebUI (AUTOMATIC1111, Forge, reForge). ComfyUI never reads this file.

The WebUI runs each script by its path, with the extension's folder on sys.path only while it does so. The
engine is imported as `amed`; the folders webui/ and pictures/ as `amed_webui` and `amed_pictures`, because
another extension may use the plain names."""

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"amed_pictures": "pictures", "amed_webui": "webui"}  # package name -> folder of this repository


def load_engine() -> None:
    """Import the package `amed` from this repository.

    Raises ImportError if another package named `amed` is imported instead."""
    sys.path.insert(0, str(ROOT))
    try:
        engine = importlib.import_module("amed")
    finally:
        sys.path.remove(str(ROOT))
    if Path(engine.__file__).resolve().parent != ROOT / "amed":
        raise ImportError(
            f"another package is called amed ({engine.__file__}): remove or rename it, then restart the WebUI"
        )


def load_package(name: str, folder: Path) -> None:
    """Import a folder as the package `name`, unless a package of that name is loaded already."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def load_extension():
    """Load the engine and this extension's packages; return the module `amed_webui.extension`."""
    load_engine()
    for name, folder in FOLDERS.items():
        load_package(name, ROOT / folder)
    return importlib.import_module("amed_webui.extension")


try:
    AmedScript = load_extension().install()  # the WebUI looks for subclasses of its Script in this module
except Exception as error:  # the WebUI must start without AMED
    missing = getattr(error, "name", None) or ""
    advice = " (this WebUI is too old: use version 1.9 or newer)" if missing.startswith("modules.") else ""
    print(f"AMED: not loaded, the WebUI starts without it: {type(error).__name__}: {error}{advice}")
