"""`amed_webui`, loaded by path as scripts/amed_webui.py loads it."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "webui"

if "amed_webui" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "amed_webui", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    sys.modules["amed_webui"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["amed_webui"])
