"""A run of a graph, and what it gave: latents, texts, counts, the nodes that ran, or the error."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load
from torch import Tensor

from demo.comfyui import GraphError, Interrupted, RunError, Server, ServerError

from .build import Built
from .ways import Sampled

TEXT = 3  # the kind of the host's binary message that puts a text on a node
PACK = "custom_nodes/comfyui-amed"
BEFORE = ("GraphWatch", "GraphBefore", "GraphAfter", "GraphSeen", "SaveLatent")


@dataclass(frozen=True)
class Error:
    node: str
    """The class of the node that failed; "" where the graph was refused before it ran."""
    message: str
    kind: str = "ValueError"
    """The exception's class."""
    place: str = ""
    """The file and line that raised it."""
    ours: bool = True
    """Whether a file of this pack raised it."""
    reached: bool = True
    """Whether a node or function of this pack was at work."""


@dataclass
class Run:
    sampled: Sampled
    latents: list[Tensor] = field(default_factory=list)
    """What was saved; several of a list."""
    said: dict[str, list[str]] = field(default_factory=dict)
    """Texts on nodes, by id."""
    executed: list[str] = field(default_factory=list)
    """Classes of the nodes that ran, not those from the cache."""
    seen: dict[str, int] | None = None
    after: dict[str, Any] | None = None
    error: Error | None = None
    died: str = ""
    """Where the server died or hung."""
    seconds: float = 0.0

    def texts(self, node: str) -> list[str]:
        return self.said.get(node, [])


def run(server: Server, built: Built, workflow: bool, timeout: float) -> Run:
    """Run a graph; nothing is raised for what goes wrong in it. workflow: with an empty one, as the page
    sends the one that is open."""
    made, told = Run(built.sampled), {}
    kinds = {name: node["class_type"] for name, node in built.nodes.items()}

    def event(kind: str, data: dict[str, Any]) -> None:
        if kind == "binary":
            number, rest = int.from_bytes(data["bytes"][:4], "big"), data["bytes"][4:]
            if number == TEXT:
                length = int.from_bytes(rest[:4], "big")
                node, text = rest[4 : 4 + length].decode(), rest[4 + length :].decode()
                told.setdefault(node, []).append(text)
        elif kind == "executing" and data.get("node"):
            made.executed.append(kinds.get(str(data["node"]), str(data["node"])))
        elif kind == "execution_error":
            made.error = error_of(data, built)

    empty = {"nodes": [], "links": [], "version": 0.4, "extra": {}} if workflow else None
    try:
        result = server.run(built.nodes, event, timeout=timeout, workflow=empty)
    except GraphError as error:
        made.error = Error("", str(error), "GraphError", "the host's check of inputs", ours=False)
    except Interrupted:
        made.error = Error("", "interrupted", "Interrupted", ours=False)
    except RunError as error:
        made.error = made.error or Error(error.node, str(error), "unknown", ours=False)
    except ServerError as error:
        lines = str(error).splitlines()
        made.died = " / ".join([lines[0], *lines[-2:]])[:400]
    else:
        made.seconds = result.seconds
        outputs = {node: [str(t) for t in ui.get("text", [])] for node, ui in result.outputs.items()}
        made.said = {node: outputs.get(node) or told.get(node, []) for node in {*outputs, *told}}
        files = result.files("latents", built.saved) if built.saved else []
        made.latents = [load(server.view(entry))["latent_tensor"] for entry in files]
        if built.seen:
            made.seen = json.loads(result.text(built.seen) or "{}") or None
        if built.after:
            made.after = json.loads(result.text(built.after) or "{}") or None
    return made


def error_of(data: dict[str, Any], built: Built) -> Error:
    frames = re.findall(r'File "([^"]+)", line (\d+)', "".join(data.get("traceback") or []))
    ours = [PACK in file for file, _ in frames]
    place = ":".join(frames[-1]).split("/custom_nodes/")[-1].split("/.comfyui/")[-1] if frames else ""
    return Error(
        data["node_type"], data["exception_message"].strip(), data["exception_type"], place,
        bool(ours) and ours[-1], any(ours) or data["node_type"].startswith("AMED"),
    )  # fmt: skip
