"""When a node runs again: once the library would answer it otherwise than it did.

The host keeps a node's result as long as its inputs and its `fingerprint_inputs` stay the same, and asks for
the latter before anything linked is known. So a node that asks the library remembers what it asked and what
it got. Its fingerprint is a mark that stays while asking again gets the same, whatever else is saved, touched
or deleted. A result that the host took from its cache was made under the mark that is given for it."""

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
from ..host.folders import content, library
from ..host.graph import signature
from ..host.running import executing, running_prompt
from .workflow import entries

MOST = 512  # nodes in graphs that are remembered; one that is forgotten runs once more


@dataclass
class Memory:
    """What a node asked the library for: by who asked (node, its signature, place in a list), the run, and
    each request with the code of what it got."""

    mark: str = field(default_factory=lambda: uuid4().hex)
    asked: dict[tuple[str, str, int], tuple[str, list[tuple[Request, str]]]] = field(default_factory=dict)


_memories: OrderedDict[tuple[str, str], Memory] = OrderedDict()  # by node and what it depends on
_latest: OrderedDict[str, Memory] = OrderedDict()  # by node, of the last graph it was in


def fingerprint(named: str | None = "", also: str = "", **widgets: Any) -> str:
    """For `fingerprint_inputs` of a node with these widgets. named: the predictor file that they name,
    None for one that is linked. also: what else the node goes by, as text."""
    now = executing()
    if now is None:  # a host that does not say which node it asks for: all files count
        return content(None)
    graph, png = running_prompt()
    own = signature(graph, now.node) or json.dumps(widgets, sort_keys=True, default=lambda _: None)
    memory = kept(_memories, (now.node, own + carried_code(png, now.node) + also))
    kept(_latest, now.node, memory)
    for (node, depends, _), (_, requests) in memory.asked.items():
        here = signature(graph, node) == depends
        if here and any(answer(request) != got for request, got in requests):
            memory.mark, memory.asked = uuid4().hex, {}
            break
    return f"{memory.mark} {content(named) if named != '' else ''}"


def kept(memories: OrderedDict, key: Any, memory: Memory | None = None) -> Memory:
    """The memory under a key, made if it is not there; the longest unused goes where there are too many."""
    found = memories[key] = memory or memories.get(key) or Memory()
    memories.move_to_end(key)
    while len(memories) > MOST:
        memories.popitem(last=False)
    return found


def remember(request: Request, memory: Memory | None = None) -> None:
    """Note what the node that runs, or the one whose memory is given, asks of the library; nothing where the
    request brings its predictor."""
    now = executing()
    memory = memory or (None if now is None else _latest.get(now.node))
    if now is None or memory is None or request.fitted is not None:
        return
    asked = replace(request, schedule=no_schedule, if_missing="error")  # a schedule holds the MODEL's parts
    who = now.node, signature(running_prompt()[0], now.node), now.item
    run, requests = memory.asked.get(who, ("", []))
    requests = requests if run == now.run else []
    memory.asked.pop(who, None)
    memory.asked[who] = now.run, [*requests, (asked, answer(asked))]
    while len(memory.asked) > MOST:
        memory.asked.pop(next(iter(memory.asked)))


def listener() -> Callable[[Request], None]:
    """`remember` for what runs later in another node, on behalf of the one that runs now."""
    now = executing()
    memory = None if now is None else _latest.get(now.node)
    return lambda request: remember(request, memory or Memory())


def answer(request: Request) -> str:
    """A code of what the library has for a request; "" for nothing."""
    try:
        return code(choose(library(), request).fitted)
    except PredictorError:
        return ""


def code(fitted: Fitted) -> str:
    return hashlib.sha256(code_of(fitted).encode()).hexdigest()


def carried_code(png: Any, node: str) -> str:
    """A code of what a workflow carries for a node; "" for nothing."""
    entry = entries(png).get(node)
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest() if entry else ""
