"""The engine knows no host, and importing it is quick and quiet."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("comfy", "folder_paths", "nodes", "modules", "k_diffusion", "ldm_patched", "backend", "launch")
TOOLS = ("demo", "bench", "predictors", "hosts")  # this repository's, which are not the engine's either


def test_engine_imports_no_host():
    code = (
        "import sys, time; import torch; u = time.perf_counter(); import amed; "
        "print(time.perf_counter() - u); import importlib, pkgutil; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(amed.__path__, 'amed.') "
        "if m.name != 'amed.__main__']; print(time.perf_counter() - u); "
        f"bad = [m for m in sys.modules if m.split('.')[0] in {HOSTS + TOOLS!r}]; assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    engine, everything = map(float, done.stdout.split())
    assert engine < everything < 2.0


def test_the_comfyui_door_was_not_imported():
    assert not any(
        (getattr(m, "__file__", None) or "") == str(ROOT / "__init__.py") for m in list(sys.modules.values())
    )
