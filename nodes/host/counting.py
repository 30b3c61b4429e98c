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
    """Set a hook on a run's options that adds the batch size of each network call to `report.rows`.

    With guidance, a batch holds each image twice: for the positive and for the negative prompt. So
    `report.rows` divided by the number of images is the number of network passes per image. It stays None
    if this ComfyUI is too old for such a hook.

    Args:
        model_options: the run's options, which are changed in place.
        report: the report on the run."""

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
    """The number of model evaluations, and the sum of the batch sizes of the network's calls."""

    evaluations: int = 0  # of the model, with both halves of guidance
    rows: int = 0  # of the network's batches: images times halves of guidance


@dataclass
class NodeRun:
    """The evaluation counts of one sampling node in one run of the graph.

    A node with a list as input runs once per item, and each item is counted separately."""

    run: str  # which run of the graph, as in Executing
    items: dict[int, Tally] = field(default_factory=dict)  # by index in the node's list of inputs


# By the name of a counting MODEL, the node that sampled and its signature, the latest last. Not part of the
# MODEL, because ComfyUI may cache a sampler's result longer than the MODEL.
_runs: OrderedDict[tuple[str, str, str], NodeRun] = OrderedDict()


def tally_of(name: str, now: Executing) -> Tally:
    """Return the evaluation counts of the executing node in this run of the graph, 0 at first.

    Args:
        name: name of the evaluation counter on the MODEL that the node samples with.
        now: the executing node."""
    key = name, now.node, signature(running_prompt()[0], now.node)
    node_run = _runs.get(key)
    if node_run is None or node_run.run != now.run:
        node_run = _runs[key] = NodeRun(now.run)
    _runs.move_to_end(key)
    while len(_runs) > MOST:
        _runs.popitem(last=False)
    return node_run.items.setdefault(now.item, Tally())


def handles_lists(graph: Graph, node: str) -> bool:
    """Whether a node has INPUT_IS_LIST or OUTPUT_IS_LIST.

    If so, item i of its output list may not come from item i of its input list."""
    import nodes

    kind = nodes.NODE_CLASS_MAPPINGS.get((graph.get(node) or {}).get("class_type"))
    return bool(getattr(kind, "INPUT_IS_LIST", False)) or any(getattr(kind, "OUTPUT_IS_LIST", None) or ())


def tally_before(name: str, dynamic: Any, reader: str, item: int) -> Tally:
    """Return the number of evaluations that made the latent linked to a node's `samples` input.

    They are the counts of the nearest sampling node upstream of that input, 0 if there is none.

    Args:
        name: name of the evaluation counter on a MODEL; nodes that sampled with other MODELs are ignored.
        dynamic: ComfyUI's DYNPROMPT, which includes nodes created while the graph runs.
        reader: id of the node with the `samples` input.
        item: if that input is a list of latents, the index of the latent. The counts of all latents are
            added up if the sampling node or one after it has INPUT_IS_LIST or OUTPUT_IS_LIST."""
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
    """Return the evaluation counts of a node's latest run, or None if it has not sampled with the MODEL.

    Args:
        name: name of the evaluation counter on the MODEL.
        node: the node's id, e.g. "12". Nodes that it created while it ran ("12.0.0.3") count as this node.
        node_signature: hash of the node and of all nodes it depends on; runs with another hash, before the
            graph was edited, are ignored."""
    for (counter, sampling_node, signed), node_run in reversed(_runs.items()):
        matches = sampling_node == node or sampling_node.startswith(f"{node}.")
        if counter == name and matches and signed == node_signature:
            return node_run
    return None


class Count:
    """Counts a MODEL's evaluations and adds up the batch sizes of its network's calls.

    The positive and the negative prompt together are one evaluation, whether ComfyUI calls the network once
    or twice for them. ComfyUI copies the MODEL's options for each run; the copies share one Count.

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
        """Return the evaluation counts of the executing node.

        If ComfyUI does not tell which node executes, e.g. in a thread, the last known node is assumed."""
        now = executing()
        if now is not None and now != self._now:
            self._now, self._tally = now, tally_of(self.name, now)
        return self._tally

    def evaluation(self, executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Count one evaluation of the model and run it, as a ComfyUI wrapper of type PREDICT_NOISE."""
        self.before()
        self.evaluations += 1
        self.tally().evaluations += 1
        return executor(*args, **kwargs)

    def call(self, executor: Callable, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Call the network and add up its batch size, as a ComfyUI wrapper of type APPLY_MODEL.

        Nothing is added if another pack's cache gave the result in place of the network."""
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
        """Count a call of the network and run it, as a ComfyUI wrapper of type DIFFUSION_MODEL."""
        if not torch.compiler.is_compiling():  # else the counter would be compiled into the network
            self.networks += 1
        return executor(*args, **kwargs)


def wrap_sampling(model: Any, sample: Callable[..., Tensor]) -> None:
    """Add a ComfyUI wrapper around `SAMPLER.sample` to a MODEL, which is changed in place.

    Args:
        model: the MODEL.
        sample: the wrapper `sample(executor, ...)`; `executor.class_obj` is the SAMPLER, `executor.original`
            its method `sample`.

    Raises:
        RuntimeError: this ComfyUI is too old for such wrappers."""
    try:
        wrap_model(model, "amed_outside", sampling=sample)
    except MissingHookError:
        raise RuntimeError(
            "this ComfyUI is too old to put an AMED predictor around its own samplers: update it, or use "
            "the nodes AMED Sampler and AMED Scheduler"
        ) from None


def counting(model: Any, before: Callable[[], None] = lambda: None) -> Any:
    """Return a clone of a MODEL that counts its evaluations.

    before: called before each evaluation; may raise to stop the run.

    Raises RuntimeError if this ComfyUI is too old for wrappers around the model."""
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
    """Return the evaluation counter on a MODEL. Raises ValueError if the MODEL has none."""
    count = model.model_options.get(COUNT)
    if count is None:
        raise ValueError(
            "this MODEL does not count evaluations: connect the output of AMED Count Evaluations to this "
            "node and to the sampler"
        )
    return count


def read_count(model: Any) -> tuple[int, int]:
    """Return a MODEL's number of evaluations and the sum of its network's batch sizes, and reset both to 0.

    They count what all nodes did with the MODEL. With guidance, a batch holds each image twice. Raises
    ValueError for a MODEL that does not count."""
    count = count_of(model)
    evaluations, rows = count.evaluations, count.rows
    count.evaluations = count.rows = 0
    return evaluations, rows
