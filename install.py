"""Run by the WebUIs and by ComfyUI-Manager at every start: install what is missing of requirements.txt.

Quick when nothing is missing, and never touches torch."""

import importlib.util
import subprocess
import sys

NEEDED = {"einops": "einops", "numpy": "numpy", "safetensors": "safetensors>=0.4.2"}  # module: requirement


def missing() -> list[str]:
    """Requirements whose module cannot be found."""
    return [requirement for module, requirement in NEEDED.items() if importlib.util.find_spec(module) is None]


def main() -> None:
    wanted = missing()
    if not wanted:
        return
    print(f"AMED: installing {', '.join(wanted)}")
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *wanted])
    if done.returncode:  # the host must start all the same
        print(
            f"AMED: could not install {', '.join(wanted)}; install by hand: {sys.executable} -m pip install "
            + " ".join(wanted)
        )


if __name__ == "__main__":
    main()
