"""What other packs do to a sampler's contract: denoisers wrapped in their ways, mask functions, a newer
host's tags of empty latents."""

import json
from functools import partial

import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from .shared import PROMPTS, pack, patched
from .without import put

HIDDEN = {}  # where nobody looks


class Slotted:
    __slots__ = ("target",)

    def __init__(self, target):
        self.target = target

    def ask(self, x, sigma, **extra_args):
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


def asked(model, x, sigma, **extra_args):
    return model(x, sigma, **extra_args)


def hidden(model):
    HIDDEN["model"] = model
    return lambda x, sigma, **extra_args: HIDDEN["model"](x, sigma, **extra_args)


WAYS = {
    "closure": closure,
    "named": named,
    "default": by_default,
    "partial": lambda model: partial(asked, model),
    "method": lambda model: Slotted(model).ask,
    "module": Module,
    "twice": lambda model: closure(Slotted(named(model)).ask),
    "hidden": hidden,
}


class WrapSampler:
    """SAMPLER -> SAMPLER whose denoiser is wrapped in one of WAYS, and changes nothing."""

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
    """Lets a share of the steps pass before a pixel changes, as its mask says; only knows the steps of a
    run."""
    sigmas = extra_options["sigmas"]
    step = int((sigmas[:-1] >= sigma[0]).sum()) - 1
    assert 0 <= step < len(sigmas) - 1
    return (mask >= 1 - (step + 1) / (len(sigmas) - 1)).to(mask)


def by_model(sigma, mask, extra_options):
    """Keeps all above half of the model's time."""
    sampling = extra_options["model"].inner_model.model_sampling
    half = torch.as_tensor(sampling.percent_to_sigma(0.5))
    early = bool(sampling.timestep(sigma[0]) > sampling.timestep(half.to(sigma)))
    return torch.zeros_like(mask) if early else mask


class MaskRule:
    """MODEL with a denoise_mask_function."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    RULES = {"by_step": by_step, "by_model": by_model, "halved": lambda sigma, mask, extra_options: mask / 2}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "rule": ("STRING", {})}}

    def run(self, model, rule):
        return patched(model, lambda m: m.set_model_denoise_mask_function(self.RULES[rule]))


def newer(model, latent_image, downscale_ratio_spacial=None, downscale_ratio_temporal=None):
    """The newer host's contract: an empty latent made for another number of pixels per latent is resized."""
    own = model.get_model_object("latent_format").spacial_downscale_ratio
    if downscale_ratio_spacial in (None, own) or torch.count_nonzero(latent_image):
        return latent_image
    height, width = (round(n * downscale_ratio_spacial / own) for n in latent_image.shape[-2:])
    return comfy.utils.common_upscale(latent_image, width, height, "nearest-exact", "disabled")


def renamed(model, samples, ratio=None):
    return newer(model, samples, ratio)


def loose(*args, **kwargs):
    return newer(*args, **kwargs)


class TaggedLatent:
    """MODEL, prompts, an empty LATENT of 8 pixels per latent -> the text: the shape of what is sampled, and
    the LATENT's keys after it, on a MODEL of 16 pixels per latent, by each form of the host's function."""

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
        told = {}
        for form in (newer, renamed, loose):
            with put(comfy.sample, "fix_empty_latent_channels", form):
                made = pack("host.running").run(
                    coarse, sampler, sigmas, 3, 1.0, positive, negative, latent, quiet=True
                )
                told[form.__name__] = [list(made["samples"].shape), sorted(made)]
        made = pack("host.running").run(
            coarse, sampler, sigmas, 3, 1.0, positive, negative, latent, quiet=True
        )
        told["host"] = [list(made["samples"].shape), sorted(made)]
        return {"ui": {"text": [json.dumps(told)]}}


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (WrapSampler, MaskRule, TaggedLatent)}
