"""ComfyUI's objects inside a denoiser, whatever other packs wrap around it, and inpainting masks.

Another pack's SAMPLER that runs one of this pack's may pass a denoiser of its own: a function, a partial, a
method or an object, with some of the attributes of ComfyUI's denoiser or none. Host: comfy/samplers.py, where
KSamplerX0Inpaint holds a guider, and the guider the base model."""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .hooks import drop_mask_function, watch_mask
from .model import copied_options

DEPTH, MOST = 8, 1000  # limits of a search: levels below the denoiser, and objects
NAMES = ("inner_model", "model", "_model", "_inner", "__wrapped__", "__self__", "func")
LEAVES = (Tensor, str, bytes, int, float, complex, type, ModuleType, type(None))


def attribute(holder: Any, name: str) -> Any:
    """Return an attribute, or None if it is missing or reading it raises."""
    try:
        return getattr(holder, name, None)
    except Exception:  # classes of other packs
        return None


def objects_in(holder: Any) -> Iterator[Any]:
    """Yield the objects directly inside an object.

    These are its attributes, the closure and defaults of a function, the arguments of a partial, and the
    items of a container."""
    if isinstance(holder, dict):
        yield from holder.values()
        return
    if isinstance(holder, list | tuple | set):
        yield from holder
        return
    for name in NAMES:
        yield attribute(holder, name)
    if isinstance(holder, partial):
        yield from (holder.args, holder.keywords)
    for cell in attribute(holder, "__closure__") or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            continue
    yield from (attribute(holder, "__defaults__"), attribute(holder, "__kwdefaults__"))
    yield attribute(holder, "__dict__")
    for kind in type(holder).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield attribute(holder, name)


def nearest_inside(denoiser: Any, fits: Callable[[Any], bool]) -> Any:
    """Return the nearest object inside a denoiser (the denoiser itself first) for which `fits` is true.

    None if there is none within 8 levels of attributes and 1000 objects (DEPTH, MOST)."""
    level, seen = [denoiser], {id(denoiser)}
    for _ in range(DEPTH):
        next_level: list[Any] = []
        for holder in level:
            if fits(holder):
                return holder
            for part in objects_in(holder):
                if isinstance(part, LEAVES) or id(part) in seen or len(seen) > MOST:
                    continue
                seen.add(id(part))
                next_level.append(part)
        level = next_level
    return None


def guider_of(denoiser: Any) -> Any:
    """Return the ComfyUI guider (e.g. CFGGuider) inside a denoiser, or None if it cannot be found."""
    return nearest_inside(denoiser, lambda holder: attribute(holder, "model_patcher") is not None
                          and attribute(holder, "inner_model") is not None)  # fmt: skip


def model_sampling_of(denoiser: Any) -> Any:
    """Return the model_sampling (noise levels) of the sampled model, or None if it cannot be found."""
    base = nearest_inside(denoiser, lambda holder: attribute(holder, "diffusion_model") is not None
                          and attribute(holder, "model_sampling") is not None)  # fmt: skip
    return None if base is None else base.model_sampling


def inpaint_denoiser(denoiser: Any) -> Any:
    """Return ComfyUI's own denoiser, which holds the original image of inpainting, or None."""
    return nearest_inside(denoiser, lambda holder: isinstance(attribute(holder, "latent_image"), Tensor)
                          and attribute(holder, "inner_model") is not None)  # fmt: skip


class InpaintMask:
    """A run's inpainting mask, as ComfyUI's denoiser last used it.

    At every evaluation ComfyUI restores the original image outside the mask. The mask is the LATENT's noise
    mask. If the MODEL has a `denoise_mask_function`, that returns another mask for each noise level.

    Args:
        extra_args: the run's arguments. Their `model_options` must be a copy, because a
            `denoise_mask_function` in them is replaced by one that also stores its result here."""

    def __init__(self, extra_args: dict[str, Any]):
        self.mask: Tensor | None = extra_args.get("denoise_mask")
        if self.mask is not None:
            watch_mask(extra_args["model_options"], self.see)

    def see(self, mask: Tensor) -> None:
        self.mask = mask

    def restore(self, denoiser: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
        """Return a run's last state x `[B, ...]` with the original image outside the inpainting mask.

        x is returned unchanged without a mask, and at sigma 0, where the last evaluation has restored the
        image. The mask is squared, because ComfyUI applies it twice per evaluation: to the network's input
        and to its result."""
        if self.mask is None or float(sigma) == 0:
            return x
        mask = self.mask if len(self.mask) in (1, len(x)) else extra_args["denoise_mask"]
        mask, original = mask.to(x) ** 2, original_image(denoiser, x, sigma, extra_args).to(x)
        sampling = model_sampling_of(denoiser)
        if sampling is not None:
            original = sampling.noise_scaling(sigma, torch.zeros_like(original), original)
        return (x * mask + original * (1 - mask)).to(x.dtype)


def original_image(denoiser: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """Return the original image of an inpainting run.

    If ComfyUI's denoiser cannot be found, one evaluation with a mask of zeros gives the image."""
    host = inpaint_denoiser(denoiser)
    if host is not None:
        return host.latent_image
    options = copied_options(extra_args)
    drop_mask_function(options)
    zeros = torch.zeros_like(extra_args["denoise_mask"])
    masked_args = {**extra_args, "model_options": options, "denoise_mask": zeros}
    return denoiser(x, sigma.expand(len(x)).to(x), **masked_args)
