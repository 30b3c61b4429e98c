"""The running graph: what a node depends on, and where its outputs go.

Graphs are in ComfyUI's API format: {node id: {"class_type": ..., "inputs": {name: value}}}, where a value is
[node id, output number] if the input is linked."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

Graph = dict[str, dict]


def linked_node(value: Any) -> str | None:
    """Return the id of the node that an input is linked to; None for an input with a value."""
    link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    return value[0] if link and isinstance(value[1], int | float) else None


def inputs_of(graph: Graph, node: str) -> dict[str, Any]:
    """Return a node's inputs by name; {} if the graph has no such node."""
    return (graph.get(node) or {}).get("inputs") or {}


def upstream(graph: Graph, node: str) -> Iterator[str]:
    """Yield a node and all nodes it depends on, the nearest first."""
    seen, queue = {node}, [node]
    for current in queue:
        yield current
        for source in map(linked_node, inputs_of(graph, current).values()):
            if source is not None and source not in seen:
                seen.add(source)
                queue.append(source)


def downstream(graph: Graph, node: str) -> Iterator[str]:
    """Yield the nodes that depend on a node, the nearest first."""
    seen, queue = {node}, [node]
    for current in queue:
        for other in graph:
            if other not in seen and current in map(linked_node, inputs_of(graph, other).values()):
                seen.add(other)
                queue.append(other)
                yield other


def signature(graph: Graph, node: str) -> str:
    """Return a hash of a node and of all nodes it depends on, which changes when any of them is edited.

    For a node that node 12 created while it ran (id "12.0.0.3"), it is the hash of node 12. "" if the graph
    has no such node."""
    node = node if node in graph else node.partition(".")[0]
    if node not in graph:
        return ""
    parts = [(n, (graph.get(n) or {}).get("class_type"), inputs_of(graph, n)) for n in upstream(graph, node)]
    return hashlib.sha256(json.dumps(sorted(parts, key=lambda p: p[0]), sort_keys=True).encode()).hexdigest()


def guidance_after(graph: Graph, node: str) -> float | None:
    """Return the guidance scale of the nearest node downstream: its own `cfg` input, or its guider's.

    A `cfg` that is linked gets the number set on the linked node. None if no node downstream has a `cfg`, or
    if the linked node has no number or several among its inputs."""
    for other in downstream(graph, node):
        inputs = inputs_of(graph, other)
        for holder in (inputs, inputs_of(graph, linked_node(inputs.get("guider")) or "")):
            if "cfg" in holder:
                return number_of(graph, holder["cfg"])
    return None


def number_of(graph: Graph, value: Any) -> float | None:
    """Return the number that an input is set to; if it is linked, the number set on the linked node.

    None if it is not a number, or if the linked node has not exactly one number among its inputs."""
    node = linked_node(value)
    values = [value] if node is None else list(inputs_of(graph, node).values())
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return numbers[0] if len(numbers) == 1 else None
