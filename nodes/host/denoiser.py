"""What is inside a denoiser, whatever other packs put around the host's.

A pack's SAMPLER that runs one of ours hands on a denoiser of its own: a function, a partial, a method or an
object, with some of the host's attributes or none. Host: comfy/samplers.py, where KSamplerX0Inpaint holds a
guider, and that the base model."""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .hooks import drop_mask_function, watch_mask
from .model import own_options

DEPTH, MOST = 8, 1000  # of a search: steps from the denoiser, and objects looked at
NAMES = ("inner_model", "model", "_model", "_inner", "__wrapped__", "__self__", "func")
LEAVES = (Tensor, str, bytes, int, float, complex, type, ModuleType, type(None))


def attribute(held: Any, name: str) -> Any:
    """An attribute, or None, whatever asking for it raises."""
    try:
        return getattr(held, name, None)
    except Exception:  # other packs' classes
        return None


def held_by(held: Any) -> Iterator[Any]:
    """The objects that an object holds: attributes, what a function closes over, arguments of a partial."""
    if isinstance(held, dict):
        yield from held.values()
        return
    if isinstance(held, list | tuple | set):
        yield from held
        return
    for name in NAMES:
        yield attribute(held, name)
    if isinstance(held, partial):
        yield from (held.args, held.keywords)
    for cell in attribute(held, "__closure__") or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            continue
    yield from (attribute(held, "__defaults__"), attribute(held, "__kwdefaults__"))
    yield attribute(held, "__dict__")
    for kind in type(held).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield attribute(held, name)


def inside(denoiser: Any, fits: Callable[[Any], bool]) -> Any:
    """The nearest object within a denoiser (itself first) that fits; None where none is found."""
    level, seen = [denoiser], {id(denoiser)}
    for _ in range(DEPTH):
        following: list[Any] = []
        for held in level:
            if fits(held):
                return held
            for part in held_by(held):
                if isinstance(part, LEAVES) or id(part) in seen or len(seen) > MOST:
                    continue
                seen.add(id(part))
                following.append(part)
        level = following
    return None


def guider_of(denoiser: Any) -> Any:
    """The guider that samples, or None."""
    return inside(denoiser, lambda held: attribute(held, "model_patcher") is not None
                  and attribute(held, "inner_model") is not None)  # fmt: skip


def model_sampling_of(denoiser: Any) -> Any:
    """The noise levels of the model that is sampled, or None."""
    base = inside(denoiser, lambda held: attribute(held, "diffusion_model") is not None
                  and attribute(held, "model_sampling") is not None)  # fmt: skip
    return None if base is None else base.model_sampling


def inpainting(denoiser: Any) -> Any:
    """The host's own denoiser, which knows the image that a mask keeps; or None."""
    return inside(denoiser, lambda held: isinstance(attribute(held, "latent_image"), Tensor)
                  and attribute(held, "inner_model") is not None)  # fmt: skip


class Kept:
    """The inpainting mask of a run, as the host's denoiser last used it.

    At every evaluation that puts the original back, by the noise mask or by what the MODEL's
    `denoise_mask_function` makes of it at that noise level. extra_args: of the run, with options of its own;
    the function in them is listened to."""

    def __init__(self, extra_args: dict[str, Any]):
        self.mask: Tensor | None = extra_args.get("denoise_mask")
        if self.mask is not None:
            watch_mask(extra_args["model_options"], self.see)

    def see(self, mask: Tensor) -> None:
        self.mask = mask

    def put_back(self, denoiser: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
        """The end of a run, `[B, ...]` at the noise level `sigma`, blended with the original as one more
        evaluation would: x itself without a mask, and at 0, where a run ends with such an evaluation.

        The host's denoiser blends what it shows the network and what the network answers; down here that
        answers what it is shown."""
        if self.mask is None or float(sigma) == 0:
            return x
        mask = self.mask if len(self.mask) in (1, len(x)) else extra_args["denoise_mask"]
        mask, kept = mask.to(x) ** 2, original_of(denoiser, x, sigma, extra_args).to(x)
        sampling = model_sampling_of(denoiser)
        if sampling is not None:
            kept = sampling.noise_scaling(sigma, torch.zeros_like(kept), kept)
        return (x * mask + kept * (1 - mask)).to(x.dtype)


def original_of(denoiser: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """The image that a mask keeps. Where it is not found, the denoiser is asked once more with a mask of
    zeros: that answers with it."""
    host = inpainting(denoiser)
    if host is not None:
        return host.latent_image
    options = own_options(extra_args)
    drop_mask_function(options)
    nothing = torch.zeros_like(extra_args["denoise_mask"])
    asked = {**extra_args, "model_options": options, "denoise_mask": nothing}
    return denoiser(x, sigma.expand(len(x)).to(x), **asked)
