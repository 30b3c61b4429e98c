"""What a MODEL is: its checkpoint, its noise levels, the predictor it carries, its options; and one of our
own.

A MODEL is never altered: what one run needs is put on a copy of that run's options. Host:
comfy/model_patcher.py, model_sampling.py, model_base.py, model_management.py."""

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
REMEMBERED = 16  # identities of one network, by its patches
_identities: WeakKeyDictionary[Any, dict[Any, Identity]] = WeakKeyDictionary()
ATTACHED = "amed_predictor"  # the key in model_options, and the attribute of a model_sampling


def identity(model: Any) -> Identity:
    """Of a MODEL (ModelPatcher): the checkpoint that its network is, in whatever precision it is stored.
    Merges in the graph count, LoRAs do not (weights.py)."""
    patches = getattr(model, "patches_uuid", None)
    if patches is None or replaced_parts(model):
        return read_identity(model)
    known = _identities.setdefault(model.model, {})
    if patches not in known:
        found = read_identity(model)
        if not found.known:
            return found
        while len(known) >= REMEMBERED:
            known.pop(next(iter(known)))
        known[patches] = found
    return known[patches]


def read_identity(model: Any) -> Identity:
    config = getattr(model.model, "model_config", None)
    # newer hosts' configurations answer None to any name they do not know
    family = getattr(config, "amed_family", None) or type(config).__name__.lower()
    try:
        return identity_of(family, *weights_of(model))
    except Exception as error:  # quantised or offloaded weights of a kind we do not know
        warn_once(f"cannot tell this checkpoint from others ({error})")
        return Identity(family, "")


# --- noise levels ------------------------------------------------------------------------------------------


def sampling_of(model: Any) -> Any:
    """A MODEL's model_sampling: its noise levels."""
    return model.get_model_object("model_sampling")


def sigma_range(model_sampling: Any) -> tuple[float, float]:
    """sigma_min and sigma_max."""
    return float(model_sampling.sigma_min), float(model_sampling.sigma_max)


def is_flow(model_sampling: Any) -> bool:
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def prediction_type(model_sampling: Any) -> str:
    """As amed.files.spec.PREDICTION_TYPES has it."""
    kinds = {"CONST": "flow", "V_PREDICTION": "v", "EDM": "edm", "X0": "x0"}
    for name, ours in kinds.items():
        kind = getattr(comfy.model_sampling, name, None)
        if kind is not None and isinstance(model_sampling, kind):
            return ours
    return "eps"


def as_input(model_sampling: Any, sigma: Tensor, x: Tensor) -> Tensor:
    """States `[n, ...]` at noise levels `[n]` as the network is given them, before conditions."""
    return model_sampling.calculate_input(sigma, x)


def start_sigma(model_sampling: Any, denoise: float) -> float:
    """The noise level at which `denoise` of the model's own time is left, as the host counts it."""
    return min(float(model_sampling.percent_to_sigma(1.0 - denoise)), float(model_sampling.sigma_max))


def noise_scale(model_sampling: Any) -> float:
    """What the host multiplies unit noise with at the first noise level, over that level."""
    top = torch.as_tensor(float(model_sampling.sigma_max))
    one = torch.ones(1, 1, 1, 1)
    return float(model_sampling.noise_scaling(top, one, torch.zeros_like(one), True).flatten()[0] / top)


def base_times(model_sampling: Any, count: int) -> Tensor:
    """The `amed` schedule, float64 `[count]`, from the model's sigma_max to its sigma_min: uniform in the
    model's own time, or in the VP process's for models without one (EDM)."""
    low, high = sigma_range(model_sampling)
    if isinstance(model_sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
        return schedules.make("time_uniform", count, low, high)
    if isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete):
        return schedules.make("discrete", count, low, high, table=model_sampling.sigmas)
    ends = [float(model_sampling.timestep(model_sampling.sigmas[i])) for i in (-1, 0)]
    times = torch.linspace(*ends, count, dtype=torch.float64)
    return torch.stack([as_double(model_sampling.sigma(t)) for t in times])


def host_sigmas(model_sampling: Any, steps: int) -> Tensor:
    """What the `amed` entry of a scheduler dropdown gives: `steps` noise levels, then 0.

    Where a predictor is applied to the MODEL and `steps` is its number of intervals, its own times without
    the 0: that run takes exactly the evaluations it was fitted for. One for a sampler of the host's is given
    with its 0, and for those that the host takes the last but one from, with one to be taken."""
    carried = getattr(model_sampling, ATTACHED, None)
    own, of = (None, "") if carried is None else (carried.fitted.sigmas(), carried.fitted.spec.of)
    if own is not None and not of and steps == len(own) - 1:
        return own.float()
    if own is not None and steps == len(own):
        times = own
    elif own is not None and steps == len(own) + 1 and carried.dropped:
        times = torch.cat([own, own[-1:] / 2])
    elif steps > 1:
        times = base_times(model_sampling, steps)
    else:
        times = torch.tensor([float(model_sampling.sigma_max)])
    return torch.cat([times.float(), torch.zeros(1)])


# --- the predictor a MODEL carries -------------------------------------------------------------------------


class Attached:
    """A predictor on a MODEL. The host deep-copies a MODEL's options often; this stays one object. dropped:
    whether the host takes the last but one of its sampler's noise levels away."""

    def __init__(self, fitted: Fitted, dropped: bool = False):
        self.fitted, self.dropped = fitted, dropped

    def __deepcopy__(self, memo: dict) -> "Attached":
        return self


def attach(model: Any, fitted: Fitted, dropped: bool = False) -> Any:
    """A clone of a MODEL that carries a predictor; the MODEL itself is left as it is."""
    clone, carried = model.clone(), Attached(fitted, dropped)
    clone.model_options[ATTACHED] = carried
    marked = copy.copy(sampling_of(model))
    setattr(marked, ATTACHED, carried)
    clone.add_object_patch("model_sampling", marked)
    return clone


def attached(model_options: dict) -> Fitted | None:
    """The predictor that a MODEL's options carry."""
    carried = model_options.get(ATTACHED)
    return None if carried is None else carried.fitted


# --- what the host does with models ------------------------------------------------------------------------


def own_options(extra_args: dict[str, Any]) -> dict:
    """A copy of a run's options, to be changed."""
    return comfy.model_patcher.create_model_options_clone(extra_args.get("model_options") or {})


def stop_if_asked() -> None:
    """Raises the host's InterruptProcessingException once the user stops it."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def unload_all() -> None:
    """Take all models off the device; that takes patches off their weights."""
    comfy.model_management.unload_all_models()


def own_space(model: Any, samples: Tensor) -> Tensor:
    """A LATENT as the MODEL's network sees it, where the host gives it out otherwise scaled."""
    return model.model.process_latent_in(samples)


def preview_pixels(model: Any, samples: Tensor) -> Tensor:
    """A LATENT `[n, C, ..., H, W]` as the MODEL's network sees it, as rough RGB `[n, 3, H, W]` in [-1, 1]: by
    the latent format's factors, as the host's quick previews are. Of a video the first frame."""
    form, seen = model.get_model_object("latent_format"), samples.float().cpu()
    factors = getattr(form, "latent_rgb_factors", None)
    reshape = getattr(form, "latent_rgb_factors_reshape", None)
    seen = seen if reshape is None or factors is None else reshape(seen)
    while seen.ndim > 4:
        seen = seen[:, :, 0]
    seen = seen[:, :, None] if seen.ndim == 3 else seen  # sound
    if factors is None or len(factors) != seen.shape[1]:
        gray = seen.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return (gray / gray.abs().amax().clamp(min=1e-6)).clamp(-1, 1)
    bias = torch.as_tensor(getattr(form, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0])
    rgb = torch.einsum("nchw,cr->nrhw", seen, torch.tensor(factors))
    return (rgb + bias.view(1, 3, 1, 1)).clamp(-1, 1)


def pixel_model(network: nn.Module, family: str, settings: dict[str, float]) -> Any:
    """A MODEL around an EDM network of RGB pixels in [-1, 1].

    `network(x, c_noise, context=, transformer_options=, ...)` with a `dtype`; `settings`: sigma_min,
    sigma_max, sigma_data."""

    class Pixels(comfy.latent_formats.LatentFormat):
        latent_channels = 3
        latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    class Config(comfy.supported_models_base.BASE):
        unet_config = {"disable_unet_model_creation": True}
        sampling_settings = settings
        latent_format = Pixels
        memory_usage_factor = 1.0
        amed_family = family

    base = comfy.model_base.BaseModel(Config(Config.unet_config), comfy.model_base.ModelType.EDM)
    base.diffusion_model = network
    load, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(base, load_device=load, offload_device=offload)
