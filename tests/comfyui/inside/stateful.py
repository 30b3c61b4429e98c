"""What keeps a state while the host samples: a step cache and hooks with keyframes, as packs have them; and
what the denoiser of a fit is worth under them."""

import json
from types import SimpleNamespace

import comfy.hooks
import comfy.samplers
import torch

from .shared import PROMPTS, OfModel, pack, patched


class TestStepCache(OfModel):
    """MODEL -> MODEL with a step cache: in every second step its blocks are not asked, what they added in the
    step before is added again. `resets`: "step", as it begins with step 0 of the run's list; "never"."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "resets": ("STRING", {})}}

    def run(self, model, resets):
        network = model.model.diffusion_model
        kept, own = SimpleNamespace(calls=0, added=None), network.blocks

        def cached(apply, args):
            options = args["c"]["transformer_options"]
            level, levels = args["timestep"][0], options["sample_sigmas"]
            if resets == "step" and torch.isclose(levels[0], level):
                kept.calls, kept.added = 0, None
            kept.calls += 1
            try:
                if kept.calls % 2 == 0 and kept.added is not None:
                    network.blocks = torch.nn.ModuleList()
                    return apply(args["input"], args["timestep"], **args["c"]) + kept.added.mean()
                result = apply(args["input"], args["timestep"], **args["c"])
                kept.added = result
                return result
            finally:
                network.blocks = own

        return patched(model, lambda m: m.set_model_unet_function_wrapper(cached))


class TestHooks:
    """CONDITIONING -> CONDITIONING with a hook that adds noise to the MODEL's weights, by keyframes "percent
    strength, percent strength"."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        own = {"model": ("MODEL",), "conditioning": ("CONDITIONING",), "keyframes": ("STRING", {})}
        return {"required": own}

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
        for percent, strength in (map(float, one.split()) for one in keyframes.split(",")):
            times.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=percent))
        group.set_keyframes_on_hooks(times)
        return (comfy.hooks.set_hooks_for_conditioning(conditioning, group),)


class TestAsked:
    """The text: how far, in shares of its deviation, the denoiser of a fit on MODEL is from what `real` says
    at the same noise levels in one sampling of the host; in order, in another order, and for a batch."""

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
        levels, seen, truth = levels.float(), {}, []
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

            def ask(which, count=1):
                x = states[which].repeat(count, *[1] * (start.ndim - 1))
                return denoiser(x, levels[which].expand(count), number[:count])

            order = range(len(levels))
            seen["in order"] = [ask(n) for n in order]
            seen["again"] = [ask(n) for n in order for _ in range(2)][1::2]
            seen["backwards"] = [ask(n) for n in reversed(order)][::-1]
            seen["batch"] = [ask(n, 2)[1:] for n in order]
        away = {name: max(float((a - b).std() / b.std()) for a, b in zip(ends, truth))
                for name, ends in seen.items()}  # fmt: skip
        return {"ui": {"text": [json.dumps(away)]}}


NODE_CLASS_MAPPINGS = {c.__name__: c for c in (TestStepCache, TestHooks, TestAsked)}
