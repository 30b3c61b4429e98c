"""A real WebUI: its headless server on loopback, with AMED, tiny random checkpoints, and an extension that
makes the U-Net fail on request."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FLAGS = {
    "A1111_PATH": ["--use-cpu", "all", "--no-half", "--do-not-download-clip"],
    "FORGE_PATH": ["--always-cpu"],
    "REFORGE_PATH": ["--always-cpu"],
}
UP = 300  # seconds


class Refused(Exception):
    """An answer whose status is not 200; `text` is its body."""

    def __init__(self, status: int, text: str):
        super().__init__(f"HTTP {status}: {text[:2000]}")
        self.status, self.text = status, text


def python_of(variable: str, folder: Path) -> str:
    """Return the host's interpreter: A1111_PYTHON or FORGE_PYTHON, or the venv that its launcher makes."""
    interpreter = os.environ.get(variable.replace("_PATH", "_PYTHON"))
    places = [folder / "venv" / "bin" / "python", folder / "venv" / "Scripts" / "python.exe"]
    candidates = [interpreter] if interpreter else [str(place) for place in places if place.exists()]
    return candidates[0] if candidates else sys.executable


class Server:
    """`python launch.py` with a separate data folder; the host's own folder is only read."""

    def __init__(self, variable: str, data: Path):
        self.folder, self.data = Path(os.environ[variable]).resolve(), data
        self.python, self.kind = python_of(variable, self.folder), variable
        self.models = data / "models" / "Stable-diffusion"
        for seed, name in enumerate(("tiny", "other")):
            command = [self.python, str(ROOT / "tests" / "webui" / "tiny_checkpoints.py"), str(self.folder)]
            subprocess.run([*command, str(self.models), str(seed), name], check=True, capture_output=True)
        (data / "extensions").mkdir()
        for name, place in (("amed", ROOT), ("failing", ROOT / "tests" / "webui" / "failing")):
            (data / "extensions" / name).symlink_to(place, target_is_directory=True)
        settings = {"sd_model_checkpoint": "tiny.safetensors", "show_progress_type": "Approx cheap"}
        (data / "config.json").write_text(json.dumps(settings))  # a preview method that needs no download
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log_file = data / "log.txt"
        self.process = self.start()

    def start(self) -> subprocess.Popen:
        command = [
            self.python, "launch.py", "--data-dir", str(self.data), "--port", str(self.port), "--api",
            "--skip-prepare-environment", "--skip-torch-cuda-test", *FLAGS[self.kind],
        ]  # fmt: skip
        quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False",
                 "PYTHONUNBUFFERED": "1"}  # fmt: skip
        with self.log_file.open("w") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **quiet}, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + UP
        while time.monotonic() < end and process.poll() is None:
            # AMED's API is added last, when the host tells all extensions that the server is up; a request
            # before that would freeze the list of middlewares, and the host could not add to it
            if "Startup time" in self.log:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/amed/predictors", timeout=60)
                return process
            time.sleep(1)
        process.kill()
        raise RuntimeError(f"{self.folder} did not start:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def get(self, path: str) -> Any:
        return self.request(path, None)

    def post(self, path: str, payload: dict | None = None) -> Any:
        return self.request(path, json.dumps(payload or {}).encode())

    def request(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=3600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode()) from None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
