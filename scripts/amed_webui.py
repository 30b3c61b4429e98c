"""The Stable Diffusion WebUI's door (AUTOMATIC1111, Forge, reForge). ComfyUI never reads this file.

The host loads it by path, with the extension's folder on sys.path for that moment only. The engine is
imported as `amed`, the rest as `amed_webui` by path, so that no name of ours can stand for another's."""

import importlib
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load():
    """The `amed_webui` package. Raises ImportError if another package has the name of our engine."""
    sys.path.insert(0, str(ROOT))
    try:
        engine = importlib.import_module("amed")
    finally:
        sys.path.remove(str(ROOT))
    if Path(engine.__file__).resolve().parent != ROOT / "amed":
        raise ImportError(f"another package is called amed: {engine.__file__}")
    if "amed_webui" not in sys.modules:
        folder = ROOT / "webui"
        spec = importlib.util.spec_from_file_location(
            "amed_webui",
            folder / "__init__.py",
            submodule_search_locations=[str(folder), str(ROOT / "hosts")],
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["amed_webui"] = module
        spec.loader.exec_module(module)
    return importlib.import_module("amed_webui.door")


try:
    AmedScript = load().install()
except Exception as error:  # the WebUI must start as if we were not there
    old = getattr(error, "name", None) or ""
    advice = " (this WebUI is too old: 1.9 has it)" if old.startswith("modules.") else ""
    print(f"AMED: not loaded, the WebUI goes on without it: {type(error).__name__}: {error}{advice}")
