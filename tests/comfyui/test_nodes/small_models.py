"""Test nodes that make MODELs of the host's own classes, as small as possible and with random weights,
unusual inputs of a sampler, and interruptions."""

import json

import comfy.cldm.cldm
import comfy.conds
import comfy.controlnet
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.nested_tensor
import comfy.ops
import comfy.sample
import comfy.supported_models
import comfy.supported_models_base
import torch

from .shared import PROMPTS, patched

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": (1, 4),
    "num_res_blocks": [1, 1], "transformer_depth": [1, 0], "num_heads": 8, "context_dim": 64,
    "transformer_depth_output": [1, 0, 0, 0], "transformer_depth_middle": 1, "legacy": False,
    "use_spatial_transformer": True,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 2,
    "text_dim": 64, "text_len": 16, "in_dim": 16, "out_dim": 16, "freq_dim": 64,
}  # fmt: skip
KINDS = {"sd15": ("SD15", UNET), "wan": ("WAN21_T2V", WAN)}


@torch.no_grad()
def drawn(network, seed=0):
    """Draw weights whose scale keeps signals bounded; norms and biases have no effect."""
    torch.manual_seed(seed)
    for name, weight in network.named_parameters():
        if weight.ndim < 2:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            weight.copy_(torch.randn(weight.shape) * weight[0].numel() ** -0.5)
    return network


class SmallModel:
    """A MODEL: Stable Diffusion 1.5's U-Net with two levels, or Wan 2.1's video transformer, computing in
    `dtype`."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        required = {"which": ("STRING", {}), "dtype": ("STRING", {})}
        return {"required": required, "optional": {"seed": ("INT", {"default": 0})}}

    def run(self, which, dtype, seed=0):
        name, settings = KINDS[which]
        config = getattr(comfy.supported_models, name)(settings)
        config.set_inference_dtype(DTYPES[dtype], None)
        base = config.get_model({})
        drawn(base.diffusion_model, seed)
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu),)


class VideoAndSound(torch.nn.Module):
    """Two convolutions, of a video and of a sound, each of which also gets the other's mean."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.video, self.sound = torch.nn.Conv3d(4, 4, 3, padding=1), torch.nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x, timestep, **_):
        video, sound = x
        other = timestep.view(-1, 1, 1) + video.mean((2, 3, 4))[..., None]
        video_shift = timestep.view(-1, 1, 1, 1, 1) + sound.mean(2)[..., None, None, None]
        return [self.video(video).tanh() + 0.1 * video_shift, self.sound(sound).tanh() + 0.1 * other]


class Nested(comfy.model_base.BaseModel):
    """A model of nested latents, like LTX-2: the host packs them for the sampler and unpacks them for the
    network."""

    def extra_conds(self, **kwargs):
        out, shapes = super().extra_conds(**kwargs), kwargs.get("latent_shapes")
        return out if shapes is None else {**out, "latent_shapes": comfy.conds.CONDConstant(shapes)}


class SmallNested:
    """A flow MODEL of video and sound, and a LATENT of 3 frames of 6 x 8 and 10 samples of sound."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "LATENT"), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"batch": ("INT", {})}}

    def run(self, batch):
        class Format(comfy.latent_formats.LatentFormat):
            latent_channels, scale_factor = 4, 0.5

        class Config(comfy.supported_models_base.BASE):
            unet_config = {"disable_unet_model_creation": True}
            sampling_settings = {"shift": 3.0}
            latent_format = Format
            memory_usage_factor = 1.0

        base = Nested(Config(Config.unet_config), comfy.model_base.ModelType.FLOW)
        base.diffusion_model = drawn(VideoAndSound()).requires_grad_(False)
        cpu = torch.device("cpu")
        model = comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)
        parts = [torch.zeros(batch, 4, 3, 6, 8), torch.zeros(batch, 4, 10)]
        return (model, {"samples": comfy.nested_tensor.NestedTensor(parts)})


class SmallControl:
    """A CONTROL_NET for SmallModel's U-Net."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONTROL_NET",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        settings = {k: v for k, v in UNET.items() if k not in ("out_channels", "transformer_depth_output")}
        control = comfy.cldm.cldm.ControlNet(
            hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=torch.float32, **settings
        )
        return (comfy.controlnet.ControlNet(drawn(control, 1), load_device=torch.device("cpu")),)


class SmallLatent:
    """A LATENT in another dtype."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "dtype": ("STRING", {})}}

    def run(self, samples, dtype):
        return ({**samples, "samples": samples["samples"].to(DTYPES[dtype])},)


class SmallSigmas:
    """SIGMAS as written."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("SIGMAS",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"levels": ("STRING", {})}}

    def run(self, levels):
        return (torch.tensor([float(v) for v in levels.split(",") if v.strip()]),)


class SmallMemory:
    """A MODEL whose halves of guidance never fit into memory together, so the host evaluates them one by
    one."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def run(self, model):
        return patched(model, lambda m: m.add_object_patch("memory_required", lambda *_, **__: 1e20))


class SmallStops:
    """The text: results of a run that is interrupted in each of its evaluations.

    For each evaluation, the network's calls before and after the interruption; and whether the full run is
    the same before and after."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "test", True

    @classmethod
    def INPUT_TYPES(cls):
        more = {"sampler": ("SAMPLER",), "sigmas": ("SIGMAS",), "cfg": ("FLOAT", {})}
        return {"required": PROMPTS | more}

    def run(self, model, positive, negative, latent_image, sampler, sigmas, cfg):
        calls, at = [], [0]

        def counted(apply, args):
            calls.append(1)
            if len(calls) == at[0]:
                comfy.model_management.interrupt_current_processing()
            return apply(args["input"], args["timestep"], **args["c"])

        watched = model.clone()
        watched.set_model_unet_function_wrapper(counted)

        def full_run(number):
            calls.clear()
            at[0] = number
            start = latent_image["samples"]
            noise = comfy.sample.prepare_noise(start, 3)
            return comfy.sample.sample_custom(
                watched, noise, cfg, sampler, sigmas, positive, negative, start, disable_pbar=True, seed=3
            )

        first = full_run(0)
        stops = []
        for number in range(1, len(calls) + 1):
            try:
                full_run(number)
                stops.append([number, "went on"])
            except comfy.model_management.InterruptProcessingException:
                stops.append([number, len(calls)])
            finally:
                comfy.model_management.interrupt_current_processing(False)
        same = torch.equal(first, full_run(0))
        return {"ui": {"text": [json.dumps({"calls": len(calls), "stops": stops, "same": same})]}}


NODE_CLASS_MAPPINGS = {
    c.__name__: c
    for c in (SmallModel, SmallNested, SmallControl, SmallLatent, SmallSigmas, SmallMemory, SmallStops)
}
