"""A small WebUI for tests: the interfaces of AUTOMATIC1111 1.10.1 and Forge that AMED uses, reimplemented
around k-diffusion's real denoiser wrapper. Its checkpoint is the demo model, seen as one of a thousand steps.

`install(kind)` puts it in place of the packages `modules` and `gradio`. The kinds "a1111" and "forge" differ
in where the network is, and in the order and the calls in which rows pass through it.

A prompt is the number of a category ("3"), two of them ("3 AND 5") or "" for no category."""

import inspect
import sys
import threading
import types
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kdiffusion
import torch
from fake_types import (
    Checkpoint,
    InterruptedException,
    Multicond,
    Network,
    OptionInfo,
    Options,
    SamplerData,
    Scheduler,
    State,
)
from torch import Tensor, nn

from demo import model as demo

external = kdiffusion.external()


def label(prompt: str) -> int:
    return int(prompt) if prompt.strip() else demo.UNCONDITIONAL


class CFGDenoiser(nn.Module):
    """The model that a sampler receives."""

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
        prompts = [[label(one) for one in image] for image in cond.batch]
        negative = [label(one) for one in uncond]
        skip = bool(self.step % 2) and s_min_uncond > 0 and float(sigma[0]) < s_min_uncond
        run, forge = (self.by_chunks, True) if host.kind == "forge" else (self.in_order, False)
        prompts_only = skip or (forge and cond_scale == 1)
        of_prompt, of_negative = run(x, sigma, prompts, negative, prompts_only)
        denoised = of_negative.clone()
        for half in of_prompt:
            denoised = denoised + (half - of_negative) * (1.0 if skip else cond_scale) / len(of_prompt)
        if forge:  # without a negative chunk the negative half is zeros
            args = {"denoised": denoised, "cond_denoised": sum(of_prompt) / len(of_prompt)}
            args["uncond_denoised"] = torch.zeros_like(x) if prompts_only else of_negative
            patcher = self.inner_model.inner_model.forge_objects.unet
            for function in patcher.model_options.get("sampler_post_cfg_function", []):
                denoised = args["denoised"] = function(args)
        if self.mask is not None:
            denoised = denoised * self.nmask + self.init_latent * self.mask
        self.sampler.last_latent = denoised
        self.step += 1
        return denoised

    def in_order(self, x, sigma, prompts, negative, skip):
        """A1111: all prompts of the first image, of the second ..., then the negative ones."""
        rows = [(i, category) for i, image in enumerate(prompts) for category in image]
        rows += [] if skip else list(enumerate(negative))
        size = len(rows) if HOST.batched else len(x)
        outs = []
        for start in range(0, len(rows), size):
            which = [i for i, _ in rows[start : start + size]]
            labels = torch.tensor([category for _, category in rows[start : start + size]])
            outs.append(self.inner_model(x[which], sigma[which], context=labels))
        out, count = torch.cat(outs), len(prompts[0])
        of_prompt = [out[n : len(x) * count : count] for n in range(count)]
        return of_prompt, of_prompt[0] if skip else out[-len(x) :]

    def by_chunks(self, x, sigma, prompts, negative, skip):
        """Forge: one chunk of all images per prompt and one for the negative prompt, in reversed order."""
        chunks = [([image[n] for image in prompts], 0) for n in range(len(prompts[0]))]
        chunks += [] if skip else [(negative, 1)]
        chunks.reverse()
        size = len(chunks) if HOST.batched else 1
        outs = []
        for start in range(0, len(chunks), size):
            part = chunks[start : start + size]
            options = {"cond_or_uncond": [kind for _, kind in part]}
            labels = torch.tensor([category for row, _ in part for category in row])
            repeated = x.repeat(len(part), 1, 1, 1), sigma.repeat(len(part))
            outs += self.inner_model(*repeated, context=labels, transformer_options=options).chunk(len(part))
        outs.reverse()
        return outs[: len(prompts[0])], outs[0] if skip else outs[-1]


class KDiffusionSampler:
    """The base class of samplers: calls its function with the arguments that the signature names."""

    def __init__(self, function: Any, model: Any, options: dict | None = None):
        assert {function: 1}  # looked up in a dictionary
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
        batch = [[one.strip() for one in prompt.split("AND")] for prompt in prompts]
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
    """A generation of one batch: img2img with an `image`, with `enable_hr` in the two passes of hires fix."""

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
    """process_images: run the script's `process`, then the passes; return images `[n, 3, H, W]`."""
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
        made = config.constructor(p.sd_model)
        made.config = config
        p.sampler = made
        if script is not None:
            script.process_before_every_sampling(p, *args)
        return made

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
    """Put the modules that an extension imports into sys.modules, and return the WebUI."""
    global HOST

    def module(name: str, **names: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__dict__.update(names)
        sys.modules[name] = made
        return made

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
    own = [
        SamplerData(label, lambda model, name=name: KDiffusionSampler(getattr(functions, name), model), *more)
        for label, name, *more in lines
    ]
    samplers = module(
        "modules.sd_samplers", all_samplers=own, all_samplers_map={one.name: one for one in own},
        samplers_map={}, samplers_hidden=set(),
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
    gradio.__getattr__ = lambda name: name  # the page itself is tested in the real hosts
    HOST = SimpleNamespace(
        kind=kind, shared=shared, sd_samplers=samplers, sd_schedulers=schedulers, scripts=scripts,
        registered=callbacks, callbacks=[], batched=True, before_evaluation=None, checkpoint=checkpoint,
    )  # fmt: skip
    return HOST


def karras(n: int, sigma_min: float, sigma_max: float, device: Any) -> Tensor:
    return kdiffusion.sampling().get_sigmas_karras(n, sigma_min, sigma_max, device=device)


def remove() -> None:
    """Remove the modules of `install`, and the extension that imported them, from sys.modules."""
    for name in list(sys.modules):
        if name in ("modules", "gradio") or name.startswith(("modules.", "amed_webui")):
            del sys.modules[name]
