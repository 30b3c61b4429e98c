"""A WebUI small enough for tests: its interface to extensions, as AUTOMATIC1111 1.10.1 and Forge behave,
around k-diffusion's real denoiser wrapper and the demo model with a thousand steps.

`install(kind)` puts it in place of the packages `modules` and `gradio`. The kinds "a1111" and "forge" differ
in the place of the network, and in the order and the calls in which its rows come.

A prompt is a category's number ("3"), "a AND b" is two of them, "" is none."""

import inspect
import sys
import threading
import types
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kdiffusion
import torch
from torch import Tensor, nn

from amed.schedules import sd_sigmas
from demo import model as demo

external = kdiffusion.external()


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
    """The demo model with Stable Diffusion's interface: eps of x / sqrt(sigma^2 + 1) at a fractional step."""

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
    """shared.sd_model, for either kind of host."""

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


def label(prompt: str) -> int:
    return int(prompt) if prompt.strip() else demo.UNCONDITIONAL


class CFGDenoiser(nn.Module):
    """The model that a sampler is given."""

    def __init__(self, sampler: Any):
        super().__init__()
        self.sampler, self.model_wrap, self.p = sampler, None, None
        self.mask = self.nmask = self.init_latent = None
        self.step = 0

    @property
    def inner_model(self):
        if self.model_wrap is None:
            self.model_wrap = external.CompVisDenoiser(HOST.shared.sd_model)
        return self.model_wrap

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        host, state = HOST, HOST.shared.state
        if state.interrupted or state.skipped:
            raise InterruptedException
        if host.before_evaluation is not None:
            host.before_evaluation(self)
        assert image_cond.shape[0] == len(x) == len(cond.batch) == len(uncond)
        prompts = [[label(prompt) for prompt in image] for image in cond.batch]
        negative = [label(prompt) for prompt in uncond]
        skip = bool(self.step % 2) and s_min_uncond > 0 and float(sigma[0]) < s_min_uncond
        run, forge = (self.by_chunks, True) if host.kind == "forge" else (self.in_order, False)
        alone = skip or (forge and cond_scale == 1)
        of_prompt, of_negative = run(x, sigma, prompts, negative, alone)
        denoised = of_negative.clone()
        for mine in of_prompt:
            denoised = denoised + (mine - of_negative) * (1.0 if skip else cond_scale) / len(of_prompt)
        if forge:  # Forge: without guidance the negative half is zeros
            cond_info = {"denoised": denoised, "cond_denoised": sum(of_prompt) / len(of_prompt)}
            cond_info["uncond_denoised"] = torch.zeros_like(x) if alone else of_negative
            patcher = self.inner_model.inner_model.forge_objects.unet
            for function in patcher.model_options.get("sampler_post_cfg_function", []):
                denoised = cond_info["denoised"] = function(cond_info)
        if self.mask is not None:
            denoised = denoised * self.nmask + self.init_latent * self.mask
        self.sampler.last_latent = denoised
        self.step += 1
        return denoised

    def in_order(self, x, sigma, prompts, negative, skip):
        """A1111's order of rows: all prompts of the first image, of the second, ..., then the negative
        ones."""
        rows = [(i, prompt) for i, image in enumerate(prompts) for prompt in image]
        rows += [] if skip else list(enumerate(negative))
        size = len(rows) if HOST.batched else len(x)
        outs = []
        for start in range(0, len(rows), size):
            which = [i for i, _ in rows[start : start + size]]
            labels = torch.tensor([prompt for _, prompt in rows[start : start + size]])
            outs.append(self.inner_model(x[which], sigma[which], context=labels))
        out, count = torch.cat(outs), len(prompts[0])
        of_prompt = [out[n : len(x) * count : count] for n in range(count)]
        return of_prompt, of_prompt[0] if skip else out[-len(x) :]

    def by_chunks(self, x, sigma, prompts, negative, skip):
        """Forge's order: for each prompt a chunk of all images, and one for the negative prompt, the last
        first."""
        chunks = [([image[n] for image in prompts], 0) for n in range(len(prompts[0]))]
        chunks += [] if skip else [(negative, 1)]
        chunks.reverse()
        size = len(chunks) if HOST.batched else 1
        outs = []
        for start in range(0, len(chunks), size):
            part = chunks[start : start + size]
            chunk_options = {"cond_or_uncond": [kind for _, kind in part]}
            labels = torch.tensor([prompt_label for row, _ in part for prompt_label in row])
            again = x.repeat(len(part), 1, 1, 1), sigma.repeat(len(part))
            outs += self.inner_model(*again, context=labels, transformer_options=chunk_options).chunk(
                len(part)
            )
        outs.reverse()
        return outs[: len(prompts[0])], outs[0] if skip else outs[-1]


class KDiffusionSampler:
    """Computes noise levels, and calls its function with the arguments that its signature names."""

    def __init__(self, function: Any, model: Any, options: dict | None = None):
        assert {function: 1}  # used as a dictionary key
        self.func, self.options, self.config, self.last_latent = function, options or {}, None, None
        self.model_wrap_cfg = CFGDenoiser(self)
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p: Any, steps: int) -> Tensor:
        name = (p.hr_scheduler if p.is_hr_pass else p.scheduler) or "Automatic"
        if name == "Automatic":
            name = self.config.options.get("scheduler")
        chosen = HOST.sd_schedulers.schedulers_map.get(name)
        if chosen is None or chosen.function is None:
            return self.model_wrap.get_sigmas(steps)
        ends = {"sigma_min": float(self.model_wrap.sigmas[0]), "sigma_max": float(self.model_wrap.sigmas[-1])}
        more = {"inner_model": self.model_wrap} if chosen.need_inner_model else {}
        return chosen.function(n=steps, **ends, **more, device="cpu").cpu()

    def callback_state(self, progress: dict) -> None:
        HOST.shared.state.sampling_step = progress["i"]
        HOST.callbacks.append(progress)

    def launch(self, p: Any, steps: int, x: Tensor, sigmas: Tensor, prompts: list, negative: list) -> Tensor:
        cfg = self.model_wrap_cfg
        cfg.p, cfg.step, cfg.total_steps = p, 0, self.config.total_steps(steps)
        cfg.mask, cfg.nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        HOST.shared.state.sampling_steps = steps
        batch = [[part.strip() for part in prompt.split("AND")] for prompt in prompts]
        extra_args = {
            "cond": Multicond((len(batch),), batch),
            "uncond": list(negative),
            "image_cond": torch.zeros(len(x), 5, 1, 1),
            "cond_scale": p.cfg_scale,
            "s_min_uncond": p.s_min_uncond,
        }
        wanted = inspect.signature(self.func).parameters
        assert {"model", "x", "sigmas", "extra_args", "callback", "disable"} <= set(wanted)
        self.last_latent = x
        try:
            return self.func(
                cfg, x, extra_args=extra_args, disable=True, callback=self.callback_state, sigmas=sigmas
            )
        except InterruptedException:
            return self.last_latent

    def sample(self, p: Any, noise: Tensor, prompts: list, negative: list) -> Tensor:
        sigmas = self.get_sigmas(p, p.steps)
        return self.launch(p, p.steps, noise * sigmas[0], sigmas, prompts, negative)

    def sample_img2img(
        self, p: Any, image: Tensor, noise: Tensor, prompts: list, negative: list, steps: int | None = None
    ) -> Tensor:
        requested, strength = steps or p.steps, min(p.denoising_strength, 0.999)
        inner = requested - 1 if steps else int(strength * requested)
        steps = int(requested / strength) if steps else requested
        sigmas = self.get_sigmas(p, steps)[steps - inner - 1 :]
        self.model_wrap_cfg.init_latent = image
        return self.launch(p, inner + 1, image + noise * sigmas[0], sigmas, prompts, negative)


@dataclass
class Processing:
    """A generation of one batch; `image` makes it img2img, `enable_hr` adds the second pass of hires fix."""

    sd_model: Any = None
    prompt: Any = "3"
    negative_prompt: Any = ""
    sampler_name: str = "AMED"
    scheduler: str = "Automatic"
    steps: int = 20
    cfg_scale: float = 1.0
    seed: int = 0
    batch_size: int = 1
    n_iter: int = 1
    width: int = 32
    height: int = 32
    image: Tensor | None = None
    mask: Tensor | None = None
    denoising_strength: float = 0.5
    enable_hr: bool = False
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_second_pass_steps: int = 0
    is_hr_pass: bool = False
    s_min_uncond: float = 0.0
    sampler_noise_scheduler_override: Any = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    extra_generation_params: dict = field(default_factory=dict)
    comments: dict = field(default_factory=dict)

    def __post_init__(self):
        self.sd_model = self.sd_model or HOST.shared.sd_model
        self.init_images = [] if self.image is None else [self.image]

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def close(self) -> None:
        pass


def generate(p: Processing, script: Any = None, args: tuple = ()) -> Tensor:
    """Run process_images: the script's `process`, then the pass or passes. Returns images `[n, 3, H, W]`."""
    HOST.callbacks.clear()
    if script is not None:
        script.process(p, *args)

    def each(text: Any) -> list[str]:
        return text if isinstance(text, list) else [text] * p.batch_size

    prompts, negative = each(p.prompt), each(p.negative_prompt)
    generator = torch.Generator().manual_seed(p.seed)
    noise = torch.randn(len(prompts), 3, p.height, p.width, generator=generator)
    p.nmask = None if p.mask is None else 1 - p.mask

    def sampler(name: str) -> Any:
        config = HOST.sd_samplers.all_samplers_map[name]
        instance = config.constructor(p.sd_model)
        instance.config = config
        p.sampler = instance
        if script is not None:
            script.process_before_every_sampling(p, *args)
        return instance

    with torch.no_grad():
        if p.image is not None:
            x = sampler(p.sampler_name).sample_img2img(p, p.image, noise, prompts, negative)
            return x if p.mask is None else x * p.nmask + p.image * p.mask
        x = sampler(p.sampler_name).sample(p, noise, prompts, negative)
        if p.enable_hr:
            p.is_hr_pass, p.hr_scheduler = True, p.hr_scheduler or p.scheduler
            steps = p.hr_second_pass_steps or p.steps
            x = sampler(p.hr_sampler_name or p.sampler_name).sample_img2img(
                p, x, noise, prompts, negative, steps
            )
    return x


HOST: Any = None


def install(kind: str, folder: Path, denoiser: demo.Denoiser) -> Any:
    """Install the fake host in sys.modules."""
    global HOST

    def module(name: str, **names: Any) -> types.ModuleType:
        new_module = types.ModuleType(name)
        new_module.__dict__.update(names)
        sys.modules[name] = new_module
        return new_module

    state = State(interrupted=False, skipped=False, sampling_step=0, sampling_steps=0, textinfo=None, job="")
    checkpoint = Checkpoint(kind, Network(denoiser), "emoji")
    shared = module(
        "modules.shared",
        opts=Options(),
        state=state,
        OptionInfo=OptionInfo,
        sd_model=checkpoint,
        cmd_opts=SimpleNamespace(),
    )
    common = module(
        "modules.sd_samplers_common",
        SamplerData=SamplerData,
        InterruptedException=InterruptedException,
        samples_to_images_tensor=lambda x, approximation: x.clamp(-1, 1),
    )
    functions = kdiffusion.sampling()
    lines = [
        ("Euler", "sample_euler", ["k_euler"], {}),
        ("DPM++ 2M", "sample_dpmpp_2m", ["k_dpmpp_2m"], {"scheduler": "karras"}),
        ("Heun", "sample_heun", ["k_heun"], {"second_order": True}),
        ("Euler a", "sample_euler_ancestral", ["k_euler_a"], {"uses_ensd": True}),
        ("DPM fast", "sample_dpm_fast", ["k_dpm_fast"], {}),
    ]
    host_samplers = [
        SamplerData(label, lambda model, name=name: KDiffusionSampler(getattr(functions, name), model), *more)
        for label, name, *more in lines
    ]
    samplers = module(
        "modules.sd_samplers", all_samplers=host_samplers,
        all_samplers_map={one.name: one for one in host_samplers}, samplers_map={}, samplers_hidden=set(),
    )  # fmt: skip

    def set_samplers() -> None:
        samplers.samplers = samplers.all_samplers
        samplers.samplers_hidden = set()
        samplers.samplers_map.clear()
        for one in samplers.all_samplers:
            for name in (one.name, *one.aliases):
                samplers.samplers_map[name.lower()] = one.name

    samplers.set_samplers = set_samplers
    listed = [Scheduler("automatic", "Automatic", None), Scheduler("karras", "Karras", karras)]
    schedulers = module(
        "modules.sd_schedulers", Scheduler=Scheduler, schedulers=listed,
        schedulers_map={**{s.name: s for s in listed}, **{s.label: s for s in listed}},
    )  # fmt: skip
    scripts = module(
        "modules.scripts",
        AlwaysVisible=object(),
        Script=type("Script", (), {}),
        scripts_data=[],
        ScriptRunner=type("ScriptRunner", (), {"alwayson_scripts": []}),
    )
    callbacks: dict[str, list] = {}

    def on(name: str) -> Any:
        return lambda function: callbacks.setdefault(name, []).append(function)

    names = ("on_model_loaded", "on_ui_tabs", "on_app_started", "on_ui_settings", "on_before_ui")
    script_callbacks = module("modules.script_callbacks", **{name: on(name) for name in names})
    package = module(
        "modules",
        shared=shared,
        sd_samplers=samplers,
        sd_samplers_common=common,
        sd_samplers_kdiffusion=module(
            "modules.sd_samplers_kdiffusion",
            KDiffusionSampler=KDiffusionSampler,
            samplers_k_diffusion=lines,
            k_diffusion=SimpleNamespace(sampling=functions),
        ),
        sd_schedulers=schedulers,
        scripts=scripts,
        script_callbacks=script_callbacks,
        sd_models=module("modules.sd_models", model_data=SimpleNamespace(sd_model=checkpoint)),
        processing=module(
            "modules.processing", StableDiffusionProcessingTxt2Img=Processing, process_images=generate
        ),
        paths=module("modules.paths", models_path=str(folder / "models")),
        call_queue=module("modules.call_queue", queue_lock=threading.Lock()),
    )
    package.__path__ = []
    gradio = module("gradio")
    gradio.__getattr__ = lambda name: name  # the page itself is tested only in real hosts
    HOST = SimpleNamespace(
        kind=kind, shared=shared, sd_samplers=samplers, sd_schedulers=schedulers, scripts=scripts,
        registered=callbacks, callbacks=[], batched=True, before_evaluation=None, checkpoint=checkpoint,
    )  # fmt: skip
    return HOST


def karras(n: int, sigma_min: float, sigma_max: float, device: Any) -> Tensor:
    return kdiffusion.sampling().get_sigmas_karras(n, sigma_min, sigma_max, device=device)


def remove() -> None:
    """Remove everything that `install` added, and modules that imported it, from sys.modules."""
    for name in list(sys.modules):
        if name in ("modules", "gradio") or name.startswith(("modules.", "amed_webui")):
            del sys.modules[name]
