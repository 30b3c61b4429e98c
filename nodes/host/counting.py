"""Evaluations counted around a MODEL, by the node that samples. Host: comfy/patcher_extension.py; of nodes.py
which nodes take or give lists."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from ...amed.choose import Report
from .graph import Graph, inputs_of, linked, signature, upstream
from .hooks import MissingHookError, wrap_calls, wrap_model
from .log import warn_once
from .running import Executing, executing, running_prompt

COUNT = "amed_evaluations"  # the key of a counting MODEL's Count


def count_rows(model_options: dict, report: Report) -> None:
    """Count the network's rows into the report, by a wrapper on this run's own options; left open where the
    host has no such wrappers."""

    def apply_model(executor: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        report.rows += len(x)
        return executor(x, *args, **kwargs)

    try:
        wrap_calls(model_options, "amed_count", apply_model)
    except MissingHookError:
        warn_once("this ComfyUI is too old to count the network's passes: reports leave them out")
        return
    report.rows = 0


MOST = 1024  # runs of nodes whose counts are known


@dataclass
class Tally:
    """What was asked of a network."""

    evaluations: int = 0
    rows: int = 0


@dataclass
class Run:
    """What a node that sampled asked of a counting MODEL in one run of the host: by place in its list of
    inputs."""

    run: str
    items: dict[int, Tally] = field(default_factory=dict)


# by the name of a counting MODEL, the node that sampled and its signature, the latest last. They are not part
# of the MODEL: the host may keep a sampler's result longer than the MODEL it was made with.
_runs: OrderedDict[tuple[str, str, str], Run] = OrderedDict()


def tally_of(name: str, now: Executing) -> Tally:
    """Where the node that runs counts; begun anew with each run of the host."""
    key = name, now.node, signature(running_prompt()[0], now.node)
    run = _runs.get(key)
    if run is None or run.run != now.run:
        run = _runs[key] = Run(now.run)
    _runs.move_to_end(key)
    while len(_runs) > MOST:
        _runs.popitem(last=False)
    return run.items.setdefault(now.item, Tally())


def lists(graph: Graph, node: str) -> bool:
    """Whether a node takes a list of inputs as one, or gives a list for each input: what comes after it is
    not item by item what went in."""
    import nodes

    kind = nodes.NODE_CLASS_MAPPINGS.get((graph.get(node) or {}).get("class_type"))
    return bool(getattr(kind, "INPUT_IS_LIST", False)) or any(getattr(kind, "OUTPUT_IS_LIST", None) or ())


def used(name: str, dynamic: Any, reader: str, item: int) -> Tally:
    """What the node that made the `samples` of a reader asked of a counting MODEL: the nearest before it that
    sampled with that MODEL. dynamic: the host's DYNPROMPT, which has nodes that others made while they ran.
    item: place in the reader's list of inputs; where samples were batched anew on the way, all of that node's
    items count together."""
    sent = running_prompt()[0]
    graph = {node: dynamic.get_node(node) for node in dynamic.all_node_ids()} if dynamic else sent
    source = linked(inputs_of(graph, reader).get("samples"))
    apart = True
    for node in upstream(graph, source) if source else ():
        apart = apart and not lists(graph, node)
        run = run_of(name, node, signature(sent, node))
        if run is None:
            continue
        if apart:
            return run.items.get(item) or run.items[max(run.items)]
        tallies = run.items.values()
        return Tally(sum(t.evaluations for t in tallies), sum(t.rows for t in tallies))
    return Tally()


def run_of(name: str, node: str, depends: str) -> Run | None:
    """The latest run of a node, or of one that it made while it ran ("12.0.0.3" of 12)."""
    for (counted, sampled, signed), run in reversed(_runs.items()):
        its = sampled == node or sampled.startswith(f"{node}.")
        if counted == name and its and signed == depends:
            return run
    return None


class Count:
    """Evaluations of a MODEL and rows through its network; one object however often the host copies its
    options. Guidance makes one evaluation of two halves, in one call of the network or in two. `name`: under
    which each node's own are kept; `evaluations`, `rows`: of all together, since they were last read.

    `before` is called before each evaluation, and may raise. While `idle` the network is not asked, its
    answer is that for images of unit noise: a sampler's evaluations are counted without it."""

    def __init__(self, before: Callable[[], None] = lambda: None):
        self.evaluations = self.rows = self.networks = 0
        self.before, self.idle = before, False
        now = executing()
        self.name = uuid4().hex if now is None else f"{now.node} {now.item}"
        self._now, self._tally = now, Tally()

    def __deepcopy__(self, memo: dict) -> "Count":
        return self

    def tally(self) -> Tally:
        """Of the node that runs; in a thread, where the host does not say, still of the last one."""
        now = executing()
        if now is not None and now != self._now:
            self._now, self._tally = now, tally_of(self.name, now)
        return self._tally

    def evaluation(self, executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        self.before()
        self.evaluations += 1
        self.tally().evaluations += 1
        return executor(*args, **kwargs)

    def call(self, executor: Callable, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        before = self.networks
        self.rows += len(x)
        self.tally().rows += len(x)
        if self.idle:
            return x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)
        result = executor(x, sigma, *args, **kwargs)
        if self.networks == before > 0:  # a cache around the network answered in its place
            self.rows -= len(x)
            self.tally().rows -= len(x)
        return result

    def network(self, executor: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around the network itself, where it lets others be: the innermost."""
        if not torch.compiler.is_compiling():  # nothing of this is to be compiled into it
            self.networks += 1
        return executor(*args, **kwargs)


def put_around(model: Any, sample: Callable[..., Tensor]) -> None:
    """Put `sample(executor, ...)` around every sampling of a MODEL (a clone of our own): the executor has the
    SAMPLER as class_obj and its `sample` as original. Raises RuntimeError where the host has no such
    wrappers."""
    try:
        wrap_model(model, "amed_outside", sampling=sample)
    except MissingHookError:
        wrong = "this ComfyUI is too old to put a predictor around its own samplers"
        raise RuntimeError(f"{wrong}: update it, or use AMED Sampler and AMED Scheduler") from None


def counting(model: Any, before: Callable[[], None] = lambda: None) -> Any:
    """A clone of a MODEL that counts, `before`: as Count has it. Raises RuntimeError where the host has no
    wrappers to count with."""
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
    """What a MODEL counts with. Raises ValueError for one that does not count."""
    count = model.model_options.get(COUNT)
    if count is None:
        raise ValueError(
            "this MODEL does not count: connect the one from AMED Count Evaluations, here and to the sampler"
        )
    return count


def read_count(model: Any) -> tuple[int, int]:
    """All evaluations and rows since the last reading. Raises ValueError for a MODEL that does not count."""
    count = count_of(model)
    evaluations, rows = count.evaluations, count.rows
    count.evaluations = count.rows = 0
    return evaluations, rows
