"""Nested latents: several tensors in one LATENT (LTX-2: video and sound).

ComfyUI gives them to its samplers packed into one tensor `[B, 1, N]`. Host: comfy/nested_tensor.py and
pack_latents in comfy/utils.py."""

import math
from typing import Any

import torch
from torch import Tensor

from .running import start_of


def parts_of(samples: Any) -> list[Tensor]:
    """Return the tensors of a LATENT's samples: one, or several if they are nested (e.g. video and sound)."""
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]


def joined_like(samples: Any, parts: list[Tensor]) -> Any:
    """Join tensors (e.g. video and sound) to nested samples if `samples` are nested.

    Otherwise return the first tensor."""
    return type(samples)(parts) if getattr(samples, "is_nested", False) else parts[0]


def blank_sample(model: Any, latent: dict) -> Any:
    """Return zeros `[1, ...]` of the size of one sample of a LATENT.

    They are nested (several tensors, e.g. video and sound) if the LATENT's samples are."""
    start = start_of(model, latent)
    return joined_like(start, [torch.zeros_like(part[:1]) for part in parts_of(start)])


def repeated(sample: Any, count: int) -> Any:
    """Repeat a sample `[1, ...]`, which may be nested (e.g. video and sound), to `[count, ...]`."""
    return joined_like(sample, [p.repeat(count, *[1] * (p.ndim - 1)) for p in parts_of(sample)])


def packed_shape(sample: Any) -> tuple[int, ...]:
    """Return the shape, without the batch, of a sample as ComfyUI gives it to samplers.

    ComfyUI packs the tensors of a nested sample (video and sound) into one `[B, 1, N]`."""
    parts = parts_of(sample)
    return tuple(parts[0].shape[1:]) if len(parts) == 1 else (1, sum(part[0].numel() for part in parts))


def packed(samples: Any) -> Tensor:
    """Pack nested samples (video and sound) into one tensor `[B, 1, N]`, as ComfyUI does for samplers.

    Samples of one tensor are returned as they are."""
    parts = parts_of(samples)
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], dim=1)[:, None]


def visible_part(sample: Any, packed: Tensor) -> Tensor:
    """Return the first tensor of nested samples (of video and sound: the video) from its packed form.

    Args:
        sample: a sample before packing, from which the shapes are read.
        packed: the samples, packed into one tensor `[n, 1, N]`. If `sample` is not nested, they are not
            packed either and are returned unchanged."""
    first = parts_of(sample)[0]
    if first.shape[1:] == packed.shape[1:]:
        return packed
    return packed.flatten(1)[:, : math.prod(first.shape[1:])].reshape(len(packed), *first.shape[1:])
