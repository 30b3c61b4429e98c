"""Run a graph; the result has latents, texts, counts, the nodes that ran, or the error."""

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
    """The saved latents; several for a list."""
    node_texts: dict[str, list[str]] = field(default_factory=dict)
    """Texts on nodes, by id."""
    executed: list[str] = field(default_factory=list)
    """Classes of the nodes that ran, not those from the cache."""
    network_counts: dict[str, int] | None = None
    """What GraphSeen counted around the network."""
    after: dict[str, Any] | None = None
    error: Error | None = None
    died: str = ""
    """Where the server died or hung."""
    seconds: float = 0.0

    def texts(self, node: str) -> list[str]:
        return self.node_texts.get(node, [])


def run(server: Server, built: Built, workflow: bool, timeout: float) -> Run:
    """Run a graph; errors become part of the result.

    workflow: send an empty one with the prompt, as the page sends the open workflow."""
    result_run, sent_texts = Run(built.sampled), {}
    kinds = {name: node["class_type"] for name, node in built.nodes.items()}

    def event(kind: str, data: dict[str, Any]) -> None:
        if kind == "binary":
            number, rest = int.from_bytes(data["bytes"][:4], "big"), data["bytes"][4:]
            if number == TEXT:
                length = int.from_bytes(rest[:4], "big")
                node, text = rest[4 : 4 + length].decode(), rest[4 + length :].decode()
                sent_texts.setdefault(node, []).append(text)
        elif kind == "executing" and data.get("node"):
            result_run.executed.append(kinds.get(str(data["node"]), str(data["node"])))
        elif kind == "execution_error":
            result_run.error = error_of(data, built)

    empty = {"nodes": [], "links": [], "version": 0.4, "extra": {}} if workflow else None
    try:
        result = server.run(built.nodes, event, timeout=timeout, workflow=empty)
    except GraphError as error:
        result_run.error = Error("", str(error), "GraphError", "the host's check of inputs", ours=False)
    except Interrupted:
        result_run.error = Error("", "interrupted", "Interrupted", ours=False)
    except RunError as error:
        result_run.error = result_run.error or Error(error.node, str(error), "unknown", ours=False)
    except ServerError as error:
        lines = str(error).splitlines()
        result_run.died = " / ".join([lines[0], *lines[-2:]])[:400]
    else:
        result_run.seconds = result.seconds
        outputs = {node: [str(t) for t in ui.get("text", [])] for node, ui in result.outputs.items()}
        result_run.node_texts = {
            node: outputs.get(node) or sent_texts.get(node, []) for node in {*outputs, *sent_texts}
        }
        files = result.files("latents", built.saved) if built.saved else []
        result_run.latents = [load(server.view(entry))["latent_tensor"] for entry in files]
        if built.counts_node:
            result_run.network_counts = json.loads(result.text(built.counts_node) or "{}") or None
        if built.after:
            result_run.after = json.loads(result.text(built.after) or "{}") or None
    return result_run


def error_of(data: dict[str, Any], built: Built) -> Error:
    frames = re.findall(r'File "([^"]+)", line (\d+)', "".join(data.get("traceback") or []))
    ours = [PACK in file for file, _ in frames]
    place = ":".join(frames[-1]).split("/custom_nodes/")[-1].split("/.comfyui/")[-1] if frames else ""
    return Error(
        data["node_type"], data["exception_message"].strip(), data["exception_type"], place,
        bool(ours) and ours[-1], any(ours) or data["node_type"].startswith("AMED"),
    )  # fmt: skip
