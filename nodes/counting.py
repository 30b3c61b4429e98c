"""Evaluations counted around a MODEL. Host: comfy/patcher_extension.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..amed.choose import Report
from .log import warn_once

COUNT = "amed_evaluations"  # the key of a counting MODEL's Count


def count_rows(model_options: dict, report: Report) -> None:
    """Count the network's rows into the report, by a wrapper on this run's own options; left open where the
    host has no such wrappers."""
    try:
        from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

        around_network = WrappersMP.APPLY_MODEL
    except (ImportError, AttributeError):
        warn_once("this ComfyUI is too old to count the network's passes: reports leave them out")
        return

    def apply_model(executor: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        report.rows += len(x)
        return executor(x, *args, **kwargs)

    report.rows = 0
    add_wrapper_with_key(around_network, "amed_count", apply_model, model_options, is_model_options=True)


class Count:
    """Evaluations of a MODEL and rows through its network; one object however often the host copies its
    options. Guidance makes one evaluation of two halves, in one call of the network or in two.

    `before` is called before each evaluation, and may raise. While `idle` the network is not asked, its
    answer is that for images of unit noise: a sampler's evaluations are counted without it."""

    def __init__(self, before: Callable[[], None] = lambda: None):
        self.evaluations = self.rows = self.networks = 0
        self.before, self.idle = before, False

    def __deepcopy__(self, memo: dict) -> "Count":
        return self

    def evaluation(self, executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        self.before()
        self.evaluations += 1
        return executor(*args, **kwargs)

    def call(self, executor: Callable, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        before, self.rows = self.networks, self.rows + len(x)
        if self.idle:
            return x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2)
        result = executor(x, sigma, *args, **kwargs)
        if self.networks == before > 0:  # a cache around the network answered in its place
            self.rows -= len(x)
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
        from comfy.patcher_extension import WrappersMP

        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "amed_outside", sample)
    except (ImportError, AttributeError):
        wrong = "this ComfyUI is too old to put a predictor around its own samplers"
        raise RuntimeError(f"{wrong}: update it, or use AMED Sampler and AMED Scheduler") from None


def bare(model: Any) -> Any:
    """A clone of a MODEL without what works on its runs (caches, context windows, guidance of other packs):
    its network, weights and noise levels."""
    clone = model.clone()
    clone.wrappers, clone.callbacks, clone.model_options = {}, {}, {"transformer_options": {}}
    return clone


def counting(model: Any, before: Callable[[], None] = lambda: None) -> Any:
    """A clone of a MODEL that counts, `before`: as Count has it. Raises RuntimeError where the host has no
    wrappers to count with."""
    clone, count = model.clone(), Count(before)
    try:
        from comfy.patcher_extension import WrappersMP

        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, COUNT, count.evaluation)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COUNT, count.call)
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, COUNT, count.network)
    except (ImportError, AttributeError):
        raise RuntimeError(
            "this ComfyUI is too old to count evaluations: update it to 0.3.52 or newer"
        ) from None
    clone.model_options[COUNT] = count
    return clone


def read_count(model: Any) -> tuple[int, int]:
    """Evaluations and rows since the last reading. Raises ValueError for a MODEL that does not count."""
    count = model.model_options.get(COUNT)
    if count is None:
        raise ValueError(
            "this MODEL does not count: connect the one from AMED Count Evaluations, here and to the sampler"
        )
    evaluations, rows = count.evaluations, count.rows
    count.evaluations = count.rows = 0
    return evaluations, rows
