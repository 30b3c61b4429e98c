"""Whether a MODEL's network itself answers an evaluation, or a cache of another pack in its place.

Host: comfy/patcher_extension.py (wrappers by kind and key), comfy/model_patcher.py (object_patches)."""

import sys
from functools import partial
from typing import Any

from torch import nn

from ...amed.fit import CachedError
from .hooks import ANSWERING, guidance_functions, network_function, watch_calls, wrappers_of

LAYERS = 24  # of the network that are watched


class Watch:
    """Counts, while it is open, which of some layers of a MODEL's network run in each evaluation.

    A step cache leaves out all of them, or all but the first and the last: an evaluation that runs less than
    half of the layers that others ran was not answered by the network. The layers of a compiled network do
    not tell; of it only the calls are counted."""

    def __init__(self, model: Any):
        self.model = model
        self.ran, self.most = set[int](), 0  # layers: in this evaluation, the most in any
        self.calls, self.called = 0, False  # of the network: in this evaluation, whether in any
        self.handles: list[Any] | None = None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles or []:
            handle.remove()
        self.handles = None

    def begin(self, model_options: dict) -> None:
        """Before an evaluation with these options, which are its own. The MODEL is loaded."""
        if self.handles is None:  # not before: loading may put other modules into the network
            layers = [] if compiled(self.model) else layers_of(self.model.model.diffusion_model)
            self.handles = [
                layer.register_forward_hook(partial(self._ran, number)) for number, layer in enumerate(layers)
            ]
        self.ran.clear()
        self.calls = 0
        watch_calls(model_options, "amed_watch", self._called)

    def _ran(self, number: int, *_: Any) -> None:
        self.ran.add(number)

    def _called(self) -> None:
        self.calls += 1

    def end(self) -> None:
        """After an evaluation. Raises CachedError where the network did not answer it."""
        self.most, self.called = max(self.most, len(self.ran)), self.called or self.calls > 0
        if 2 * len(self.ran) < self.most or (self.called and not self.calls):
            raise CachedError(
                "an evaluation was answered without the network: what is on this MODEL "
                f"({', '.join(features(self.model)) or 'of another pack'}) answers from memory. "
                "Connect the MODEL from before that node, and put the node on after"
            )


def layers_of(network: nn.Module) -> list[nn.Module]:
    """At most LAYERS layers that have weights, from all over a network."""
    layers = [module for module in network.modules() if module._parameters]
    return layers[:: -(-len(layers) // LAYERS) or 1]


def compiled(model: Any) -> bool:
    """Whether torch.compile is at work on a MODEL's network."""
    patched = model.object_patches.values()
    modules = [*model.model.diffusion_model.modules(), *(m for m in patched if isinstance(m, nn.Module))]
    keys = [str(key) for _, key, _ in wrappers_of(model)]
    return any(hasattr(m, "_orig_mod") for m in modules) or any("compile" in key for key in keys)


def features(model: Any) -> list[str]:
    """What is on a MODEL that may answer in place of its network, by the names it gives itself."""
    found = [str(key or origin(one)) for kind, key, one in wrappers_of(model) if kind in ANSWERING]
    around = network_function(model.model_options)
    found += [origin(around)] if around is not None else []
    found += [name for name in model.object_patches if name.startswith("diffusion_model")]
    return list(dict.fromkeys(found))


def functions(model: Any) -> list[str]:
    """What is on a MODEL that may change what its network answers, by the names it gives itself."""
    found = [one for listed in guidance_functions(model.model_options).values() for one in listed]
    return list(dict.fromkeys([*map(origin, found), *features(model)]))


def origin(function: Any) -> str:
    """The file or package that a function is from, and its name."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    module = str(getattr(kind, "__module__", ""))
    file = getattr(sys.modules.get(module), "__file__", None) or module
    return f"{kind.__qualname__.split('.')[0]} of {'/'.join(str(file).split('/')[-2:])}"
