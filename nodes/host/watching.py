"""Detection of caches: whether a MODEL's network computes an evaluation, or another pack's cache answers it.

Host: wrappers (see `hooks`), and ModelPatcher's object_patches in comfy/model_patcher.py."""

import sys
from functools import partial
from typing import Any

from torch import nn

from ...amed.fit import CachedError
from .hooks import ANSWERING, guidance_functions, network_function, watch_calls, wrappers_of

LAYERS = 24  # layers of the network that are watched


class Watch:
    """Context manager that detects evaluations answered by a cache, by counting the layers that run.

    A step cache skips all layers of the network, or all but the first and the last. So an evaluation that
    runs less than half as many layers as an earlier one was answered by a cache. The layers of a compiled
    network cannot be watched; for it, only an evaluation without a call of the network is detected."""

    def __init__(self, model: Any):
        self.model = model
        self.ran = set[int]()  # layers that ran in this evaluation
        self.most = 0  # the most layers that ran in any evaluation
        self.calls = 0  # calls of the network in this evaluation
        self.called = False  # whether the network was called in any evaluation
        self.handles: list[Any] | None = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles or []:
            handle.remove()
        self.handles = None

    def begin(self, model_options: dict) -> None:
        """Start to count the network's layers and calls in one evaluation of the loaded MODEL.

        From these counts, `end` finds out whether a cache answered the evaluation.

        model_options: a copy of the options for this evaluation, on which a hook is set."""
        if self.handles is None:  # not earlier, because loading may replace modules of the network
            layers = [] if compiled(self.model) else layers_of(self.model.model.diffusion_model)
            self.handles = [
                layer.register_forward_hook(partial(self._layer_ran, number))
                for number, layer in enumerate(layers)
            ]
        self.ran.clear()
        self.calls = 0
        watch_calls(model_options, "amed_watch", self._network_called)

    def _layer_ran(self, number: int, *_: Any) -> None:
        self.ran.add(number)

    def _network_called(self) -> None:
        self.calls += 1

    def end(self) -> None:
        """End an evaluation. Raises CachedError if a cache answered it instead of the network."""
        self.most, self.called = max(self.most, len(self.ran)), self.called or self.calls > 0
        if 2 * len(self.ran) < self.most or (self.called and not self.calls):
            raise CachedError(
                "an evaluation was answered not by the network but by a cache on the MODEL "
                f"({', '.join(caching_features(self.model)) or 'of another pack'}). Connect this node to the "
                "MODEL from before the node that adds the cache, and add the cache later"
            )


def layers_of(network: nn.Module) -> list[nn.Module]:
    """Return at most 24 layers with weights (LAYERS), evenly spread over a network.

    `Watch` counts which of them run in an evaluation, to detect caches that skip layers."""
    layers = [module for module in network.modules() if module._parameters]
    return layers[:: -(-len(layers) // LAYERS) or 1]


def compiled(model: Any) -> bool:
    """Whether a MODEL's network is compiled by torch.compile."""
    patched = model.object_patches.values()
    modules = [*model.model.diffusion_model.modules(), *(m for m in patched if isinstance(m, nn.Module))]
    keys = [str(key) for _, key, _ in wrappers_of(model)]
    return any(hasattr(m, "_orig_mod") for m in modules) or any("compile" in key for key in keys)


def caching_features(model: Any) -> list[str]:
    """Return the names of a MODEL's wrappers and patches that may answer in place of its network (caches)."""
    names = [str(key or origin(function)) for kind, key, function in wrappers_of(model) if kind in ANSWERING]
    replaced = network_function(model.model_options)
    names += [origin(replaced)] if replaced is not None else []
    names += [name for name in model.object_patches if name.startswith("diffusion_model")]
    return list(dict.fromkeys(names))


def changing_features(model: Any) -> list[str]:
    """Return the names of functions, wrappers and patches on a MODEL that may change its results."""
    by_option = guidance_functions(model.model_options).values()
    names = [origin(function) for functions in by_option for function in functions]
    return list(dict.fromkeys([*names, *caching_features(model)]))


def origin(function: Any) -> str:
    """Return the name of a function or its class, and the file or package that defines it."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    module = str(getattr(kind, "__module__", ""))
    file = getattr(sys.modules.get(module), "__file__", None) or module
    return f"{kind.__qualname__.split('.')[0]} of {'/'.join(str(file).split('/')[-2:])}"
