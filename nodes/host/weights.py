"""The weights of a MODEL's network as a checkpoint has them: dequantised, with merges and without LoRAs.

In the host both are patches of a weight, (strength, what, strength of the weight itself, ...). A merge has
another MODEL's weight there (a list: that weight, then its patches), or takes part of the weight itself away
(not 1); anything else is a LoRA, and so are hooks, weight wrappers and bypasses.

Host: comfy/model_patcher.py, ModelPatcher's patches, backup, hook_backup, object_patches; comfy/lora.py,
calculate_weight; of ComfyUI-GGUF its tensors' tensor_type and tensor_shape, of bitsandbytes quant_state."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.lora
import torch
from torch import Tensor, nn

from ...amed.fingerprint import Stored, Weight, step_of

PREFIX = "diffusion_model."
COMPILED = "_orig_mod."  # what torch.compile puts into names
SUPER = 256  # values of a GGUF format's largest block


def weights_of(model: Any) -> tuple[list[tuple[str, Weight]], bool]:
    """The weights of a MODEL's network by name, and whether it is a merge."""
    named, merged = [], False
    backups = (getattr(model, "backup", {}), model.hook_backup)
    for name, (weight, convert) in parameters_of(model).items():
        key = PREFIX + name
        for backup in backups:  # the weight before LoRAs and merges were put into it, then before hooks
            if key in backup:
                saved = backup[key]
                weight = saved[0] if isinstance(saved, tuple) else saved
                break
        patches = merges(model.patches.get(key) or [])
        merged = merged or any(strength != 0 or own != 1 for strength, _, own, *_ in patches)
        read = readable(weight, convert)
        named.append((name, Merged(read, patches, key) if patches else read))
    return named, merged


def parameters_of(model: Any) -> dict[str, tuple[Tensor, Callable | None]]:
    """name -> (weight, what the host converts it with before it calculates), of the network that runs: parts
    of it that the MODEL replaces are as it has them."""
    found = dict(of_module(model.model.diffusion_model))
    for name, part in [*model.object_patches_backup.items(), *replaced_parts(model)]:
        inside = f"{name}.".removeprefix(PREFIX)
        if not f"{name}.".startswith(PREFIX) or not isinstance(part, nn.Module | Tensor):
            continue
        found = {n: w for n, w in found.items() if not f"{n}.".startswith(inside)}
        own = of_module(part) if isinstance(part, nn.Module) else {"": (part, None)}
        found |= {(inside + n).rstrip("."): w for n, w in own.items()}
    return found


def replaced_parts(model: Any) -> list[tuple[str, nn.Module | Tensor]]:
    """(name, module or weight) that a MODEL has in its network in place of the checkpoint's."""
    inside = [(n, p) for n, p in model.object_patches.items() if f"{n}.".startswith(PREFIX)]
    return [(n, p) for n, p in inside if isinstance(p, nn.Module | Tensor)]


def of_module(network: nn.Module) -> dict[str, tuple[Tensor, Callable | None]]:
    found = {}
    for path, module in network.named_modules():
        for name, weight in module.named_parameters(prefix=path, recurse=False):
            convert = getattr(module, f"convert_{name.rpartition('.')[2]}", None)
            found[name.replace(COMPILED, "")] = weight, convert
    return found


def merges(patches: list[tuple]) -> list[tuple]:
    """Of a weight's patches those that are merges, LoRAs left out of the merged weights too."""
    kept = []
    for strength, what, own, *rest in patches:
        if isinstance(what, list):
            kept.append((strength, [what[0], *merges(what[1:])], own, *rest))
        elif own != 1:
            kept.append((strength, what, own, *rest))
    return kept


# --- reading -----------------------------------------------------------------------------------------------


def readable(weight: Tensor, convert: Callable | None) -> Weight:
    """A stored weight; `convert` as the host has it (scaled fp8)."""
    if hasattr(weight, "tensor_type") and not weight.is_floating_point():
        return Packed(weight)
    bitsandbytes = sys.modules.get("bitsandbytes.functional")  # the loader of such a weight has imported it
    if bitsandbytes is not None and getattr(weight, "quant_state", None) is not None:
        return Stored(bitsandbytes.dequantize_4bit(weight.data, weight.quant_state))
    data = getattr(weight, "_qdata", None)  # the host's QuantizedTensor
    if data is not None and data.is_floating_point() and data.shape == weight.shape:
        layout = getattr(weight, "_layout_params", None) or vars(weight._params)
        if isinstance(layout.get("scale"), Tensor) and layout["scale"].numel() == 1:
            return Converted(data, partial(scaled, layout["scale"]))
    if convert is not None and data is None and weight.is_floating_point():
        return Converted(weight.as_subclass(Tensor), convert)
    return Stored(weight.as_subclass(Tensor) if hasattr(weight, "tensor_type") else weight)


def scaled(scale: Tensor, values: Tensor, inplace: bool = False) -> Tensor:
    return values * scale.to(values)


class Converted(Stored):
    """A weight that the host converts before it calculates, value by value."""

    def __init__(self, tensor: Tensor, convert: Callable):
        super().__init__(tensor)
        self.convert = convert

    def whole(self) -> Tensor:
        return self.convert(super().whole().float().clone(), inplace=True)

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        values, steps = Stored(self.tensor).read(starts, count)
        return self.convert(values, inplace=True), self.convert(steps, inplace=True)


class Packed:
    """A weight of ComfyUI-GGUF: blocks of codes, of which only those asked for are unpacked."""

    packed = False

    def __init__(self, tensor: Any):
        self.tensor, self.shape = tensor, tuple(tensor.tensor_shape)
        self.unpack = sys.modules[type(tensor).__module__].dequantize_tensor

    def unpacked(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        made = type(self.tensor)(data, tensor_type=self.tensor.tensor_type, tensor_shape=torch.Size(shape))
        values: Tensor = self.unpack(made, torch.float32, torch.float32)
        return values.as_subclass(Tensor)

    def whole(self) -> Tensor:
        return self.unpacked(self.tensor.data.as_subclass(Tensor), self.shape)

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        size = torch.Size(self.shape).numel()
        if size % SUPER:
            flat = self.whole().flatten()
            values = torch.stack([flat[start : start + count] for start in starts])
        else:
            codes = self.tensor.data.as_subclass(Tensor).reshape(size // SUPER, -1)
            blocks = -(-count // SUPER)
            rows = [codes[start // SUPER : start // SUPER + blocks].flatten() for start in starts]
            values = self.unpacked(torch.stack(rows), (len(starts), blocks * SUPER))
            values = values.reshape(len(starts), -1)[:, :count]
        values = values.float().cpu()
        return values, step_of(values)


class Merged:
    """A weight with the merges that the graph makes of it. Its uncertainty is the sum of theirs."""

    def __init__(self, base: Weight, patches: list[tuple], key: str):
        self.base, self.patches, self.key = base, patches, key
        self.shape, self.packed = base.shape, base.packed

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        values, steps = self.base.read(starts, count)
        parts = [self.part(what) for _, what, *_ in self.patches]
        if any(part is None or any(rest) for part, (_, _, _, *rest) in zip(parts, self.patches)):
            return self.calculated(starts, count), steps
        for other, (strength, _, own, *_) in zip(parts, self.patches):
            values, steps = values * own, steps * abs(own)
            if strength != 0 and tuple(other.shape) == tuple(self.shape):  # others the host leaves out
                added, unsure = other.read(starts, count)
                values, steps = values + strength * added, steps + abs(strength) * unsure
        return values, steps

    def part(self, what: Any) -> Weight | None:
        """What is added to the weight; None for what is not simply another weight."""
        if isinstance(what, list):
            (weight, convert), *patches = what
            base = readable(weight, convert)
            return Merged(base, patches, self.key) if patches else base
        kind, value = ("diff", what) if isinstance(what, tuple) and len(what) == 1 else (None, None)
        if kind is None and isinstance(what, tuple) and len(what) == 2:
            kind, value = what
        plain = kind == "diff" and len(value) == 1 and isinstance(value[0], Tensor)
        return readable(value[0], None) if plain else None

    def calculated(self, starts: list[int], count: int) -> Tensor:
        """By the host's own function on the whole weight."""
        whole = self.base.whole().float().clone().reshape(self.shape)
        flat = comfy.lora.calculate_weight(self.patches, whole, self.key).flatten()
        return torch.stack([flat[start : start + count] for start in starts]).float().cpu()
