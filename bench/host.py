"""ComfyUI's own samplers and schedules, run around any denoiser exactly as ComfyUI ships them.

This is the only file here that touches ComfyUI. It relies on comfy/k_diffusion/sampling.py,
comfy/extra_samplers/uni_pc.py and the scheduler functions of comfy/samplers.py, which are the same in 0.3.75
and 0.33.0."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from amed.fit.measures import Counter
from demo.comfyui import find

HOST_SCHEDULES = ("karras", "exponential", "beta", "kl_optimal")  # ComfyUI's, which end at 0


@dataclass(frozen=True)
class Variant:
    """One of ComfyUI's samplers with its options, e.g. its order."""

    solver: str  # the sampler's name
    function: str  # name of its function in ComfyUI
    options: dict[str, Any] = field(default_factory=dict, hash=False)  # its keyword arguments

    @property
    def name(self) -> str:
        """The sampler's name, with its order or variant where one is set."""
        options = ((k, v) for k, v in self.options.items() if k in ("max_order", "order", "variant"))
        text = ", ".join(f"{k} {v}" for k, v in options)
        return f"{self.solver} ({text})" if text else self.solver


VARIANTS = (
    Variant("euler", "sample_euler"),  # the same as DDIM
    Variant("heun", "sample_heun"),
    Variant("dpm_2", "sample_dpm_2"),
    Variant("dpmpp_2m", "sample_dpmpp_2m"),
    Variant("dpmpp_3m", "sample_dpmpp_3m_sde", {"eta": 0.0}),
    Variant("lms", "sample_lms", {"order": 4}),
    Variant("lms", "sample_lms", {"order": 3}),
    Variant("ipndm", "sample_ipndm", {"max_order": 4}),
    Variant("ipndm", "sample_ipndm", {"max_order": 3}),
    Variant("ipndm", "sample_ipndm", {"max_order": 2}),
    Variant("ipndm_v", "sample_ipndm_v", {"max_order": 4}),
    Variant("ipndm_v", "sample_ipndm_v", {"max_order": 2}),
    Variant("deis", "sample_deis", {"max_order": 3}),
    Variant("deis", "sample_deis", {"max_order": 2}),
    Variant("uni_pc", "sample_unipc", {"variant": "bh1"}),
    Variant("uni_pc", "sample_unipc", {"variant": "bh2"}),
    Variant("res_multistep", "sample_res_multistep"),
)
SOLVERS = tuple(dict.fromkeys(v.solver for v in VARIANTS))


@cache
def modules() -> SimpleNamespace:
    """Import ComfyUI's sampling modules. Raises RuntimeError without a ComfyUI (`make host` installs one)."""
    root = find()
    if root is None:
        raise RuntimeError(
            "no ComfyUI was found, whose samplers the benchmark measures: run `make host` to install one"
        )
    sys.path.append(str(root))  # last, because ComfyUI's `tests` and `nodes` must not hide ours
    from comfy.cli_args import args

    args.cpu = True
    import comfy.model_sampling
    import comfy.samplers
    from comfy.extra_samplers import uni_pc
    from comfy.k_diffusion import sampling

    version = (Path(root) / "comfyui_version.py").read_text().split('"')[1]
    return SimpleNamespace(
        sampling=sampling,
        uni_pc=uni_pc,
        samplers=comfy.samplers,
        models=comfy.model_sampling,
        version=version,
    )


def schedule(kind: str, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return the noise levels of a ComfyUI schedule, `[steps + 1]`, with a 0 at the end.

    The schedule `beta` may return fewer, because ComfyUI drops repeated levels."""
    host = modules()
    if kind == "beta":
        sampling = host.models.ModelSamplingContinuousEDM()
        sampling.set_parameters(sigma_min, sigma_max, 0.5)
        return host.samplers.beta_scheduler(sampling, steps)
    if kind == "kl_optimal":
        return host.samplers.kl_optimal_scheduler(steps, sigma_min, sigma_max)
    make = {"karras": host.sampling.get_sigmas_karras, "exponential": host.sampling.get_sigmas_exponential}[
        kind
    ]
    return make(n=steps, sigma_min=sigma_min, sigma_max=sigma_max)


class HostModel(nn.Module):
    """A denoiser in the form that ComfyUI's samplers expect.

    Args:
        model: the denoiser to call.
        afs: whether the first call skips the denoiser and returns the analytic result for almost pure noise,
            whose direction is x / sqrt(1 + sigma^2).
        flow: whether `model` is a flow model; some samplers then compute the signal-to-noise ratio
            differently."""

    def __init__(self, model: Callable[..., Tensor], afs: bool, flow: bool = False):
        super().__init__()
        models = modules().models
        kind = type("Flow", (models.ModelSamplingDiscreteFlow, models.CONST), {})
        sampling = kind() if flow else models.ModelSamplingContinuousEDM()
        self.inner_model = SimpleNamespace(
            model_patcher=SimpleNamespace(get_model_object=lambda name: {"model_sampling": sampling}[name])
        )
        self.model, self.analytic = model, afs

    def forward(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        if self.analytic:
            self.analytic = False
            s = sigma.view(-1, *[1] * (x.ndim - 1))
            return x - s * x / (1 + s**2).sqrt()
        return self.model(x, sigma, **kwargs)


@torch.no_grad()
def sample(
    variant: Variant,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    afs: bool,
    args: dict[str, Any],
    flow: bool = False,
) -> Tensor:
    """Run a ComfyUI sampler; return x at the end.

    Args:
        variant: the sampler with its options.
        model: the denoiser.
        x: start noise `[B, ...]`, already multiplied by sigmas[0].
        sigmas: falling noise levels, `[N+1]`.
        afs: whether the first step is analytic, without a model call.
        args: keyword arguments for `model`.
        flow: whether `model` is a flow model."""
    host = modules()
    function = getattr(host.uni_pc if variant.solver == "uni_pc" else host.sampling, variant.function)
    sigmas = sigmas.to(x.dtype).clone()
    host_model = HostModel(model, afs, flow)
    return function(host_model, x, sigmas, extra_args=dict(args), disable=True, **variant.options)


@cache
def evaluations(variant: Variant, steps: int, to_zero: bool, afs: bool) -> int | None:
    """Count the model evaluations that a ComfyUI sampler makes in `steps` steps; None if it fails.

    `to_zero` says whether the last noise level is 0, `afs` whether the first step is analytic."""
    counter = Counter(lambda x, sigma: 0.5 * x)
    sigmas = torch.linspace(2, 0.1, steps + 1, dtype=torch.float64).exp()
    if to_zero:
        sigmas[-1] = 0
    try:
        sample(variant, counter, torch.ones(1, 1, 2, 2) * sigmas[0].float(), sigmas, afs, {})
    except (IndexError, ValueError, RuntimeError, ZeroDivisionError, AssertionError):
        return None
    return counter.evaluations
