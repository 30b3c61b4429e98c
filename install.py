"""Run by the WebUIs and by ComfyUI-Manager at every start: install what is missing of requirements.txt.

Quick when nothing is missing, and never touches torch."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"


def missing() -> list[str]:
    """Requirements whose module cannot be found; the module is called as the distribution."""
    wanted = []
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if REQUIREMENTS.is_file() else ():
        requirement = line.partition("#")[0].strip()
        name = re.match(r"[A-Za-z0-9]\w*", requirement)  # an option, as -r, is no name
        if name and not name[0].startswith("torch") and importlib.util.find_spec(name[0]) is None:
            wanted.append(requirement)
    return wanted


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
