"""A real ComfyUI on this machine: start it with this pack, run workflows, get their images.

`python -m demo.comfyui install` installs a ComfyUI in .comfyui, or uses the one that COMFYUI_PATH names;
`python -m demo.comfyui serve` runs it on the CPU at a loopback address until interrupted.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .install import ROOT, find, install, tail
from .workflows import to_api

WORKFLOWS = ROOT / "example_workflows"
PACK = "comfyui-amed"  # name of the pack's folder in custom_nodes


class ServerError(RuntimeError):
    """ComfyUI did not start, ended, or does not answer; the message ends with the tail of its log."""


class GraphError(RuntimeError):
    """ComfyUI refused a workflow before running it."""


class RunError(RuntimeError):
    """A node failed while the workflow ran; `node` is the name of its class."""

    def __init__(self, message: str, node: str = ""):
        super().__init__(message)
        self.node = node


class Interrupted(RunError):
    """The run was stopped on request."""


@dataclass
class Result:
    """The outputs of a finished run of a workflow."""

    outputs: dict[str, dict]  # node id -> its ui dict (images, text, latents, ...)
    seconds: float
    server: "Server" = field(repr=False)

    def files(self, kind: str = "images", node: str | int | None = None) -> list[dict]:
        """Return the files that a node wrote, each as a dict of `filename`, `subfolder` and `type`.

        `kind` is the files' key in the node's output, e.g. "images". `node` is the node's id; None: files of
        all nodes."""
        chosen = self.outputs.values() if node is None else [self.outputs.get(str(node), {})]
        return [entry for ui in chosen for entry in ui.get(kind, [])]

    def images(self, node: str | int | None = None) -> list:
        """Return the images of a node (default: of all nodes) as uint8 arrays `[H, W, 3]`."""
        import numpy as np
        from PIL import Image

        return [
            np.asarray(Image.open(io.BytesIO(self.server.view(entry))).convert("RGB"))
            for entry in self.files("images", node)
        ]

    def text(self, node: str | int | None = None) -> str:
        """Return the text that a node shows, by default that of all nodes, joined by newlines."""
        return "\n".join(str(line) for line in self.files("text", node))


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_use(port: int) -> bool:
    """Return whether something listens on a port of 127.0.0.1."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A ComfyUI process on 127.0.0.1 with this pack as its only custom node.

    Use it as a context manager, or call `start()` and `stop()`.

    Args:
        base: folder of models, input, output and user data; by default a temporary one, removed at the end.
        port: port to listen on; by default a free one.
        pack: the folder of the pack to link into custom_nodes.
        threads: number of torch threads; 1 is fastest for the small demo model. None: torch's default.
        arguments: further arguments of ComfyUI's main.py.

    Its methods raise ServerError with the tail of the log if the process does not run or does not answer."""

    def __init__(
        self,
        base: Path | None = None,
        port: int | None = None,
        pack: Path = ROOT,
        threads: int | None = 1,
        arguments: tuple[str, ...] = (),
    ):
        self.temporary = base is None
        self.base = Path(base) if base else Path(tempfile.mkdtemp(prefix="amed-comfyui-"))
        self.port, self.pack, self.threads, self.arguments = port or free_port(), pack, threads, arguments
        self.url, self.client = f"http://127.0.0.1:{self.port}", uuid.uuid4().hex
        self.process: subprocess.Popen | None = None
        self.log_file = self.base / "comfyui.log"

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 600.0) -> "Server":
        """Start ComfyUI and wait until it answers, at most `timeout` seconds."""
        host = find()
        if host is None:
            raise ServerError(
                "no ComfyUI was found: run `python -m demo.comfyui install`, "
                "or set COMFYUI_PATH to a ComfyUI folder"
            )
        if in_use(self.port):
            raise ServerError(f"port {self.port} is in use: stop the program there, or choose another port")
        for name in ("models", "input", "output", "user", "temp", "custom_nodes"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / PACK
        if not link.is_symlink():
            link.symlink_to(self.pack, target_is_directory=True)
        command = [
            sys.executable,
            "-u",
            "main.py",
            "--cpu",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--database-url",
            "sqlite:///:memory:",
            *self.arguments,
        ]
        log = self.log_file.open("w")
        environment = os.environ | ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})
        self.process = subprocess.Popen(
            command, cwd=host, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        log.close()
        deadline = time.monotonic() + timeout
        try:
            while time.monotonic() < deadline:
                self.check_alive()
                with contextlib.suppress(OSError):
                    self.get("/system_stats")
                    return self
                time.sleep(0.2)
            raise ServerError(
                f"ComfyUI did not answer within {timeout:.0f} s: see the end of its log\n{tail(self.log())}"
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop ComfyUI, and remove its folder of models, input and output if that is a temporary one."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        if self.temporary:
            shutil.rmtree(self.base, ignore_errors=True)

    def log(self) -> str:
        """Return all that ComfyUI has printed so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def check_alive(self) -> None:
        """Raise ServerError if ComfyUI does not run."""
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise ServerError(
                f"ComfyUI is not running (exit code {code}): see the end of its log\n{tail(self.log())}"
            )

    def request(self, path: str, body: object = None) -> bytes:
        """Send a request to the server, POST if there is a body; return the content of the reply."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.read()

    def get(self, path: str) -> dict:
        return json.loads(self.request(path))

    def post(self, path: str, body: object) -> dict:
        answer = self.request(path, body)
        return json.loads(answer) if answer else {}

    def view(self, entry: dict) -> bytes:
        """Return the content of an output file; `entry` has its `filename`, `subfolder` and `type`."""
        return self.request("/view?" + urllib.parse.urlencode(entry))

    def interrupt(self) -> None:
        """Stop the run in progress."""
        self.request("/interrupt", {})

    def object_info(self) -> dict:
        """Return the inputs and outputs of every node, by class name."""
        return self.get("/object_info")

    def submit(self, graph: dict, workflow: dict | None = None) -> str:
        """Queue an API-format graph and return the run's id.

        `workflow`, the saved workflow, is put into the metadata of saved images. Raises GraphError with
        ComfyUI's reasons if it refuses the graph."""
        body = {"prompt": graph, "client_id": self.client}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            return self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise GraphError(refusal(json.loads(error.read()), graph)) from None

    def run(
        self,
        graph: dict,
        on_event: Callable[[str, dict], None] | None = None,
        timeout: float = 1800.0,
        workflow: dict | None = None,
    ) -> Result:
        """Run an API-format graph to its end.

        Args:
            graph: the graph, `{id: {class_type, inputs}}`.
            on_event: called as `on_event(type, data)` for each websocket message of this run, e.g. with
                ("progress", {"value", "max"}); binary messages (previews) give ("binary", {"bytes"}).
            timeout: seconds after which ServerError is raised.
            workflow: the saved workflow, put into the metadata of saved images.

        Raises GraphError, RunError, Interrupted or ServerError."""
        import websocket  # imported here because only runs need it

        self.check_alive()
        begin = time.monotonic()
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}"
        socket_ = websocket.create_connection(address, timeout=300)  # a busy machine may be slow
        socket_.settimeout(5)
        try:
            prompt = self.submit(graph, workflow)
            while True:
                if time.monotonic() - begin > timeout:
                    raise ServerError(
                        f"the run took longer than {timeout:.0f} s: raise `timeout`, or see the end of "
                        f"ComfyUI's log\n{tail(self.log())}"
                    )
                try:
                    message = socket_.recv()
                except websocket.WebSocketTimeoutException:
                    self.check_alive()
                    continue
                except (OSError, websocket.WebSocketException) as error:
                    time.sleep(0.3)
                    self.check_alive()
                    raise ServerError(
                        f"the websocket to ComfyUI was closed ({error}): see the end of its log\n"
                        f"{tail(self.log())}"
                    ) from None
                if not isinstance(message, str):  # e.g. a preview image
                    if on_event is not None:
                        on_event("binary", {"bytes": message})
                    continue
                event = json.loads(message)
                kind, data = event["type"], event["data"]
                if data.get("prompt_id", prompt) != prompt:
                    continue
                if on_event is not None:
                    on_event(kind, data)
                if kind == "execution_error":
                    raise RunError(data["exception_message"].strip(), data["node_type"])
                if kind == "execution_interrupted":
                    raise Interrupted(
                        "the run was interrupted: start it again to finish it", data.get("node_type", "")
                    )
                if kind == "execution_success":
                    break
        finally:
            socket_.close()
        seconds = time.monotonic() - begin
        while not (history := self.get(f"/history/{prompt}")):  # written a moment after the last message
            self.check_alive()
            time.sleep(0.02)
        return Result(history[prompt]["outputs"], seconds, self)

    def run_workflow(
        self, file: Path, change: Callable[[dict], None] | None = None, **options: object
    ) -> Result:
        """Run a saved workflow file; `change(graph)` may edit the API-format graph before it is sent."""
        graph = to_api(json.loads(Path(file).read_text()), self.object_info())
        if change is not None:
            change(graph)
        return self.run(graph, **options)


def refusal(answer: dict, graph: dict) -> str:
    """Return ComfyUI's reply to a graph it refused as one readable text."""
    lines = [answer.get("error", {}).get("message", "refused")]
    for node, problems in (answer.get("node_errors") or {}).items():
        for error in problems["errors"]:
            lines.append(f"{graph[node]['class_type']}: {error['message']}: {error['details']}")
    return "\n".join(lines)


def serve(port: int) -> None:
    """Run ComfyUI for a person until Ctrl-C; its data stay in .comfyui-data."""
    with Server(ROOT / ".comfyui-data", port, threads=None) as server:
        print(
            f"ComfyUI is running: {server.url}   (Ctrl-C stops it)\n"
            f"Open Workflow > Browse Templates > {PACK}, or drag a file of {WORKFLOWS} into the page.",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.process.wait()
            print(f"ComfyUI ended:\n{tail(server.log())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "command", choices=["install", "serve"], help="install ComfyUI, or run it until Ctrl-C"
    )
    parser.add_argument("--port", type=int, default=8188, help="the port `serve` listens on")
    options = parser.parse_args()
    try:
        install() if options.command == "install" else serve(options.port)
    except RuntimeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
