"""Fitting inside the host's own sampling: its MODEL as amed.fit wants it, and a copy that gradients go
through."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from ..amed import Evaluation
from ..amed.fit import Rival, Target
from .evaluate import evaluate
from .model import (
    identity,
    is_flow,
    noise_scale,
    prediction_type,
    sampling_of,
    sigma_range,
    stop_if_asked,
    unload_all,
)
from .register import as_sampler, guider_for, shipped
from .running import start_of


@dataclass(frozen=True)
class Prompts:
    """What a MODEL is fitted on: positive CONDITIONINGs, the negative one, and a LATENT for its size."""

    positives: list
    negative: list
    latent: dict


class Prompted:
    """The host's denoiser with guidance, for samples of several prompts: `prompted(x, sigma, prompt=)`,
    `prompt` `[B]` the number of each sample's positive conditioning. Stoppable before every evaluation.

    `wants`, `seen`: as `evaluate_prompted` gives them, through whatever is wrapped around this."""

    def __init__(self, model: Any, extra_args: dict[str, Any]):
        self.inner, self.extra_args = model, extra_args
        self.guider = model.inner_model

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        prompt: Tensor,
        wants: frozenset[str] = frozenset(),
        seen: list[Evaluation] | None = None,
    ) -> Tensor:
        stop_if_asked()
        parts = []
        for number in prompt.unique().tolist():
            rows = prompt == number
            self.guider.conds["positive"] = self.guider.conds[f"positive_{number}"]
            parts.append((rows, evaluate(self.inner, x[rows], sigma[rows], self.extra_args, wants)))
        whole = Evaluation(*(of_all(parts, name) for name in ("denoised", "bottleneck", "cond", "uncond")))
        if seen is not None:
            seen.append(whole)
        return whole.denoised

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def of_all(parts: list[tuple[Tensor, Evaluation]], name: str) -> Tensor | None:
    """One field of evaluations of some rows each, as that of all rows; None where one of them lacks it."""
    values = [getattr(evaluation, name) for _, evaluation in parts]
    if any(value is None for value in values):
        return None
    whole = values[0].new_empty(len(parts[0][0]), *values[0].shape[1:])
    for (rows, _), value in zip(parts, values):
        whole[rows] = value
    return whole


def evaluate_prompted(
    model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any], wants: frozenset[str]
) -> Evaluation:
    """amed.loop.Evaluate for a Prompted, and for what passes its arguments on to one (a Counter)."""
    if not wants:
        return Evaluation(model(x, sigma, **extra_args))
    seen: list[Evaluation] = []
    model(x, sigma, **extra_args, wants=wants, seen=seen)
    return seen[0]


def target_of(
    model: Any, denoiser: Prompted, prompts: int, shape: tuple[int, ...], device: torch.device
) -> Target:
    """What amed.fit fits to: a MODEL inside `inside_sampling`, with so many prompts, of which each draw takes
    one."""
    model_sampling, who = sampling_of(model), identity(model)
    low, high = sigma_range(model_sampling)
    scale = noise_scale(model_sampling)

    def draw(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Any]]:
        noise = torch.randn(count, *shape, generator=generator) * scale
        number = int(torch.randint(prompts, (1,), generator=generator)) if prompts > 1 else 0
        return noise.to(device), {"prompt": torch.full((count,), number, device=device)}

    def rivals(nfe: int) -> dict[str, Rival]:
        return shipped(model_sampling, "simple" if is_flow(model_sampling) else "karras", nfe, denoiser)

    return Target(
        denoiser,
        draw,
        low,
        high,
        prediction_type=prediction_type(model_sampling),
        family=who.family,
        fingerprint=who.fingerprint,
        name=f"{who.family} {who.fingerprint[:8]}".strip(),
        evaluate=evaluate_prompted,
        rivals=rivals,
        signature=who.signature,
    )


def inside_sampling(
    model: Any,
    prompts: Prompts,
    guidance: float,
    seed: int,
    work: Callable[[Prompted, tuple[int, ...], torch.device], None],
) -> None:
    """Call `work(denoiser, shape of one sample, device)` where a sampler would run: the MODEL loaded, its
    patches, LoRAs and wrappers in force, the prompts prepared for the LATENT's size; everything put back
    afterwards."""
    one = torch.zeros_like(start_of(model, prompts.latent)[:1])

    def run(denoiser, x, sigmas, extra_args=None, callback=None, disable=None, **_options):
        with torch.no_grad():
            work(Prompted(denoiser, extra_args or {}), tuple(x.shape[1:]), x.device)
        return x

    named = {"positive": prompts.positives[0], "negative": prompts.negative}
    named |= {f"positive_{i}": cond for i, cond in enumerate(prompts.positives)}
    sigmas = torch.tensor([float(sampling_of(model).sigma_max), 0.0])
    guider = guider_for(model, named, guidance)
    guider.sample(one, one, as_sampler(run), sigmas, disable_pbar=True, seed=seed)


# --- a copy that gradients go through ----------------------------------------------------------------------


def trainable(value: Any) -> Any:
    """Conditioning with every tensor cloned: those made in inference mode take no part in a gradient. What
    else it holds (ControlNets, areas) stays itself."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: trainable(v) for k, v in value.items()}
    return [trainable(v) for v in value] if isinstance(value, list) else value


def checkpoint_blocks(module: nn.Module) -> None:
    """Let every block of a network (what its lists of modules hold) keep no activations: each is run again
    in the backward pass. For a network of our own only."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            checkpoint_blocks(child)
        elif any(True for _ in child.parameters()):
            child.forward = checkpointed(child.forward)


def checkpointed(forward: Callable) -> Callable:
    def own(value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value  # the network writes where it is into these

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        args, kwargs = [own(a) for a in args], {k: own(v) for k, v in kwargs.items()}
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def frozen_copy(model: Any) -> Any:
    """A MODEL like this one with weights of its own, which gradients pass through but do not change, in
    blocks that keep no activations. To be called, and used, with inference mode off. All models are
    unloaded first: that takes patches off the weights, and a gradient needs the memory.

    Contract: comfy/model_patcher.py, ModelPatcher's attributes model, backup, object_patches."""
    unload_all()
    if getattr(model, "is_dynamic", lambda: False)():
        clone = model.clone(disable_dynamic=True)  # the host reads the file again
    else:
        clone = model.clone()
        base = model.model  # not to be copied: its patcher, and settings whose every unknown name is None
        known = {id(getattr(base, "current_patcher", None)): None, id(base.model_config): base.model_config}
        clone.model, clone.backup, clone.object_patches_backup = copy.deepcopy(base, known), {}, {}
        if hasattr(clone, "backup_buffers"):
            clone.backup_buffers = {}
    clone.object_patches = {k: copy.deepcopy(v) for k, v in clone.object_patches.items()}
    clone.model.requires_grad_(False)
    checkpoint_blocks(clone.model.diffusion_model)
    return clone
