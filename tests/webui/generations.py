"""Generations in a fake WebUI, and what the engine alone gives on its denoiser."""

from pathlib import Path

import torch

from amed import SAMPLERS, Library

PREDICTORS = Library([Path(__file__).parents[2] / "predictors"])
MLP = "emoji32-amed-nfe5-cfg2.safetensors"


def images(host, args=("auto", 0, "as in settings"), **settings):
    """Run a generation with AMED's script; return its images and its processing object."""
    p = host.Processing(**settings)
    return host.generate(p, host.script, args), p


def direct(host, name, x, sigmas, **settings):
    """Run the engine's sampler `name` on the host's denoiser, for category 3 without guidance."""
    label = {"context": torch.full((len(x),), 3)}
    return SAMPLERS[name](wrapped(host), x, sigmas, label, None, True, **settings)


def wrapped(host):
    """Return the host's denoiser without guidance."""
    return host.webui.sd_samplers.all_samplers_map["AMED"].constructor(host.checkpoint).model_wrap


def noise(count=1, size=32, seed=0):
    """Return the noise that a generation with this seed starts from, at unit scale."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def no_hooks(network):
    """Return whether no module of a network has a forward hook."""
    return not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
