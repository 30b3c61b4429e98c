"""Install missing packages of requirements.txt. The WebUIs and ComfyUI-Manager run this at every start.

Quick if nothing is missing. Never installs torch."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"


def missing_packages() -> list[str]:
    """Return requirements whose module cannot be found; module and distribution have the same name."""
    packages = []
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if REQUIREMENTS.is_file() else ():
        requirement = line.partition("#")[0].strip()
        name = re.match(r"[A-Za-z0-9]\w*", requirement)  # an option, e.g. -r, is not a name
        if name and not name[0].startswith("torch") and importlib.util.find_spec(name[0]) is None:
            packages.append(requirement)
    return packages


def main() -> None:
    packages = missing_packages()
    if not packages:
        return
    print(f"AMED: installing {', '.join(packages)}")
    process = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *packages]
    )
    if process.returncode:  # the host must start anyway
        print(
            f"AMED: could not install {', '.join(packages)}. Install by hand: "
            + f"{sys.executable} -m pip install {' '.join(packages)}"
        )


if __name__ == "__main__":
    main()
