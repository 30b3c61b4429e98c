"""Fingerprints: a node that reads the library runs again when the library would give it another predictor.

ComfyUI reuses a node's cached result while its inputs and its `fingerprint_inputs` stay the same, and it
computes the fingerprint before linked inputs are known. So the requests of each node, and their results, are
remembered. A node's fingerprint is a random mark that stays while the same requests give the same results,
whatever other files are saved, touched or deleted."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from ...amed import Fitted, PredictorError
from ...amed.choose import Request, choose, no_schedule
from ...amed.files.code import code_of
from ..host.folders import content_hash, library
from ..host.graph import signature
from ..host.running import executing, running_prompt
from .workflow import workflow_entries

MOST = 512  # nodes that are remembered; a forgotten one runs once more


@dataclass
class Memory:
    """What one node looked up in the library of predictor files, and which predictors it found."""

    mark: str = field(default_factory=lambda: uuid4().hex)  # the fingerprint while all results stay the same
    # By (node that made the request, its signature, index in its list of inputs): the run of the graph, and
    # each request with the hash of its result.
    requests: dict[tuple[str, str, int], tuple[str, list[tuple[Request, str]]]] = field(default_factory=dict)


_memories: OrderedDict[tuple[str, str], Memory] = OrderedDict()  # by node id and signature
_latest: OrderedDict[str, Memory] = OrderedDict()  # by node id, in the latest graph that had the node


def fingerprint(file: str | None = "", also: str = "", **widgets: Any) -> str:
    """Return a node's fingerprint: ComfyUI runs the node again when this text changes.

    Args:
        file: name of a predictor file that the node loads; "" for none, None if the name is linked.
        also: further text; the fingerprint changes when it changes.
        widgets: the values of the node's inputs."""
    now = executing()
    if now is None:  # ComfyUI does not tell the node: any change of any file counts
        return content_hash(None)
    graph, png = running_prompt()
    node_signature = signature(graph, now.node) or json.dumps(widgets, sort_keys=True, default=lambda _: None)
    memory = memory_at(_memories, (now.node, node_signature + carried_hash(png, now.node) + also))
    memory_at(_latest, now.node, memory)
    for (node, requested_for, _), (_, requests) in memory.requests.items():
        unedited = signature(graph, node) == requested_for
        if unedited and any(result_hash(request) != result for request, result in requests):
            memory.mark, memory.requests = uuid4().hex, {}
            break
    return f"{memory.mark} {content_hash(file) if file != '' else ''}"


def memory_at(memories: OrderedDict, key: Any, memory: Memory | None = None) -> Memory:
    """Return the Memory (one node's predictor look-ups) stored under a key, creating it if there is none.

    The dict is limited to 512 entries; the least recently used are removed.

    Args:
        memories: dict of stored Memory objects, the least recently used first.
        key: key of the Memory to return.
        memory: a Memory to store under the key in place of the old one; None: keep the old one."""
    stored = memories[key] = memory or memories.get(key) or Memory()
    memories.move_to_end(key)
    while len(memories) > MOST:
        memories.popitem(last=False)
    return stored


def remember(request: Request, memory: Memory | None = None) -> None:
    """Record which predictor a node found in the library of predictor files.

    If the library would later give the node another predictor, ComfyUI runs the node again. Nothing is
    recorded if the predictor was not looked up, e.g. because it was linked to the node.

    Args:
        request: what the node looked for, e.g. a predictor for a model and a number of evaluations.
        memory: the node's recorded look-ups. None: those of the node that ComfyUI is executing."""
    now = executing()
    memory = memory or (None if now is None else _latest.get(now.node))
    if now is None or memory is None or request.fitted is not None:
        return
    stored = replace(
        request, schedule=no_schedule, if_missing="error"
    )  # the schedule would keep the MODEL alive
    key = now.node, signature(running_prompt()[0], now.node), now.item
    run, requests = memory.requests.get(key, ("", []))
    requests = requests if run == now.run else []
    memory.requests.pop(key, None)
    memory.requests[key] = now.run, [*requests, (stored, result_hash(stored))]
    while len(memory.requests) > MOST:
        memory.requests.pop(next(iter(memory.requests)))


def remember_later() -> Callable[[Request], None]:
    """Return a function that records predictor look-ups for the node that is executing now, even later.

    The records tell ComfyUI to run the node again once the library would give it another predictor. AMED
    Sampler needs the function, because its predictor is looked up later, when another node samples."""
    now = executing()
    memory = None if now is None else _latest.get(now.node)
    return lambda request: remember(request, memory or Memory())


def result_hash(request: Request) -> str:
    """Return a hash of the library's best predictor for a request (model, sampler, nfe); "" if none."""
    try:
        return fitted_hash(choose(library(), request).fitted)
    except PredictorError:
        return ""


def fitted_hash(fitted: Fitted) -> str:
    """Return a SHA-256 hash of a predictor (solver constants and header), in hexadecimal."""
    return hashlib.sha256(code_of(fitted).encode()).hexdigest()


def carried_hash(png: Any, node: str) -> str:
    """Return a hash of the predictors stored in a workflow for a node; "" if there are none.

    png: ComfyUI's EXTRA_PNGINFO, which has the workflow."""
    entry = workflow_entries(png).get(node)
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest() if entry else ""
