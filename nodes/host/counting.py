"""Counting of evaluations around a MODEL, kept for each node that samples.

Host: wrappers (see `hooks`), and in nodes.py which nodes take or return lists."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from ...amed.choose import Report
from .graph import Graph, inputs_of, linked_node, signature, upstream
from .hooks import MissingHookError, wrap_calls, wrap_model
from .log import warn_once
from .running import Executing, executing, running_prompt

COUNT = "amed_evaluations"  # key of a counting MODEL's Count in its options
MOST = 1024  # runs of nodes whose counts are kept


def count_rows(model_options: dict, report: Report) -> None:
    """Count the network's rows (images times halves of guidance) into a report during a run.

    The report's count stays None if this ComfyUI has no wrappers."""

    def apply_model(executor: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        report.rows += len(x)
        return executor(x, *args, **kwargs)

    try:
        wrap_calls(model_options, "amed_count", apply_model)
    except MissingHookError:
        warn_once("this ComfyUI is too old to count the network's passes: reports leave them out")
        return
    report.rows = 0


@dataclass
class Tally:
    """Numbers of evaluations and rows that were counted around a network."""

    evaluations: int = 0  # of the model, with both halves of guidance
    rows: int = 0  # of the network's batches: images times halves of guidance


@dataclass
class NodeRun:
    """The tallies of one node that sampled with a counting MODEL, in one run of the graph."""

    run: str  # which run of the graph, as in Executing
    items: dict[int, Tally] = field(default_factory=dict)  # by index in the node's list of inputs


# By the name of a counting MODEL, the node that sampled and its signature, the latest last. Not part of the
# MODEL, because ComfyUI may cache a sampler's result longer than the MODEL.
_runs: OrderedDict[tuple[str, str, str], NodeRun] = OrderedDict()


def tally_of(name: str, now: Executing) -> Tally:
    """Return the tally of the executing node for one counting MODEL; each run of the graph starts a new one.

    name: the name of the MODEL's Count."""
    key = name, now.node, signature(running_prompt()[0], now.node)
    node_run = _runs.get(key)
    if node_run is None or node_run.run != now.run:
        node_run = _runs[key] = NodeRun(now.run)
    _runs.move_to_end(key)
    while len(_runs) > MOST:
        _runs.popitem(last=False)
    return node_run.items.setdefault(now.item, Tally())


def handles_lists(graph: Graph, node: str) -> bool:
    """Whether a node takes a whole list of inputs or returns lists, so that items no longer correspond."""
    import nodes

    kind = nodes.NODE_CLASS_MAPPINGS.get((graph.get(node) or {}).get("class_type"))
    return bool(getattr(kind, "INPUT_IS_LIST", False)) or any(getattr(kind, "OUTPUT_IS_LIST", None) or ())


def tally_before(name: str, dynamic: Any, reader: str, item: int) -> Tally:
    """Return the tally of the node whose samples a reader gets: the nearest one that sampled with the MODEL.

    Args:
        name: the name of the counting MODEL's Count.
        dynamic: ComfyUI's DYNPROMPT, which includes nodes created while the graph runs.
        reader: id of the node that reads the count.
        item: index in the reader's list of inputs. Where a node between handles lists, the sum over all items
            of the sampling node is returned."""
    sent = running_prompt()[0]
    graph = {node: dynamic.get_node(node) for node in dynamic.all_node_ids()} if dynamic else sent
    source = linked_node(inputs_of(graph, reader).get("samples"))
    by_item = True
    for node in upstream(graph, source) if source else ():
        by_item = by_item and not handles_lists(graph, node)
        node_run = latest_run(name, node, signature(sent, node))
        if node_run is None:
            continue
        if by_item:
            return node_run.items.get(item) or node_run.items[max(node_run.items)]
        tallies = node_run.items.values()
        return Tally(sum(t.evaluations for t in tallies), sum(t.rows for t in tallies))
    return Tally()


def latest_run(name: str, node: str, node_signature: str) -> NodeRun | None:
    """Return the latest counted run of a node, or of a node that it created while it ran ("12.0.0.3" of 12).

    None if the node has not sampled with the MODEL whose Count has this name."""
    for (counter, sampling_node, signed), node_run in reversed(_runs.items()):
        matches = sampling_node == node or sampling_node.startswith(f"{node}.")
        if counter == name and matches and signed == node_signature:
            return node_run
    return None


class Count:
    """Counts a MODEL's evaluations and the rows through its network.

    The two halves of guidance are one evaluation, whether in one call of the network or in two. Deep copies
    of a MODEL's options, which ComfyUI makes, share one Count.

    Args:
        before: called before each evaluation; may raise to stop the run."""

    def __init__(self, before: Callable[[], None] = lambda: None):
        self.evaluations = self.rows = 0  # of all nodes, since they were last read
        self.networks = 0  # calls of the network itself
        self.before = before
        self.idle = False  # if set, the network is not called; its result is that for images of unit variance
        now = executing()
        self.name = uuid4().hex if now is None else f"{now.node} {now.item}"
        self._now, self._tally = now, Tally()

    def __deepcopy__(self, memo: dict) -> "Count":
        return self

    def tally(self) -> Tally:
        """Return the executing node's tally. In a thread, where ComfyUI does not tell the node: the latest
        tally."""
        now = executing()
        if now is not None and now != self._now:
            self._now, self._tally = now, tally_of(self.name, now)
        return self._tally

    def evaluation(self, executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Count an evaluation of the model, and run it; a wrapper for `hooks.wrap_model`."""
        self.before()
        self.evaluations += 1
        self.tally().evaluations += 1
        return executor(*args, **kwargs)

    def call(self, executor: Callable, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run a call of the network and count its rows, unless a cache answered instead; a wrapper."""
        before = self.networks
        self.rows += len(x)
        self.tally().rows += len(x)
        if self.idle:
            return x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)
        result = executor(x, sigma, *args, **kwargs)
        if self.networks == before > 0:
            self.rows -= len(x)
            self.tally().rows -= len(x)
        return result

    def network(self, executor: Callable, *args: Any, **kwargs: Any) -> Any:
        """Count a call of the network itself, and run it; a wrapper, which some networks do not support."""
        if not torch.compiler.is_compiling():  # else the counter would be compiled into the network
            self.networks += 1
        return executor(*args, **kwargs)


def wrap_sampling(model: Any, sample: Callable[..., Tensor]) -> None:
    """Put `sample(executor, ...)` around every sampling of a MODEL (a clone of the caller's).

    The executor's `class_obj` is the SAMPLER, its `original` the SAMPLER's `sample`. Raises RuntimeError if
    this ComfyUI has no such wrapper."""
    try:
        wrap_model(model, "amed_outside", sampling=sample)
    except MissingHookError:
        raise RuntimeError(
            "this ComfyUI is too old to put a predictor around its own samplers: update it, or use AMED "
            "Sampler and AMED Scheduler"
        ) from None


def counting(model: Any, before: Callable[[], None] = lambda: None) -> Any:
    """Return a clone of a MODEL that counts its evaluations.

    before: called before each evaluation; may raise to stop the run.

    Raises RuntimeError if this ComfyUI has no wrappers."""
    clone, count = model.clone(), Count(before)
    try:
        wrap_model(clone, COUNT, evaluation=count.evaluation, call=count.call, network=count.network)
    except MissingHookError:
        raise RuntimeError(
            "this ComfyUI is too old to count evaluations: update it to 0.3.52 or newer"
        ) from None
    clone.model_options[COUNT] = count
    return clone


def count_of(model: Any) -> Count:
    """Return a counting MODEL's Count. Raises ValueError for a MODEL that does not count."""
    count = model.model_options.get(COUNT)
    if count is None:
        raise ValueError(
            "this MODEL does not count evaluations: connect the output of AMED Count Evaluations to this "
            "node and to the sampler"
        )
    return count


def read_count(model: Any) -> tuple[int, int]:
    """Return the evaluations and rows of all nodes since the last reading, and reset them.

    Raises ValueError for a MODEL that does not count."""
    count = count_of(model)
    evaluations, rows = count.evaluations, count.rows
    count.evaluations = count.rows = 0
    return evaluations, rows
