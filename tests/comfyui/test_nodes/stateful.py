"""Features that keep a state while the host samples (a step cache, hooks with keyframes), and the error of a
fit's denoiser under them."""

import json
from types import SimpleNamespace

import comfy.hooks
import comfy.samplers
import torch

from .shared import PROMPTS, OfModel, pack, patched


class TestStepCache(OfModel):
    """MODEL -> MODEL with a step cache: every second step reuses what the blocks added in the step before.

    `resets`: "step" resets it at step 0 of a run's list; "never" does not."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "resets": ("STRING", {})}}

    def run(self, model, resets):
        network = model.model.diffusion_model
        cache, blocks = SimpleNamespace(calls=0, added=None), network.blocks

        def cached(apply, args):
            options = args["c"]["transformer_options"]
            level, levels = args["timestep"][0], options["sample_sigmas"]
            if resets == "step" and torch.isclose(levels[0], level):
                cache.calls, cache.added = 0, None
            cache.calls += 1
            try:
                if cache.calls % 2 == 0 and cache.added is not None:
                    network.blocks = torch.nn.ModuleList()
                    return apply(args["input"], args["timestep"], **args["c"]) + cache.added.mean()
                result = apply(args["input"], args["timestep"], **args["c"])
                cache.added = result
                return result
            finally:
                network.blocks = blocks

        return patched(model, lambda m: m.set_model_unet_function_wrapper(cached))


class TestHooks:
    """CONDITIONING -> CONDITIONING with a hook that adds noise to the MODEL's weights.

    Its keyframes are "percent strength, percent strength"."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        inputs = {"model": ("MODEL",), "conditioning": ("CONDITIONING",), "keyframes": ("STRING", {})}
        return {"required": inputs}

    def run(self, model, conditioning, keyframes):
        torch.manual_seed(5)
        weights = model.model.diffusion_model.named_parameters()
        hook, group = comfy.hooks.WeightHook(1.0, 1.0), comfy.hooks.HookGroup()
        hook.need_weight_init, hook.weights = False, {
            f"diffusion_model.{name}": ("diff", (0.3 * weight.std() * torch.randn(weight.shape),))
            for name, weight in weights if weight.ndim > 1
        }  # fmt: skip
        group.add(hook)
        times = comfy.hooks.HookKeyframeGroup()
        for percent, strength in (map(float, frame.split()) for frame in keyframes.split(",")):
            times.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=percent))
        group.set_keyframes_on_hooks(times)
        return (comfy.hooks.set_hooks_for_conditioning(conditioning, group),)


class TestAsked:
    """The text: the relative error of a fit's denoiser on MODEL against `real` in one sampling run of the
    host.

    At the same noise levels in order, in another order, and for a batch."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        more = {"cfg": ("FLOAT", {}), "real": ("MODEL",), "steps": ("INT", {})}
        return {"required": PROMPTS | more}

    def run(self, model, positive, negative, latent_image, cfg, real, steps):
        fitting, levels = (
            pack("host.fitting"),
            pack("host.model").base_times(pack("host.model").sampling_of(model), steps + 1),
        )
        start = pack("host.running").start_of(model, latent_image)[:1]
        levels, results, truth = levels.float(), {}, []
        drawn = torch.Generator().manual_seed(7)
        states = [torch.randn(start.shape, generator=drawn) * level for level in levels]

        def visit(denoiser, x, sigmas, extra_args=None, callback=None, disable=None):
            for level, state in zip(levels, states):
                truth.append(denoiser(state, level[None], **extra_args).clone())
            return x

        guider = comfy.samplers.CFGGuider(real)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        sigmas = torch.cat([levels, torch.zeros(1)])
        zeros = torch.zeros_like(start)
        guider.sample(zeros, zeros, comfy.samplers.KSAMPLER(visit), sigmas, disable_pbar=True, seed=0)
        prompts = fitting.Prompts([positive], negative, latent_image)
        number = torch.zeros(2, dtype=torch.long)
        with fitting.prompted_denoiser(model, prompts, cfg, 0, steps) as denoiser:

            def denoise(which, count=1):
                x = states[which].repeat(count, *[1] * (start.ndim - 1))
                return denoiser(x, levels[which].expand(count), number[:count])

            order = range(len(levels))
            results["in order"] = [denoise(n) for n in order]
            results["again"] = [denoise(n) for n in order for _ in range(2)][1::2]
            results["backwards"] = [denoise(n) for n in reversed(order)][::-1]
            results["batch"] = [denoise(n, 2)[1:] for n in order]
        away = {name: max(float((a - b).std() / b.std()) for a, b in zip(ends, truth))
                for name, ends in results.items()}  # fmt: skip
        return {"ui": {"text": [json.dumps(away)]}}


NODE_CLASS_MAPPINGS = {c.__name__: c for c in (TestStepCache, TestHooks, TestAsked)}
