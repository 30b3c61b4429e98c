"""What a node of the running graph depends on, and where its outputs go. Graphs are in the host's API format:
{node id: {"class_type": ..., "inputs": {name: value, or [node id, output]}}}."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

Graph = dict[str, dict]


def linked(value: Any) -> str | None:
    """The node that an input is linked to; None for a value of its own."""
    link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    return value[0] if link and isinstance(value[1], int | float) else None


def inputs_of(graph: Graph, node: str) -> dict[str, Any]:
    """A node's inputs by name; {} for a node that is not there."""
    return (graph.get(node) or {}).get("inputs") or {}


def upstream(graph: Graph, node: str) -> Iterator[str]:
    """A node and all that it depends on, the nearest first."""
    seen, todo = {node}, [node]
    for one in todo:
        yield one
        for source in map(linked, inputs_of(graph, one).values()):
            if source is not None and source not in seen:
                seen.add(source)
                todo.append(source)


def downstream(graph: Graph, node: str) -> Iterator[str]:
    """What depends on a node, the nearest first."""
    seen, todo = {node}, [node]
    for one in todo:
        for other in graph:
            if other not in seen and one in map(linked, inputs_of(graph, other).values()):
                seen.add(other)
                todo.append(other)
                yield other


def signature(graph: Graph, node: str) -> str:
    """A short code of a node and all that it depends on: the same as long as none of it is edited. A node
    that another one made while it ran ("12.0.0.3") has the code of that one; "" for a node that is not
    there."""
    node = node if node in graph else node.partition(".")[0]
    if node not in graph:
        return ""
    parts = [(one, (graph.get(one) or {}).get("class_type"), inputs_of(graph, one))
             for one in upstream(graph, node)]  # fmt: skip
    return hashlib.sha256(json.dumps(sorted(parts, key=lambda p: p[0]), sort_keys=True).encode()).hexdigest()


def guidance_after(graph: Graph, node: str) -> float | None:
    """The cfg of the first node that a node's outputs come to which has one, or whose guider has; None where
    the graph does not say."""
    for one in downstream(graph, node):
        own = inputs_of(graph, one)
        for holder in (own, inputs_of(graph, linked(own.get("guider")) or "")):
            if "cfg" in holder:
                return number(graph, holder["cfg"])
    return None


def number(graph: Graph, value: Any) -> float | None:
    """An input's number, its own or the only one of the node that it is linked to; None where there is
    none."""
    values = [value] if linked(value) is None else list(inputs_of(graph, linked(value) or "").values())
    found = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return found[0] if len(found) == 1 else None
