"""Nodes for random graphs (tests/comfyui/graphs): models by number, counts around the network, and
comparisons of a MODEL before and after a run."""

import json
import os

import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.patcher_extension import WrappersMP

from .inspection import HOOKS, TestLeft, hooks, outline
from .shared import PROMPTS, patched
from .small_models import DTYPES, KINDS, drawn

FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 64, "context_in_dim": 64,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip
if "txt_ids_dims" in FluxParams.__dataclass_fields__:  # newer hosts
    FLUX["txt_ids_dims"] = []
NETWORKS = {**KINDS, "flux": ("Flux", FLUX)}


class Anything(str):
    """An input type that accepts every output."""

    def __ne__(self, other):
        return False


ANY = Anything("*")


class GraphModel:
    """A MODEL of NETWORKS with random weights; each number is another checkpoint."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"which": ("STRING", {}), "dtype": ("STRING", {}), "weights": ("INT", {})}}

    def run(self, which, dtype, weights):
        name, settings = NETWORKS[which]
        config = getattr(comfy.supported_models, name)(dict(settings))
        config.set_inference_dtype(DTYPES[dtype], None)
        base = config.get_model({})
        drawn(base.diffusion_model, weights)
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu),)


class GraphBoth:
    """Two MODELs -> a list of them."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    OUTPUT_IS_LIST = (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("MODEL",), "second": ("MODEL",)}}

    def run(self, first, second):
        return ([first, second],)


class GraphWrap:
    """SAMPLER -> SAMPLER that gives the wrapped sampler its own denoiser, a bare function.

    Packs do this to change the noise level that the model is given; here it is multiplied by `factor`."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SAMPLER",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler": ("SAMPLER",), "factor": ("FLOAT", {})}}

    def run(self, sampler, factor):
        def sample(model, x, sigmas, **kwargs):
            def denoiser(x, sigma, **extra):
                return model(x, sigma * factor, **extra)

            denoiser.inner_model = model.inner_model  # the largest change that packs make
            return sampler.sampler_function(denoiser, x, sigmas, **kwargs, **sampler.extra_options)

        return (comfy.samplers.KSAMPLER(sample),)


class GraphZero:
    """SIGMAS -> the same with a final 0, as the host's own schedules have."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SIGMAS",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sigmas": ("SIGMAS",)}}

    def run(self, sigmas):
        return (torch.cat([sigmas, sigmas.new_zeros(1)]),)


class GraphWatch:
    """MODEL -> MODEL that counts evaluations, rows and calls of the network under a name.

    It also counts how often the network's forward really ran (caches may answer in its place)."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    counts = {}
    # this name marks wrappers that only count; any other wrapper prevents splitting guidance
    KEY = "amed_watch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "name": ("STRING", {})}}

    @classmethod
    def of(cls, name):
        return cls.counts.setdefault(name, dict.fromkeys(("evaluations", "rows", "calls", "forwards"), 0))

    def run(self, model, name):
        def evaluation(executor, *args, **kwargs):
            self.of(name)["evaluations"] += 1
            return executor(*args, **kwargs)

        def call(executor, x, *args, **kwargs):
            self.of(name)["rows"] += len(x)
            self.of(name)["calls"] += 1
            return executor(x, *args, **kwargs)

        def forward(*_):
            self.of(name)["forwards"] += 1

        def sampling(executor, *args, **kwargs):
            hook = model.model.diffusion_model.register_forward_pre_hook(forward)
            try:
                return executor(*args, **kwargs)
            finally:
                hook.remove()

        def change(clone):
            clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, self.KEY, evaluation)
            clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, self.KEY, call)
            clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, self.KEY, sampling)

        return patched(model, change)


class GraphSeen:
    """The counts of GraphWatch since GraphBefore, as JSON; `after` only makes this node wait."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = ("STRING",), "run", "test", True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {}), "after": (ANY,)}}

    def run(self, name, after):
        text = json.dumps(GraphWatch.counts.pop(name[0], {}))
        return {"ui": {"text": [text]}, "result": (text,)}


LOADING = {"current_patcher"}  # attributes of a BaseModel that the host sets while loading


def state(model):
    """Return the state of a MODEL, its BaseModel and its network, as far as a run could change it."""
    base = model.model
    result = {name: outline(getattr(model, name, None)) for name in TestLeft.PATCHES if "backup" not in name}
    result["model_options"] = outline(model.model_options)
    result["base"] = {k: id(v) if callable(v) else "" for k, v in vars(base).items() if k not in LOADING}
    result["modules"] = {k: id(v) for k, v in base._modules.items()}
    result["network"] = hooks(base.diffusion_model)
    usual = set(vars(torch.nn.Module())) | set(HOOKS)
    result["attributes"] = sorted(set(vars(base.diffusion_model)) - usual)
    return result


class GraphBefore:
    """MODEL, prompts, LATENT -> the same MODEL, whose state and Euler image are noted under a name.

    If this fails, the graph itself is wrong."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"
    noted = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": PROMPTS | {"cfg": ("FLOAT", {}), "name": ("STRING", {})}}

    def run(self, model, positive, negative, latent_image, cfg, name):
        image = self.image(model, positive, negative, latent_image, cfg)
        self.noted[name] = image, state(model)
        GraphWatch.counts.clear()
        return (model,)

    @staticmethod
    def image(model, positive, negative, latent, cfg):
        start = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        noise = comfy.sample.prepare_noise(start, 11, latent.get("batch_index"))
        levels = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
        samples = comfy.sample.sample_custom(
            model, noise, cfg, comfy.samplers.sampler_object("euler"), levels, positive, negative, start,
            noise_mask=latent.get("noise_mask"), disable_pbar=True, seed=11,
        )  # fmt: skip
        if not samples.isfinite().all():
            raise ValueError("the host's own Euler gives no finite image here")
        return samples


class GraphAfter:
    """Like GraphBefore, but once `after` is ready; the text is JSON of the changes and of the two images'
    distance."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls):
        before = GraphBefore.INPUT_TYPES()["required"]
        return {"required": before | {"after": (ANY,)}}

    def run(self, after, **inputs):
        model, positive, negative, latent, cfg, name = (value[0] for value in inputs.values())
        image, before = GraphBefore.noted[name]
        again = GraphBefore.image(model, positive, negative, latent, cfg)
        now = state(model)
        changes = {
            "changed": sorted(key for key in before if before[key] != now[key]),
            "away": float((again - image).abs().max() / image.std().clamp(min=1e-9)),
        }
        return {"ui": {"text": [json.dumps(changes)]}}


class GraphFault:
    """MODEL -> MODEL with a fault that must be found.

    raises: a TypeError after the network's call. dies: the whole server. leaves: an option on the given
    MODEL. bends: the network, permanently. mixes: the images of a batch. changes: it runs every time."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "which": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, model, which):
        return float("nan") if which == "changes" else ""

    def run(self, model, which):
        return getattr(self, which)(model)

    def raises(self, model):
        def fail(args):
            return args["denoised"] + None

        return patched(model, lambda m: m.set_model_sampler_post_cfg_function(fail))

    def dies(self, model):
        return patched(model, lambda m: m.set_model_sampler_post_cfg_function(lambda args: os._exit(3)))

    def leaves(self, model):
        model.model_options["left"] = True
        return (model,)

    def bends(self, model):
        model.model.diffusion_model.register_forward_hook(
            lambda module, network_input, network_output: network_output * 1.1
        )
        return (model,)

    def mixes(self, model):
        def mean(args):
            return args["denoised"] + args["denoised"].mean(dim=0, keepdim=True)

        return patched(model, lambda m: m.set_model_sampler_post_cfg_function(mean))

    def changes(self, model):
        return (model,)


NODES = (
    GraphModel,
    GraphBoth,
    GraphWrap,
    GraphWatch,
    GraphSeen,
    GraphBefore,
    GraphAfter,
    GraphFault,
    GraphZero,
)
NODE_CLASS_MAPPINGS = {c.__name__: c for c in NODES}
