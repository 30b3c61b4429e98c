"""A copy of a MODEL that gradients pass through, for the paper's network. Host: ModelPatcher's attributes
model, backup and object_patches in comfy/model_patcher.py."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from .model import unload_all


def changes_weights(conditioning: list) -> bool:
    """Whether a CONDITIONING has hooks that change the network's weights while it samples (e.g. LoRAs).

    The backward pass would then use other weights than the forward pass."""
    groups = [options["hooks"] for _, options in conditioning if options.get("hooks") is not None]
    return any(getattr(hook, "weights", None) is not None for group in groups for hook in group.hooks)


def trainable(value: Any) -> Any:
    """Return a conditioning with every tensor cloned, because tensors made in inference mode allow no
    gradient.

    Other objects in it (ControlNets, areas) are kept."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: trainable(v) for k, v in value.items()}
    return [trainable(v) for v in value] if isinstance(value, list) else value


def checkpoint_blocks(module: nn.Module) -> None:
    """Turn on gradient checkpointing for each block of a network, in place.

    A block is an item of a ModuleList or Sequential, or a child module with parameters. No other code may use
    the network."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            checkpoint_blocks(child)
        elif any(True for _ in child.parameters()):
            child.forward = checkpointed(child.forward)


def checkpointed(forward: Callable) -> Callable:
    """Return a block's forward function with gradient checkpointing."""

    def copied(value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value  # the network writes its position into dicts

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        args, kwargs = [copied(a) for a in args], {k: copied(v) for k, v in kwargs.items()}
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def frozen_copy(model: Any) -> Any:
    """Return a copy of a MODEL with its own weights, which gradients pass through but do not change.

    Gradient checkpointing is on, to save memory. Call this function, and use the copy, with inference mode
    off. All models are unloaded first, which removes patches from the weights and frees memory."""
    unload_all()
    if getattr(model, "is_dynamic", lambda: False)():
        clone = model.clone(disable_dynamic=True)  # ComfyUI reads the file again
    else:
        clone = model.clone()
        base = model.model  # do not copy its patcher, nor a config whose every unknown attribute is None
        known = {id(getattr(base, "current_patcher", None)): None, id(base.model_config): base.model_config}
        clone.model, clone.backup, clone.object_patches_backup = copy.deepcopy(base, known), {}, {}
        if hasattr(clone, "backup_buffers"):
            clone.backup_buffers = {}
    clone.object_patches = {k: copy.deepcopy(v) for k, v in clone.object_patches.items()}
    clone.model.requires_grad_(False)
    checkpoint_blocks(clone.model.diffusion_model)
    return clone
