"""Evaluate a denoiser, and give the conditional bottleneck of that evaluation.

`Capture` is the protocol; `plain` captures nothing; `ModuleCapture` listens to a torch module. Hosts bring
their own.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

Denoiser = Callable[..., Tensor]


class Capture(Protocol):
    """`capture(model, x, sigma, extra_args)` -> (denoised, bottleneck): x `[B, ...]`, sigma `[B]`, denoised
    like x, bottleneck `[B, C, H, W]` of the conditional rows, or None where it cannot be had."""

    def __call__(
        self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]: ...


def plain(model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> tuple[Tensor, None]:
    """Evaluate, capture nothing."""
    return model(x, sigma, **extra_args), None


class ModuleCapture:
    """The output of `module` (a U-Net's middle block), by a forward hook that lives for one evaluation.

    Under classifier-free guidance the module sees more rows than the sampler; `conditional_first` says which
    end of them is conditional. The first output with enough rows is kept."""

    def __init__(self, module: nn.Module, conditional_first: bool = True):
        self.module, self.conditional_first = module, conditional_first

    def __call__(
        self, model: Denoiser, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        seen: list[Tensor] = []

        def listen(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            if not seen and len(output) >= len(x):
                seen.append(
                    output.detach()[: len(x)] if self.conditional_first else output.detach()[-len(x) :]
                )

        handle = self.module.register_forward_hook(listen)
        try:
            denoised = model(x, sigma, **extra_args)
        finally:
            handle.remove()
        return denoised, seen[0] if seen else None
