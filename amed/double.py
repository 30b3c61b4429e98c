"""float64 without a device that has it: Apple's GPUs have none, nor have others.

What a device holds goes to the CPU in its own precision and becomes float64 there: `v.double()`, and
`v.to("cpu", torch.float64)` too, convert on the device. tests/engine/test_float64.py finds other ways."""

from typing import Any

import torch
from torch import Tensor


def as_double(value: Any) -> Tensor:
    """Return a tensor of any device, an array, a number or a list of them as a float64 tensor on the CPU,
    without gradient. Waits for the device."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double()
    return torch.as_tensor(value, dtype=torch.float64)


def as_like(value: Tensor, x: Tensor) -> Tensor:
    """Return a tensor with the device and dtype of `x`, which may be float64 on the CPU."""
    return (value.cpu() if x.device.type == "cpu" else value).to(x)
