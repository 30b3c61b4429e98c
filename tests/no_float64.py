"""A simulated device without float64, as Apple's GPUs are: `device()` returns its torch.device.

Its tensors live on the CPU and behave as torch's own, except that no float64 tensor can be made on the
device, none can become float64 on its way to the CPU, and they do not mix with CPU tensors of one or more
dimensions."""

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


class NoFloat64Tensor(torch.Tensor):
    """A tensor on the simulated device; its values are in `cpu_tensor`, on the CPU."""

    cpu_tensor: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, cpu_tensor: torch.Tensor) -> "NoFloat64Tensor":
        if cpu_tensor.dtype in LACKING:
            raise TypeError(REFUSED)
        self = torch.Tensor._make_wrapper_subclass(
            cls, cpu_tensor.shape, strides=cpu_tensor.stride(), storage_offset=cpu_tensor.storage_offset(),
            dtype=cpu_tensor.dtype, device=torch.device(NAME, 0),
        )  # fmt: skip
        self.cpu_tensor = cpu_tensor
        return self

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"NoFloat64Tensor({self.detach().cpu()})"

    def __deepcopy__(self, memo: Any) -> Any:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation whose input or output is on the simulated device."""
    inputs, spec = tree_flatten((args, kwargs))
    ours = [v for v in inputs if isinstance(v, NoFloat64Tensor)]
    others = [v for v in inputs if isinstance(v, torch.Tensor) and not isinstance(v, NoFloat64Tensor)]
    if op is ALIKE:
        return not others
    device = kwargs.get("device")
    leaves = device is not None and torch.device(device).type != NAME
    if op is COPY:
        leaves = not isinstance(args[0], NoFloat64Tensor)
    if (op is CONVERT and kwargs.get("dtype") in LACKING) or (
        leaves and op is COPY and args[0].dtype in LACKING
    ):
        raise TypeError(REFUSED)
    if ours and op not in (CONVERT, COPY, *INDEX) and any(v.ndim for v in others):
        detail = f"found at least two devices, {NAME}:0 and cpu!"
        raise RuntimeError(f"Expected all tensors to be on the same device, but {detail} ({op})")
    originals = {id(v.cpu_tensor): v for v in ours}
    here = [v.cpu_tensor if isinstance(v, NoFloat64Tensor) else v for v in inputs]
    here = [torch.device("cpu") if isinstance(v, torch.device) else v for v in here]
    args, kwargs = tree_unflatten(here, spec)
    kwargs.pop("pin_memory", None)
    if "non_blocking" in kwargs:
        kwargs["non_blocking"] = False
    result = op(*args, **kwargs)
    return (
        result
        if leaves
        else tree_map_only(
            torch.Tensor, lambda v: originals[id(v)] if id(v) in originals else NoFloat64Tensor(v), result
        )
    )


_libraries: list[torch.library.Library] = []


def device() -> torch.device:
    """Return the simulated device; the first call registers it."""
    if not _libraries:
        _setup_privateuseone_for_python_backend(NAME)
        module = getattr(torch, NAME)  # attributes that checkpointing needs
        module.get_amp_supported_dtype = lambda: [torch.float16]
        module.get_rng_state, module.set_rng_state = lambda *_: torch.get_rng_state(), lambda *_: None
        module.device = lambda _: nullcontext()
        rest, aten_library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        rest.fallback(run, "PrivateUse1")
        # torch.tensor calls these without dispatching to NoFloat64Tensor
        for op in (COPY, aten._local_scalar_dense.default):
            aten_library.impl(op.name(), partial(run, op), "PrivateUse1")
        _libraries.extend((rest, aten_library))
    return torch.device(NAME)
