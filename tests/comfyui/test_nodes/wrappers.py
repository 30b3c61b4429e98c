"""What other packs do to a sampler's contract: wrap denoisers, add mask functions, tag empty latents as newer
hosts do."""

import json
from functools import partial

import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from .missing_features import put
from .shared import PROMPTS, pack, patched

HIDDEN = {}  # a place that no other code searches


class Slotted:
    __slots__ = ("target",)

    def __init__(self, target):
        self.target = target

    def call(self, x, sigma, **extra_args):
        return self.target(x, sigma, **extra_args)


class Module(torch.nn.Module):
    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, x, sigma, **extra_args):
        return self.target(x, sigma, **extra_args)


def closure(model):
    return lambda x, sigma, **extra_args: model(x, sigma, **extra_args)


def named(model):
    wrapper = closure(model)
    wrapper.inner_model, wrapper.sigmas = model.inner_model, model.sigmas
    return wrapper


def by_default(model):
    def wrapper(x, sigma, *, model=model, **extra_args):
        return model(x, sigma, **extra_args)

    return wrapper


def call_model(model, x, sigma, **extra_args):
    return model(x, sigma, **extra_args)


def hidden(model):
    HIDDEN["model"] = model
    return lambda x, sigma, **extra_args: HIDDEN["model"](x, sigma, **extra_args)


WAYS = {
    "closure": closure,
    "named": named,
    "default": by_default,
    "partial": lambda model: partial(call_model, model),
    "method": lambda model: Slotted(model).call,
    "module": Module,
    "twice": lambda model: closure(Slotted(named(model)).call),
    "hidden": hidden,
}


class WrapSampler:
    """SAMPLER -> SAMPLER whose denoiser is wrapped in one of WAYS, without changing anything."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SAMPLER",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler": ("SAMPLER",), "how": ("STRING", {})}}

    def run(self, sampler, how):
        def sample(model, x, sigmas, **more):
            try:
                return sampler.sampler_function(WAYS[how](model), x, sigmas, **more, **sampler.extra_options)
            finally:
                HIDDEN.clear()

        return (comfy.samplers.KSAMPLER(sample),)


def by_step(sigma, mask, extra_options):
    """A mask function in which a share of the steps passes before a pixel changes; it knows only the run's
    steps."""
    sigmas = extra_options["sigmas"]
    step = int((sigmas[:-1] >= sigma[0]).sum()) - 1
    assert 0 <= step < len(sigmas) - 1
    return (mask >= 1 - (step + 1) / (len(sigmas) - 1)).to(mask)


def by_model(sigma, mask, extra_options):
    """A mask function that keeps everything above half of the model's time."""
    sampling = extra_options["model"].inner_model.model_sampling
    half = torch.as_tensor(sampling.percent_to_sigma(0.5))
    early = bool(sampling.timestep(sigma[0]) > sampling.timestep(half.to(sigma)))
    return torch.zeros_like(mask) if early else mask


class MaskRule:
    """MODEL -> MODEL with a denoise_mask_function."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    RULES = {"by_step": by_step, "by_model": by_model, "halved": lambda sigma, mask, extra_options: mask / 2}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "rule": ("STRING", {})}}

    def run(self, model, rule):
        return patched(model, lambda m: m.set_model_denoise_mask_function(self.RULES[rule]))


def newer(model, latent_image, downscale_ratio_spacial=None, downscale_ratio_temporal=None):
    """The newer host's contract: an empty latent made for another number of pixels per latent is resized."""
    model_ratio = model.get_model_object("latent_format").spacial_downscale_ratio
    if downscale_ratio_spacial in (None, model_ratio) or torch.count_nonzero(latent_image):
        return latent_image
    height, width = (round(n * downscale_ratio_spacial / model_ratio) for n in latent_image.shape[-2:])
    return comfy.utils.common_upscale(latent_image, width, height, "nearest-exact", "disabled")


def renamed(model, samples, ratio=None):
    return newer(model, samples, ratio)


def loose(*args, **kwargs):
    return newer(*args, **kwargs)


class TaggedLatent:
    """Sample an empty LATENT of 8 pixels per latent on a MODEL of 16, by each form of the host's function.

    The text has the sampled shape, and the LATENT's keys afterwards."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": PROMPTS}

    def run(self, model, positive, negative, latent_image):
        class Coarse(type(model.get_model_object("latent_format"))):
            spacial_downscale_ratio = 16

        coarse = model.clone()
        coarse.add_object_patch("latent_format", Coarse())
        latent = {**latent_image, "downscale_ratio_spacial": 8}
        sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([10.0, 1.0, 0.0])
        shapes = {}
        for form in (newer, renamed, loose):
            with put(comfy.sample, "fix_empty_latent_channels", form):
                result = pack("host.running").run(
                    coarse, sampler, sigmas, 3, 1.0, positive, negative, latent, quiet=True
                )
                shapes[form.__name__] = [list(result["samples"].shape), sorted(result)]
        result = pack("host.running").run(
            coarse, sampler, sigmas, 3, 1.0, positive, negative, latent, quiet=True
        )
        shapes["host"] = [list(result["samples"].shape), sorted(result)]
        return {"ui": {"text": [json.dumps(shapes)]}}


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (WrapSampler, MaskRule, TaggedLatent)}
