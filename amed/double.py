"""Convert tensors to float64 on the CPU, because some devices (e.g. Apple's GPUs) have no float64.

`v.double()` and `v.to("cpu", torch.float64)` convert on the device, which fails there. Therefore a tensor is
first moved to the CPU and then converted; nothing else in the engine may convert
(tests/engine/test_float64.py)."""

from typing import Any

import torch
from torch import Tensor


def as_double(value: Any) -> Tensor:
    """Return a value as a float64 tensor on the CPU, without gradient. Waits for the device.

    Args:
        value: a tensor on any device, an array, a number, or a list of numbers."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double()
    return torch.as_tensor(value, dtype=torch.float64)


def as_like(value: Tensor, x: Tensor) -> Tensor:
    """Return `value` on the device and in the dtype of `x`.

    Unlike `value.to(x)`, this also works from a device without float64 (e.g. Apple's GPUs) to a float64 x on
    the CPU."""
    return (value.cpu() if x.device.type == "cpu" else value).to(x)
