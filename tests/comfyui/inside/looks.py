"""Prompts and MODELs of odd kinds, and a look at what the pack does inside the host."""

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
    """Of options: which dicts and lists there are, and what object is in each place."""
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
    """MODEL -> MODEL that `which` says: broken (NaN), halved (the combined result, by a post-CFG function),
    bent (the conditional half, by a pre-CFG function), closed (its network is shown no patches), tired (fails
    after TIRED evaluations), lora (its weights with a LoRA's patches)."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "which": ("STRING", {})}}

    TIRED = 26

    def run(self, model, which):
        done = []

        def tired(args):
            done.append(1)
            if len(done) > self.TIRED:
                raise RuntimeError("tired,\nand says so")
            return args["denoised"]

        def closed(apply, args):
            return apply(args["input"], args["timestep"], **{**args["c"], "transformer_options": {}})

        def lora(m):
            draw = torch.Generator().manual_seed(0)
            weights = {n: w for n, w in m.model.diffusion_model.named_parameters() if w.ndim > 1}
            m.add_patches({
                f"diffusion_model.{name}": ("diff", (0.1 * w.std() * torch.randn(w.shape, generator=draw),))
                for name, w in weights.items()
            })  # fmt: skip

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
    """MODEL, prompts, LATENT, cfg -> what `look` sees where a sampler runs, at one noise level."""

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
        assert outline(model.model_options) == before, "something stays on the MODEL"
        return {"ui": {"text": [self.text]}, "result": self.result}


class TestHalves(Inside):
    """-> LATENTs denoised, cond, uncond (zeros for None); the text is the JSON of what is None, and of
    whether the options of the run stayed as they were."""

    RETURN_TYPES = ("LATENT",) * 3

    def look(self, denoiser, x, sigmas, extra_args):
        options = outline(extra_args["model_options"])
        wants = frozenset({"halves", "bottleneck"})
        level = sigmas[0].expand(len(x))
        seen = pack("host.evaluate").evaluate(denoiser, x, level, extra_args, wants)
        kept = outline(extra_args["model_options"]) == options
        alone = denoiser(x, level, **extra_args)
        same = torch.equal(
            alone, pack("host.evaluate").evaluate(denoiser, x, level, extra_args, frozenset()).denoised
        )
        images = [seen.denoised, seen.cond, seen.uncond]
        self.result = tuple({"samples": torch.zeros_like(x) if v is None else v.clone()} for v in images)
        self.text = json.dumps(
            {
                "none": [n for n in ("bottleneck", "cond", "uncond") if getattr(seen, n) is None],
                "options kept": kept,
                "same image": same and torch.allclose(alone, seen.denoised, atol=1e-5),
            }
        )


class TestDevice(Inside):
    """The text: where the network of a predictor file is when the sampler runs on images that are on
    "meta"."""

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

        own = sampling.SAMPLERS
        sampling.SAMPLERS = dict.fromkeys(own, record)
        try:
            fitted = pack("host.folders").library().load(self.file)
            run = sampling.sampler_function(fitted.spec.sampler)
            run(denoiser, x.to("meta"), sigmas, extra_args, predictor=fitted)
        finally:
            sampling.SAMPLERS = own


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks(network):
    """Of its modules: hooks, and a forward of its own."""
    found = []
    for name, module in network.named_modules():
        found += [f"{name}.{kind}" for kind in HOOKS if getattr(module, kind, None)]
        found += [f"{name}.forward"] if "forward" in vars(module) else []
    return found


class TestLeft(OfModel):
    """MODEL -> text, the JSON of what runs could have left behind: on its network (`hooks`), on it
    (`patches`), `replaced` in the host's modules since the first look; counted, with `empty` caches: tensors
    alive by type and shape (`tensors`), objects of the pack by class (`ours`), and what its modules' lists
    and dicts and the host's lists of samplers and schedulers hold (`lengths`)."""

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
        if sys.platform == "linux":  # so that memory is what is held, not what the allocator keeps at hand
            ctypes.CDLL(None).malloc_trim(0)
        now, cls = self.host(), type(self)
        cls.first = cls.first or now
        changed = {name for name, was in cls.first.items() if now.get(name, was) != was}
        changed |= {name for name in cls.first if name not in now}
        gc.collect()  # what the first freed may have held more
        alive = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        kinds = Counter(f"{type(o).__name__} {o.dtype} {list(o.shape)}" for o in alive)
        ours = Counter(
            type(o).__qualname__ for o in gc.get_objects() if "comfyui-amed" in str(type(o).__module__)
        )
        told = {
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
        return {"ui": {"text": [json.dumps(told)]}}

    def patches(self, model):
        """On the MODEL; of its options everything but the empty dict they begin with."""
        found = [f"{n}: {list(own)}" for n in self.PATCHES if (own := filled(getattr(model, n, None)))]
        options = filled(model.model_options)
        return [*found, *([f"model_options: {list(options)}"] if options else [])]

    @staticmethod
    def lengths():
        """By name: of every list, dict and set that a module of the pack has, and of the host's names."""
        ours = {k: m for k, m in list(sys.modules.items()) if "comfyui-amed" in k}
        found = {
            f"{name.split('comfyui-amed')[1]}.{key}": len(value)
            for name, module in ours.items()
            for key, value in list(vars(module).items())
            if isinstance(value, list | dict | set) and not key.startswith("__")
        }
        for name in ("SAMPLER_NAMES", "SCHEDULER_NAMES", "SCHEDULER_HANDLERS", "KSAMPLER_NAMES"):
            found[name] = len(getattr(comfy.samplers, name, ()))
        return found

    @staticmethod
    def host():
        """Every function and class of the host's modules, and of its classes, by name: the object's id. But
        for places that are there to be changed, by the host itself: callbacks."""
        tops, found = ("comfy", "comfy_execution", "execution", "nodes", "latent_preview", "folder_paths"), {}
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] not in tops or not isinstance(module, ModuleType):
                continue
            for key, value in list(vars(module).items()):
                if callable(value) and not key.endswith("_callback"):
                    found[f"{name}.{key}"] = id(value)
                if isinstance(value, type) and value.__module__ == name:
                    own = {f"{name}.{key}.{k}": id(v) for k, v in vars(value).items() if callable(v)}
                    found |= {k: v for k, v in own.items() if not k.endswith("__")}
        return found


def empty():
    """The pack's caches, which are bounded and fill slowly: of functions (tables of the last 32 runs), and
    its OrderedDicts (what the last 512 nodes asked the library)."""
    modules = [m for m in list(sys.modules.values()) if "comfyui-amed" in str(getattr(m, "__name__", ""))]
    values = [value for module in modules for value in list(vars(module).values())]
    for value in values:
        if hasattr(value, "cache_clear"):
            value.cache_clear()
        elif isinstance(value, OrderedDict):
            value.clear()


def filled(own):
    """Of dicts and lists in one another those that hold anything."""
    if isinstance(own, dict):
        kept = {k: filled(v) for k, v in own.items()}
        return {k: v for k, v in kept.items() if not (isinstance(v, dict | list) and not v)}
    return own


UNDO = []  # what a look ends with


class TestLeaves(OfModel):
    """MODEL -> MODEL: leaves behind what TestLeft is to see, and to undo: a hook on the network, a patch on
    the MODEL, a function in place of one of the host's, a tensor, one more sampler name."""

    RETURN_TYPES = ("MODEL",)

    def run(self, model):
        own = comfy.samplers.sampling_function
        comfy.samplers.sampling_function = lambda *args, **kwargs: own(*args, **kwargs)
        hook = model.model.diffusion_model.register_forward_hook(lambda *_: None)
        tensors = [torch.zeros(3, 1, 4, 1, 5)]
        comfy.samplers.SAMPLER_NAMES.append("left")
        UNDO.extend([hook.remove, lambda: setattr(comfy.samplers, "sampling_function", own)])
        UNDO.extend([tensors.clear, lambda: comfy.samplers.SAMPLER_NAMES.remove("left")])
        return patched(model, lambda m: m.add_object_patch("model_sampling", m.model.model_sampling))


class TestMemory:
    """MODEL -> MODEL that runs out of memory, as the host has it, at its evaluation `at` (0: never), once."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    held = []  # weak references to what the network was given and to what was made of it before
    calls = {}  # evaluations by name

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "at": ("INT", {}), "name": ("STRING", {})}}

    def run(self, model, at, name):
        done = []

        def asked(apply, args):
            done.append(1)
            self.calls[name] = len(done)
            if len(done) == at:
                raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2.00 GiB")
            denoised = apply(args["input"], args["timestep"], **args["c"])
            if len(done) < at:
                self.held.extend(weakref.ref(v) for v in (args["input"], denoised))
            return denoised

        return patched(model, lambda m: m.set_model_unet_function_wrapper(asked))


class TestStops:
    """MODEL -> MODEL at whose evaluation `at` (a batch of 8 is 8 of them) the user stops the run; or it waits
    there (`wait`) until somebody stops it."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    LONGEST = 600  # seconds

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "at": ("INT", {}), "wait": ("BOOLEAN", {})}}

    def run(self, model, at, wait):
        seen = []

        def asked(apply, args):
            before, now = len(seen), len(seen) + len(args["input"])
            seen.extend(range(before, now))
            if before < at <= now:
                self.stop(wait)
            return apply(args["input"], args["timestep"], **args["c"])

        return patched(model, lambda m: m.set_model_unet_function_wrapper(asked))

    def stop(self, wait):
        if not wait:
            comfy.model_management.interrupt_current_processing()
            return
        print("TestStops: waits", flush=True)
        end = time.monotonic() + self.LONGEST
        while not comfy.model_management.processing_interrupted() and time.monotonic() < end:
            time.sleep(0.02)


class TestBar:
    """The text: [seconds, value] of what a bar of 1,000 sends that is told each, ten milliseconds apart."""

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
    """MODEL -> JSON of what is left on it and on its network, and how many tensors of TestMemory live on."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "again": ("INT", {})}}

    def run(self, model, again):
        gc.collect()  # as the host does, after a while
        text = json.dumps(
            {
                "options": outline(model.model_options),
                "wrappers": outline(getattr(model, "wrappers", {})),
                "hooks": hooks(model.model.diffusion_model),
                "held": sum(ref() is not None for ref in TestMemory.held),
                "seen": len(TestMemory.held),
                "calls": TestMemory.calls,
            }
        )
        return {"ui": {"text": [text]}}


NODES = (
    TestPrompt, TestModel, TestHalves, TestDevice, TestLeft, TestLeaves, TestMemory, TestStops, TestBar,
    TestKept,
)  # fmt: skip
NODE_CLASS_MAPPINGS = {c.__name__: c for c in NODES}
