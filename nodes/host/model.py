"""A MODEL of ComfyUI: its checkpoint, noise levels, applied predictor and previews.

A MODEL is never changed: a run writes to a copy of its options. Host: comfy/model_patcher.py,
model_sampling.py, model_base.py, model_management.py, latent_formats.py."""

import copy
from typing import Any
from weakref import WeakKeyDictionary

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...amed import Fitted, schedules
from ...amed.choose import Identity
from ...amed.double import as_double
from ...amed.fingerprint import identity_of
from .log import warn_once
from .weights import replaced_parts, weights_of

Interrupted = comfy.model_management.InterruptProcessingException
REMEMBERED = 16  # identities of one network, each with other patches (merges)
_identities: WeakKeyDictionary[Any, dict[Any, Identity]] = WeakKeyDictionary()
ATTACHED = "amed_predictor"  # the key in model_options, and the attribute of a model_sampling


def identity(model: Any) -> Identity:
    """Return the Identity of a MODEL's checkpoint: its model family and a hash of its weights.

    It depends neither on the precision of the weights nor on LoRAs. A merge made in the graph has another
    identity than the merged models."""
    patches = getattr(model, "patches_uuid", None)
    if patches is None or replaced_parts(model):
        return read_identity(model)
    known = _identities.setdefault(model.model, {})
    if patches not in known:
        identity_read = read_identity(model)
        if not identity_read.known:
            return identity_read
        while len(known) >= REMEMBERED:
            known.pop(next(iter(known)))
        known[patches] = identity_read
    return known[patches]


def read_identity(model: Any) -> Identity:
    """Compute a MODEL's Identity (see `identity`); it has no hash if the weights cannot be read."""
    config = getattr(model.model, "model_config", None)
    # newer hosts' configurations return None for unknown names
    family = getattr(config, "amed_family", None) or type(config).__name__.lower()
    try:
        return identity_of(family, *weights_of(model))
    except Exception as error:  # weights quantised or offloaded in an unknown way
        warn_once(f"cannot tell this checkpoint from others ({error})")
        return Identity(family, "")


# --- noise levels ------------------------------------------------------------------------------------------


def sampling_of(model: Any) -> Any:
    """Return a MODEL's model_sampling, which defines its noise levels."""
    return model.get_model_object("model_sampling")


def sigma_range(model_sampling: Any) -> tuple[float, float]:
    """Return sigma_min and sigma_max of a model_sampling."""
    return float(model_sampling.sigma_min), float(model_sampling.sigma_max)


def is_flow(model_sampling: Any) -> bool:
    """Whether a model_sampling is that of a flow model."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def prediction_type(model_sampling: Any) -> str:
    """Return what the network predicts, as one of amed.files.spec.PREDICTION_TYPES."""
    kinds = {"CONST": "flow", "V_PREDICTION": "v", "EDM": "edm", "X0": "x0"}
    for name, ours in kinds.items():
        kind = getattr(comfy.model_sampling, name, None)
        if kind is not None and isinstance(model_sampling, kind):
            return ours
    return "eps"


def network_input(model_sampling: Any, sigma: Tensor, x: Tensor) -> Tensor:
    """Scale states x `[n, ...]` at noise levels sigma `[n]` as ComfyUI does for the network."""
    return model_sampling.calculate_input(sigma, x)


def start_sigma(model_sampling: Any, denoise: float) -> float:
    """Return the noise level at which a run with this `denoise` starts: `percent_to_sigma(1 - denoise)`.

    It is at most sigma_max."""
    return min(float(model_sampling.percent_to_sigma(1.0 - denoise)), float(model_sampling.sigma_max))


def noise_scale(model_sampling: Any) -> float:
    """Return the standard deviation of ComfyUI's initial noise at sigma_max, divided by sigma_max."""
    top = torch.as_tensor(float(model_sampling.sigma_max))
    noise = torch.ones(1, 1, 1, 1)
    return float(model_sampling.noise_scaling(top, noise, torch.zeros_like(noise), True).flatten()[0] / top)


def base_times(model_sampling: Any, count: int) -> Tensor:
    """Return the noise levels of the `amed` schedule, float64 `[count]`, from sigma_max to sigma_min.

    They are uniform in the model's timestep, or, for EDM models, in the time of the VP process."""
    low, high = sigma_range(model_sampling)
    if isinstance(model_sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
        return schedules.make("time_uniform", count, low, high)
    if isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete):
        return schedules.make("discrete", count, low, high, table=model_sampling.sigmas)
    ends = [float(model_sampling.timestep(model_sampling.sigmas[i])) for i in (-1, 0)]
    times = torch.linspace(*ends, count, dtype=torch.float64)
    return torch.stack([as_double(model_sampling.sigma(t)) for t in times])


def host_sigmas(model_sampling: Any, steps: int) -> Tensor:
    """Return the noise levels of the `amed` entry of ComfyUI's scheduler dropdown: `steps` levels, then 0.

    If a predictor is applied to the MODEL and `steps` is its number of steps, they are the noise levels that
    the predictor was fitted on. These end without 0 if the predictor is for a sampler of this pack. If it is
    for one of ComfyUI's samplers for which KSampler discards the penultimate level (e.g. dpm_2), a level to
    be discarded is inserted before 0."""
    applied = getattr(model_sampling, ATTACHED, None)
    fitted, host = (None, "") if applied is None else (applied.fitted.sigmas(), applied.fitted.spec.of)
    if fitted is not None and not host and steps == len(fitted) - 1:
        return fitted.float()
    if fitted is not None and steps == len(fitted):
        times = fitted
    elif fitted is not None and steps == len(fitted) + 1 and applied.drops_last:
        times = torch.cat([fitted, fitted[-1:] / 2])
    elif steps > 1:
        times = base_times(model_sampling, steps)
    else:
        times = torch.tensor([float(model_sampling.sigma_max)])
    return torch.cat([times.float(), torch.zeros(1)])


# --- the predictor applied to a MODEL ----------------------------------------------------------------------


class Applied:
    """A predictor stored in a MODEL's options. ComfyUI's deep copies of the options share one object."""

    def __init__(self, fitted: Fitted, drops_last: bool = False):
        self.fitted = fitted
        self.drops_last = drops_last  # whether ComfyUI drops the last level before 0 of the sampler it is for

    def __deepcopy__(self, memo: dict) -> "Applied":
        return self


def apply_predictor(model: Any, fitted: Fitted, drops_last: bool = False) -> Any:
    """Return a clone of a MODEL with a predictor, which AMED's samplers and the `amed` schedule then use.

    drops_last: whether KSampler discards the penultimate noise level for the predictor's sampler (as for
    dpm_2)."""
    clone, applied = model.clone(), Applied(fitted, drops_last)
    clone.model_options[ATTACHED] = applied
    model_sampling = copy.copy(sampling_of(model))
    setattr(model_sampling, ATTACHED, applied)
    clone.add_object_patch("model_sampling", model_sampling)
    return clone


def applied_predictor(model_options: dict) -> Fitted | None:
    """Return the predictor that is stored in a MODEL's `model_options` (see `apply_predictor`), or None."""
    applied = model_options.get(ATTACHED)
    return None if applied is None else applied.fitted


# --- what ComfyUI does with models -------------------------------------------------------------------------


def copied_options(extra_args: dict[str, Any]) -> dict:
    """Return a copy of a run's model options, which may be changed without an effect on the MODEL.

    extra_args: the arguments that ComfyUI gives a sampler for the denoiser, with `model_options`."""
    return comfy.model_patcher.create_model_options_clone(extra_args.get("model_options") or {})


def stop_if_interrupted() -> None:
    """Raise ComfyUI's InterruptProcessingException if the user has interrupted the run."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def unload_all() -> None:
    """Unload all models from the device, which also removes patches from their weights."""
    comfy.model_management.unload_all_models()


def network_space(model: Any, samples: Tensor) -> Tensor:
    """Scale a LATENT's samples to the scale in which the MODEL's network works."""
    return model.model.process_latent_in(samples)


def preview_pixels(model: Any, samples: Tensor) -> Tensor:
    """Convert latents in the network's scale to rough RGB, as ComfyUI's quick previews do.

    Args:
        model: the MODEL. If ComfyUI has no RGB factors for its latent format, the result is gray.
        samples: `[n, C, ..., H, W]`; of a video the first frame is used.

    Returns:
        `[n, 3, H, W]` in [-1, 1]."""
    form, values = model.get_model_object("latent_format"), samples.float().cpu()
    factors = getattr(form, "latent_rgb_factors", None)
    reshape = getattr(form, "latent_rgb_factors_reshape", None)
    values = values if reshape is None or factors is None else reshape(values)
    while values.ndim > 4:
        values = values[:, :, 0]
    values = values[:, :, None] if values.ndim == 3 else values  # sound
    if factors is None or len(factors) != values.shape[1]:
        gray = values.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return (gray / gray.abs().amax().clamp(min=1e-6)).clamp(-1, 1)
    bias = torch.as_tensor(getattr(form, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0])
    rgb = torch.einsum("nchw,cr->nrhw", values, torch.tensor(factors))
    return (rgb + bias.view(1, 3, 1, 1)).clamp(-1, 1)


def pixel_model(network: nn.Module, family: str, settings: dict[str, float], kind: str = "EDM") -> Any:
    """Return a MODEL around a network of RGB pixels in [-1, 1].

    Args:
        network: called as ComfyUI calls a diffusion model, `network(x, timestep, context=, ...)`; has a
            `dtype`.
        family: name of the model family, which is stored with predictors fitted to the MODEL.
        settings: of the noise levels: `sigma_min`, `sigma_max` and `sigma_data`; of a flow model, `shift`.
        kind: a name in ComfyUI's ModelType: "EDM" or "FLOW"."""

    class Pixels(comfy.latent_formats.LatentFormat):
        latent_channels = 3
        latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    class Config(comfy.supported_models_base.BASE):
        unet_config = {"disable_unet_model_creation": True}
        sampling_settings = settings
        latent_format = Pixels
        memory_usage_factor = 1.0
        amed_family = family

    base = comfy.model_base.BaseModel(Config(Config.unet_config), comfy.model_base.ModelType[kind])
    base.diffusion_model = network
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(base, load_device=load, offload_device=offload)
