"""The engine imports no host, and importing it is quick."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("comfy", "folder_paths", "nodes", "modules", "k_diffusion", "ldm_patched", "backend", "launch")
TOOLS = ("demo", "bench", "predictors", "pictures")  # this repository's, which are not the engine's either


def test_engine_imports_no_host_and_little_else():
    """Besides torch all its modules import only safetensors, so that a host starts quickly."""
    code = (
        "import sys, torch; before = set(sys.modules); import amed, importlib, pkgutil; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(amed.__path__, 'amed.') "
        "if m.name != 'amed.__main__']; print(*{m.split('.')[0] for m in {*sys.modules} - before})"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    imported = set(process.stdout.split())
    assert imported - sys.stdlib_module_names == {"amed", "safetensors"}
    assert not imported & {*HOSTS, *TOOLS}


def test_the_comfyui_entry_point_was_not_imported():
    assert not any(
        (getattr(m, "__file__", None) or "") == str(ROOT / "__init__.py") for m in list(sys.modules.values())
    )
