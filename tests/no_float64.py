"""A device without float64, as Apple's GPUs are: `there()` is a torch.device, played on the CPU.

Its tensors are torch's own in all but where they lie. As there, no float64 tensor can be made on it, nor can
one become float64 on its way to the CPU; with tensors of the CPU they do not mix, but for single numbers."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "nodouble"
REFUSED = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
LACKING = (torch.float64, torch.complex128)
aten = torch.ops.aten
ALIKE, CONVERT, COPY = (
    aten._has_compatible_shallow_copy_type.default,
    aten._to_copy.default,
    aten.copy_.default,
)
INDEX = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Elsewhere(torch.Tensor):
    """A tensor of that device; what it holds lies in `held`, on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Elsewhere":
        if held.dtype in LACKING:
            raise TypeError(REFUSED)
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.detach().cpu()})"

    def __deepcopy__(self, memo: Any) -> Any:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation that takes tensors of the device, or makes one there."""
    given, spec = tree_flatten((args, kwargs))
    ours = [v for v in given if isinstance(v, Elsewhere)]
    others = [v for v in given if isinstance(v, torch.Tensor) and not isinstance(v, Elsewhere)]
    if op is ALIKE:
        return not others
    device = kwargs.get("device")
    leaves = device is not None and torch.device(device).type != NAME
    if op is COPY:
        leaves = not isinstance(args[0], Elsewhere)
    if (op is CONVERT and kwargs.get("dtype") in LACKING) or (
        leaves and op is COPY and args[0].dtype in LACKING
    ):
        raise TypeError(REFUSED)
    if ours and op not in (CONVERT, COPY, *INDEX) and any(v.ndim for v in others):
        found = f"found at least two devices, {NAME}:0 and cpu!"
        raise RuntimeError(f"Expected all tensors to be on the same device, but {found} ({op})")
    held = {id(v.held): v for v in ours}
    here = [v.held if isinstance(v, Elsewhere) else v for v in given]
    here = [torch.device("cpu") if isinstance(v, torch.device) else v for v in here]
    args, kwargs = tree_unflatten(here, spec)
    kwargs.pop("pin_memory", None)
    if "non_blocking" in kwargs:
        kwargs["non_blocking"] = False
    made = op(*args, **kwargs)
    return (
        made
        if leaves
        else tree_map_only(torch.Tensor, lambda v: held[id(v)] if id(v) in held else Elsewhere(v), made)
    )


_libraries: list[torch.library.Library] = []


def there() -> torch.device:
    """The device, set up when it is first asked for."""
    if not _libraries:
        _setup_privateuseone_for_python_backend(NAME)
        module = getattr(torch, NAME)  # what checkpointing asks of a device
        module.get_amp_supported_dtype = lambda: [torch.float16]
        module.get_rng_state, module.set_rng_state = lambda *_: torch.get_rng_state(), lambda *_: None
        module.device = lambda _: nullcontext()
        rest, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        rest.fallback(run, "PrivateUse1")
        for op in (COPY, aten._local_scalar_dense.default):  # torch.tensor asks for these past Elsewhere
            own.impl(op.name(), partial(run, op), "PrivateUse1")
        _libraries.extend((rest, own))
    return torch.device(NAME)
