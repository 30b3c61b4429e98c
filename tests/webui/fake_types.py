"""The classes of the fake WebUI (fake_webui.py) that do not refer to the installed WebUI."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from amed.schedules import sd_sigmas
from demo import model as demo


class InterruptedException(BaseException):
    pass


class SamplerData(namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])):
    def total_steps(self, steps: int) -> int:
        return steps * 2 if self.options.get("second_order", False) else steps


@dataclass
class Scheduler:
    name: str
    label: str
    function: Any
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: list | None = None


class Options:
    def __init__(self):
        self.__dict__.update(data={}, data_labels={})

    def __getattr__(self, name: str) -> Any:
        if name in self.data:
            return self.data[name]
        raise AttributeError(name)

    def add_option(self, name: str, info: Any) -> None:
        self.data_labels[name] = info
        self.data.setdefault(name, info.default)


class OptionInfo:
    def __init__(self, default, label, component, component_args, section):
        self.default, self.label, self.component = default, label, component
        self.component_args, self.section = component_args, section


class State(SimpleNamespace):
    def begin(self, job: str = "") -> None:
        self.job, self.interrupted, self.skipped = job, False, False

    def end(self) -> None:
        self.job = ""

    def interrupt(self) -> None:
        self.interrupted = True


class Network(nn.Module):
    """The demo model as a network of Stable Diffusion: predicts eps of x / sqrt(sigma^2 + 1) at a step."""

    def __init__(self, denoiser: demo.Denoiser):
        super().__init__()
        self.denoiser, self.middle_block = denoiser, denoiser.inner_model.middle_block
        self.register_buffer("log_sigmas", sd_sigmas().log().float(), persistent=False)
        self.calls: list[int] = []

    def forward(self, x, t, context=None, transformer_options=None):
        self.calls.append(len(x))
        low, share = t.floor().long().clamp(max=998), t.frac()
        sigma = torch.lerp(self.log_sigmas[low], self.log_sigmas[low + 1], share).exp()
        noised = x * (sigma**2 + 1).sqrt().view(-1, 1, 1, 1)
        return (noised - self.denoiser(noised, sigma, context)) / sigma.view(-1, 1, 1, 1)


class Checkpoint:
    """shared.sd_model of either kind of WebUI."""

    parameterization = "eps"
    is_sd1, is_sd2, is_sdxl, is_sd3 = True, False, False, False

    def __init__(self, kind: str, network: Network, name: str):
        self.alphas_cumprod = 1 / (1 + sd_sigmas().float() ** 2)
        self.sd_checkpoint_info = SimpleNamespace(filename=None, model_name=name)
        self.network = network
        if kind == "forge":
            model = SimpleNamespace(diffusion_model=network)
            self.forge_objects = SimpleNamespace(unet=SimpleNamespace(model=model, model_options={}))
        else:
            self.model = SimpleNamespace(diffusion_model=network)

    def apply_model(self, x, t, context, transformer_options=None):
        return self.network(x, t, context=context, transformer_options=transformer_options)


@dataclass
class Multicond:
    """prompt_parser.MulticondLearnedConditioning: the prompts of each image."""

    shape: tuple
    batch: list
