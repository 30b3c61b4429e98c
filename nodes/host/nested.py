"""Nested latents (LTX-2: video and sound in one LATENT), which the host gives its samplers packed:
`[B, 1, N]`.

Host: comfy/nested_tensor.py, comfy/utils.py (pack_latents)."""

import math
from typing import Any

import torch
from torch import Tensor

from .running import start_of


def parts_of(samples: Any) -> list[Tensor]:
    """The latents that a LATENT's samples hold: one, but for nested ones."""
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]


def like(samples: Any, parts: list[Tensor]) -> Any:
    """Parts put together as those of `samples` are."""
    return type(samples)(parts) if getattr(samples, "is_nested", False) else parts[0]


def blank_of(model: Any, latent: dict) -> Any:
    """Zeros of the size of one of a LATENT's samples, nested where they are."""
    start = start_of(model, latent)
    return like(start, [torch.zeros_like(part[:1]) for part in parts_of(start)])


def repeated(one: Any, count: int) -> Any:
    """So many of a sample `[1, ...]`, nested or not."""
    return like(one, [part.repeat(count, *[1] * (part.ndim - 1)) for part in parts_of(one)])


def packed_shape(one: Any) -> tuple[int, ...]:
    """The shape of a sample `[1, ...]` as a sampler is given it, without its first number."""
    parts = parts_of(one)
    return tuple(parts[0].shape[1:]) if len(parts) == 1 else (1, sum(part[0].numel() for part in parts))


def packed(samples: Any) -> Tensor:
    """Samples as a sampler is given them."""
    parts = parts_of(samples)
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], dim=1)[:, None]


def first_part(one: Any, packed: Tensor) -> Tensor:
    """Of samples `[n, ...]` as a sampler has them the part that can be shown: the first, for `one` as
    blank_of gives it."""
    first = parts_of(one)[0]
    if first.shape[1:] == packed.shape[1:]:
        return packed
    return packed.flatten(1)[:, : math.prod(first.shape[1:])].reshape(len(packed), *first.shape[1:])
