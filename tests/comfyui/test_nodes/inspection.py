"""Test nodes for unusual prompts and MODELs, and for inspecting the pack inside the host."""

import ctypes
import gc
import json
import sys
import time
import weakref
from collections import Counter, OrderedDict
from types import ModuleType, SimpleNamespace

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch

from .shared import PROMPTS, OfModel, pack, patched


def outline(value):
    """Describe options by the structure of their dicts and lists and the identity of each object."""
    if isinstance(value, dict):
        return {key: outline(v) for key, v in value.items()}
    return [outline(v) for v in value] if isinstance(value, list) else id(value)


class TestPrompt:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        widths = {"width": ("INT", {}), "pooled": ("INT", {})}
        return {"required": {"seed": ("INT", {}), "repeats": ("INT", {})}, "optional": widths}

    def run(self, seed, repeats, width=768, pooled=1280):
        drawn = torch.Generator().manual_seed(seed)
        tokens = torch.randn(1, 11, width, generator=drawn)
        return ([[tokens.repeat(1, repeats, 1), {"pooled_output": torch.randn(1, pooled, generator=drawn)}]],)


class TestModel:
    """MODEL -> MODEL changed as `which` says.

    broken: gives NaN. halved: a post-CFG function halves the combined result. bent: a pre-CFG function
    changes the conditional half. closed: the network gets no patches. tired: fails after TIRED evaluations.
    lora: a LoRA's patches on its weights."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "which": ("STRING", {})}}

    TIRED = 26

    def run(self, model, which):
        evaluations = []

        def tired(args):
            evaluations.append(1)
            if len(evaluations) > self.TIRED:
                raise RuntimeError("tired,\nand says so")
            return args["denoised"]

        def closed(apply, args):
            return apply(args["input"], args["timestep"], **{**args["c"], "transformer_options": {}})

        def lora(m):
            # not scaled by the weights: those of another MODEL, e.g. a merge, may be loaded at the moment
            draw = torch.Generator().manual_seed(0)
            shapes = {n: w.shape for n, w in m.model.diffusion_model.named_parameters() if w.ndim > 1}
            changes = {n: torch.randn(s, generator=draw) / s[1:].numel() ** 0.5 for n, s in shapes.items()}
            m.add_patches({f"diffusion_model.{n}": ("diff", (0.1 * c,)) for n, c in changes.items()})

        changes = {
            "lora": lora,
            "broken": lambda m: m.set_model_sampler_post_cfg_function(lambda a: a["denoised"] * float("nan")),
            "halved": lambda m: m.set_model_sampler_post_cfg_function(lambda a: a["denoised"] / 2),
            "bent": lambda m: m.set_model_sampler_pre_cfg_function(
                lambda a: [a["conds_out"][0].mul_(3), *a["conds_out"][1:]]
            ),
            "tired": lambda m: m.set_model_sampler_post_cfg_function(tired),
            "closed": lambda m: m.set_model_unet_function_wrapper(closed),
        }
        return patched(model, changes[which])


class Inside:
    """MODEL, prompts, LATENT, cfg -> the result of `look`, called where a sampler runs, at one noise
    level."""

    FUNCTION, CATEGORY, OUTPUT_NODE = "run", "test", True
    SIGMAS = (5.0, 1.0)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": PROMPTS | {"cfg": ("FLOAT", {})}}

    def run(self, model, positive, negative, latent_image, cfg):
        start = latent_image["samples"]
        noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(7))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)

        def sampler(denoiser, x, sigmas, extra_args=None, callback=None, disable=None):
            self.look(denoiser, x, sigmas, extra_args)
            return x

        before = outline(model.model_options)
        mask = latent_image.get("noise_mask")
        sampler = comfy.samplers.KSAMPLER(sampler)
        guider.sample(noise, start, sampler, torch.tensor(self.SIGMAS), mask, disable_pbar=True, seed=0)
        assert outline(model.model_options) == before, "something was left on the MODEL"
        return {"ui": {"text": [self.text]}, "result": self.result}


class TestHalves(Inside):
    """LATENTs denoised, cond and uncond (zeros for None).

    The text is JSON: which of them are None, and whether the run's options are unchanged."""

    RETURN_TYPES = ("LATENT",) * 3

    def look(self, denoiser, x, sigmas, extra_args):
        options = outline(extra_args["model_options"])
        wants = frozenset({"halves", "bottleneck"})
        level = sigmas[0].expand(len(x))
        evaluation = pack("host.evaluate").evaluate(denoiser, x, level, extra_args, wants)
        is_unchanged = outline(extra_args["model_options"]) == options
        alone = denoiser(x, level, **extra_args)
        same = torch.equal(
            alone, pack("host.evaluate").evaluate(denoiser, x, level, extra_args, frozenset()).denoised
        )
        images = [evaluation.denoised, evaluation.cond, evaluation.uncond]
        self.result = tuple({"samples": torch.zeros_like(x) if v is None else v.clone()} for v in images)
        self.text = json.dumps(
            {
                "none": [n for n in ("bottleneck", "cond", "uncond") if getattr(evaluation, n) is None],
                "options kept": is_unchanged,
                "same image": same and torch.allclose(alone, evaluation.denoised, atol=1e-5),
            }
        )


class TestDevice(Inside):
    """The text says on which device a predictor's network is when the images are on "meta"."""

    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls):
        inputs = super().INPUT_TYPES()
        inputs["required"]["file"] = ("STRING", {})
        return inputs

    def run(self, file, **inputs):
        self.file = file
        return super().run(**inputs)

    def look(self, denoiser, x, sigmas, extra_args):
        sampling, self.result = pack("host.sampling"), ()

        def record(model, x, *_, predictor=None, **__):
            self.text = str(next(predictor.predictor.parameters()).device)
            return x

        registered = sampling.SAMPLERS
        sampling.SAMPLERS = dict.fromkeys(registered, record)
        try:
            fitted = pack("host.folders").library().load(self.file)
            run = sampling.sampler_function(fitted.spec.sampler)
            run(denoiser, x.to("meta"), sigmas, extra_args, predictor=fitted)
        finally:
            sampling.SAMPLERS = registered


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks(network):
    """Return hooks on a network's modules, and replaced forward methods."""
    result = []
    for name, module in network.named_modules():
        result += [f"{name}.{kind}" for kind in HOOKS if getattr(module, kind, None)]
        result += [f"{name}.forward"] if "forward" in vars(module) else []
    return result


class TestLeft(OfModel):
    """MODEL -> text: JSON of everything that runs could have left behind.

    `hooks` on its network, `patches` on the MODEL, `replaced` functions in the host's modules since the first
    call; and, with caches emptied, counts of live tensors by type and shape (`tensors`), of the pack's
    objects by class (`ours`), and of entries in its modules' containers and the host's lists of samplers and
    schedulers (`lengths`)."""

    RETURN_TYPES, OUTPUT_NODE = (), True
    PATCHES = (
        "patches", "backup", "object_patches", "object_patches_backup", "weight_wrapper_patches",
        "attachments", "additional_models", "wrappers", "callbacks", "injections", "hook_patches",
        "hook_backup", "cached_hook_patches",
    )  # fmt: skip
    first = None

    def run(self, model):
        empty()
        gc.collect()
        if sys.platform == "linux":  # so that the measured memory does not include the allocator's reserve
            ctypes.CDLL(None).malloc_trim(0)
        now, cls = self.host(), type(self)
        cls.first = cls.first or now
        changed = {name for name, was in cls.first.items() if now.get(name, was) != was}
        changed |= {name for name in cls.first if name not in now}
        gc.collect()  # objects freed by the first pass may have held others
        alive = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        kinds = Counter(f"{type(o).__name__} {o.dtype} {list(o.shape)}" for o in alive)
        ours = Counter(
            type(o).__qualname__ for o in gc.get_objects() if "comfyui-amed" in str(type(o).__module__)
        )
        state = {
            "hooks": hooks(model.model.diffusion_model),
            "patches": self.patches(model),
            "replaced": sorted(changed),
            "tensors": dict(sorted(kinds.items())),
            "lengths": self.lengths(),
            "bytes": sum(
                {o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in alive}.values()
            ),
            "ours": dict(sorted(ours.items())),
        }
        while UNDO:
            UNDO.pop()()
        return {"ui": {"text": [json.dumps(state)]}}

    def patches(self, model):
        """Return the patches on the MODEL; of its options everything except the initial empty dict."""
        result = [
            f"{n}: {list(filled_value)}"
            for n in self.PATCHES
            if (filled_value := filled(getattr(model, n, None)))
        ]
        options = filled(model.model_options)
        return [*result, *([f"model_options: {list(options)}"] if options else [])]

    @staticmethod
    def lengths():
        """Return the length of every list, dict and set in a module of the pack, and of the host's lists of
        names."""
        ours = {k: m for k, m in list(sys.modules.items()) if "comfyui-amed" in k}
        result = {
            f"{name.split('comfyui-amed')[1]}.{key}": len(value)
            for name, module in ours.items()
            for key, value in list(vars(module).items())
            if isinstance(value, list | dict | set) and not key.startswith("__")
        }
        for name in ("SAMPLER_NAMES", "SCHEDULER_NAMES", "SCHEDULER_HANDLERS", "KSAMPLER_NAMES"):
            result[name] = len(getattr(comfy.samplers, name, ()))
        return result

    @staticmethod
    def host():
        """Return the id of every function and class of the host's modules and of their classes' methods, by
        name.

        Callbacks are left out, because the host itself changes them."""
        tops, result = (
            ("comfy", "comfy_execution", "execution", "nodes", "latent_preview", "folder_paths"),
            {},
        )
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] not in tops or not isinstance(module, ModuleType):
                continue
            for key, value in list(vars(module).items()):
                if callable(value) and not key.endswith("_callback"):
                    result[f"{name}.{key}"] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    methods = {f"{name}.{key}.{k}": id(v) for k, v in vars(value).items() if callable(v)}
                    result |= {k: v for k, v in methods.items() if not k.endswith("__")}
        return result


def empty():
    """Clear the pack's caches, which are bounded and fill slowly.

    They are functools caches (tables of the last 32 runs) and OrderedDicts (library lookups of the last 512
    nodes)."""
    modules = [m for m in list(sys.modules.values()) if "comfyui-amed" in str(getattr(m, "__name__", ""))]
    values = [value for module in modules for value in list(vars(module).values())]
    for value in values:
        if hasattr(value, "cache_clear"):
            value.cache_clear()
        elif isinstance(value, OrderedDict):
            value.clear()


def filled(value):
    """Return the non-empty ones of nested dicts and lists."""
    if isinstance(value, dict):
        result = {k: filled(v) for k, v in value.items()}
        return {k: v for k, v in result.items() if not (isinstance(v, dict | list) and not v)}
    return value


UNDO = []  # changes that TestLeft undoes


class TestLeaves(OfModel):
    """MODEL -> MODEL that leaves behind what TestLeft must find, and undo.

    It leaves a hook on the network, a patch on the MODEL, a replaced function of the host, a tensor, and one
    more sampler name."""

    RETURN_TYPES = ("MODEL",)

    def run(self, model):
        original = comfy.samplers.sampling_function
        comfy.samplers.sampling_function = lambda *args, **kwargs: original(*args, **kwargs)
        hook = model.model.diffusion_model.register_forward_hook(lambda *_: None)
        tensors = [torch.zeros(3, 1, 4, 1, 5)]
        comfy.samplers.SAMPLER_NAMES.append("left")
        UNDO.extend([hook.remove, lambda: setattr(comfy.samplers, "sampling_function", original)])
        UNDO.extend([tensors.clear, lambda: comfy.samplers.SAMPLER_NAMES.remove("left")])
        return patched(model, lambda m: m.add_object_patch("model_sampling", m.model.model_sampling))


class TestMemory:
    """MODEL -> MODEL that runs out of memory once, with the host's error, at its evaluation `at` (0:
    never)."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    tensors = []  # weak references to the network's inputs and to earlier results
    calls = {}  # evaluations by name

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "at": ("INT", {}), "name": ("STRING", {})}}

    def run(self, model, at, name):
        evaluations = []

        def counted(apply, args):
            evaluations.append(1)
            self.calls[name] = len(evaluations)
            if len(evaluations) == at:
                raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2.00 GiB")
            denoised = apply(args["input"], args["timestep"], **args["c"])
            if len(evaluations) < at:
                self.tensors.extend(weakref.ref(v) for v in (args["input"], denoised))
            return denoised

        return patched(model, lambda m: m.set_model_unet_function_wrapper(counted))


class TestStops:
    """MODEL -> MODEL at whose evaluation `at` (a batch of 8 counts as 8) the run is interrupted.

    With `wait`, it waits there until somebody interrupts the run."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    LONGEST = 600  # seconds

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "at": ("INT", {}), "wait": ("BOOLEAN", {})}}

    def run(self, model, at, wait):
        rows = []

        def counted(apply, args):
            before, now = len(rows), len(rows) + len(args["input"])
            rows.extend(range(before, now))
            if before < at <= now:
                self.stop(wait)
            return apply(args["input"], args["timestep"], **args["c"])

        return patched(model, lambda m: m.set_model_unet_function_wrapper(counted))

    def stop(self, wait):
        if not wait:
            comfy.model_management.interrupt_current_processing()
            return
        print("TestStops: waits", flush=True)
        end = time.monotonic() + self.LONGEST
        while not comfy.model_management.processing_interrupted() and time.monotonic() < end:
            time.sleep(0.02)


class TestBar:
    """The text is [seconds, value] of each message of a progress bar that is updated 1,000 times, every 10
    ms."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        running, sent, now = pack("host.running"), [], [0.0]
        clock, hook = running.time, comfy.utils.PROGRESS_BAR_HOOK
        running.time = SimpleNamespace(monotonic=lambda: now[0])
        comfy.utils.set_progress_bar_global_hook(lambda value, *_, **__: sent.append([now[0], value]))
        try:
            show = running.progress_bar(None, 1000)
            for value in range(1, 1001):
                now[0] = value / 100
                show(value)
        finally:
            running.time = clock
            comfy.utils.set_progress_bar_global_hook(hook)
        return {"ui": {"text": [json.dumps(sent)]}}


class TestKept:
    """MODEL -> JSON of what is left on it and on its network, and of how many tensors of TestMemory are
    alive."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "again": ("INT", {})}}

    def run(self, model, again):
        gc.collect()  # as the host does after a while
        text = json.dumps(
            {
                "options": outline(model.model_options),
                "wrappers": outline(getattr(model, "wrappers", {})),
                "hooks": hooks(model.model.diffusion_model),
                "held": sum(ref() is not None for ref in TestMemory.tensors),
                "seen": len(TestMemory.tensors),
                "calls": TestMemory.calls,
            }
        )
        return {"ui": {"text": [text]}}


NODES = (
    TestPrompt, TestModel, TestHalves, TestDevice, TestLeft, TestLeaves, TestMemory, TestStops, TestBar,
    TestKept,
)  # fmt: skip
NODE_CLASS_MAPPINGS = {c.__name__: c for c in NODES}
