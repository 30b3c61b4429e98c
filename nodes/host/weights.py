"""The weights of a MODEL's network as a checkpoint would have them: dequantised, with merges, without LoRAs.

ComfyUI stores merges and LoRAs alike, as patches of a weight: (strength, addend, strength of the weight
itself, ...). A patch is a merge if its addend is another MODEL's weight (a list: that weight, then its
patches), or if the strength of the weight itself is not 1. Any other patch is a LoRA; so are hooks, weight
wrappers and bypasses.

Host: ModelPatcher's patches, backup, hook_backup and object_patches in comfy/model_patcher.py;
calculate_weight in comfy/lora.py; tensor_type and tensor_shape of ComfyUI-GGUF's tensors; quant_state of
bitsandbytes'."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.lora
import torch
from torch import Tensor, nn

from ...amed.fingerprint import Stored, Weight, step_of

PREFIX = "diffusion_model."
COMPILED = "_orig_mod."  # torch.compile inserts this into names
SUPER = 256  # values in the largest block of any GGUF format


def weights_of(model: Any) -> tuple[list[tuple[str, Weight]], bool]:
    """Return (name, weight) of each weight of a MODEL's network, and whether the network is a merge."""
    weights, merged = [], False
    backups = (getattr(model, "backup", {}), model.hook_backup)
    for name, (weight, convert) in parameters_of(model).items():
        key = PREFIX + name
        for backup in backups:  # the weight before LoRAs and merges were applied, then before hooks were
            if key in backup:
                saved = backup[key]
                weight = saved[0] if isinstance(saved, tuple) else saved
                break
        patches = merges(model.patches.get(key) or [])
        merged = merged or any(strength != 0 or keep != 1 for strength, _, keep, *_ in patches)
        read = readable(weight, convert)
        weights.append((name, Merged(read, patches, key) if patches else read))
    return weights, merged


def parameters_of(model: Any) -> dict[str, tuple[Tensor, Callable | None]]:
    """Return (weight, conversion) of each parameter of a MODEL's network, by name.

    The conversion is the function that ComfyUI applies to the stored weight before it computes with it (for
    scaled fp8), or None. Where an object patch replaces a part of the network, the new part is read."""
    parameters = dict(module_parameters(model.model.diffusion_model))
    for name, part in [*model.object_patches_backup.items(), *replaced_parts(model)]:
        inside = f"{name}.".removeprefix(PREFIX)
        if not f"{name}.".startswith(PREFIX) or not isinstance(part, nn.Module | Tensor):
            continue
        parameters = {n: w for n, w in parameters.items() if not f"{n}.".startswith(inside)}
        inner = module_parameters(part) if isinstance(part, nn.Module) else {"": (part, None)}
        parameters |= {(inside + n).rstrip("."): w for n, w in inner.items()}
    return parameters


def replaced_parts(model: Any) -> list[tuple[str, nn.Module | Tensor]]:
    """Return (name, module or weight) of each object patch of a MODEL that replaces a part of its network."""
    inside = [(n, p) for n, p in model.object_patches.items() if f"{n}.".startswith(PREFIX)]
    return [(n, p) for n, p in inside if isinstance(p, nn.Module | Tensor)]


def module_parameters(network: nn.Module) -> dict[str, tuple[Tensor, Callable | None]]:
    """Return (weight, conversion) of each parameter of a module, by name.

    The conversion is the function that ComfyUI applies to the stored weight before it computes with it (for
    scaled fp8), or None."""
    parameters = {}
    for path, module in network.named_modules():
        for name, weight in module.named_parameters(prefix=path, recurse=False):
            convert = getattr(module, f"convert_{name.rpartition('.')[2]}", None)
            parameters[name.replace(COMPILED, "")] = weight, convert
    return parameters


def merges(patches: list[tuple]) -> list[tuple]:
    """Return the patches of a weight that are model merges, without those that are LoRAs."""
    merging = []
    for strength, addend, keep, *rest in patches:
        if isinstance(addend, list):
            merging.append((strength, [addend[0], *merges(addend[1:])], keep, *rest))
        elif keep != 1:
            merging.append((strength, addend, keep, *rest))
    return merging


# --- reading -----------------------------------------------------------------------------------------------


def readable(weight: Tensor, convert: Callable | None) -> Weight:
    """Return a stored weight as an object that reads and dequantises parts of it, whatever its quantisation.

    convert: the function by which ComfyUI dequantises a scaled fp8 weight; None for other weights."""
    if hasattr(weight, "tensor_type") and not weight.is_floating_point():
        return Packed(weight)
    bitsandbytes = sys.modules.get("bitsandbytes.functional")  # imported, if there is such a weight
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
    """Dequantise values of a weight by multiplying them by its scale.

    `inplace` has no effect; ComfyUI's own conversion functions have this argument."""
    return values * scale.to(values)


class Converted(Stored):
    """A quantised weight (e.g. scaled fp8) that a function dequantises value by value."""

    def __init__(self, tensor: Tensor, convert: Callable):
        super().__init__(tensor)
        self.convert = convert

    def whole(self) -> Tensor:
        return self.convert(super().whole().float().clone(), inplace=True)

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        values, steps = Stored(self.tensor).read(starts, count)
        return self.convert(values, inplace=True), self.convert(steps, inplace=True)


class Packed:
    """A quantised weight of ComfyUI-GGUF. Where possible, only the blocks that are read are dequantised."""

    packed = False

    def __init__(self, tensor: Any):
        self.tensor, self.shape = tensor, tuple(tensor.tensor_shape)
        self.unpack = sys.modules[type(tensor).__module__].dequantize_tensor

    def unpacked(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Dequantise blocks of data in GGUF format to a float32 tensor of the given shape."""
        codes = type(self.tensor)(data, tensor_type=self.tensor.tensor_type, tensor_shape=torch.Size(shape))
        values: Tensor = self.unpack(codes, torch.float32, torch.float32)
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
    """A weight with the model merges of a graph applied to it.

    Args:
        base: the weight before the merges.
        patches: ComfyUI's patches of the weight that are merges.
        key: the weight's name in ComfyUI."""

    def __init__(self, base: Weight, patches: list[tuple], key: str):
        self.base, self.patches, self.key = base, patches, key
        self.shape, self.packed = base.shape, base.packed

    def read(self, starts: list[int], count: int) -> tuple[Tensor, Tensor]:
        values, steps = self.base.read(starts, count)
        addends = [self.addend(value) for _, value, *_ in self.patches]
        if any(addend is None or any(rest) for addend, (_, _, _, *rest) in zip(addends, self.patches)):
            return self.computed(starts, count), steps
        for addend, (strength, _, keep, *_) in zip(addends, self.patches):
            values, steps = values * keep, steps * abs(keep)
            if strength != 0 and tuple(addend.shape) == tuple(self.shape):  # ComfyUI skips other shapes
                added, added_steps = addend.read(starts, count)
                values, steps = values + strength * added, steps + abs(strength) * added_steps
        return values, steps

    def addend(self, patch: Any) -> Weight | None:
        """Return the weight tensor that a merge adds; None for another kind of patch (e.g. LoRA)."""
        if isinstance(patch, list):
            (weight, convert), *patches = patch
            base = readable(weight, convert)
            return Merged(base, patches, self.key) if patches else base
        kind, value = ("diff", patch) if isinstance(patch, tuple) and len(patch) == 1 else (None, None)
        if kind is None and isinstance(patch, tuple) and len(patch) == 2:
            kind, value = patch
        plain = kind == "diff" and len(value) == 1 and isinstance(value[0], Tensor)
        return readable(value[0], None) if plain else None

    def computed(self, starts: list[int], count: int) -> Tensor:
        """Apply the patches to the whole weight by ComfyUI's own function, and return slices of the result.

        Args:
            starts: index of the first value of each slice in the flattened weight.
            count: number of values per slice."""
        whole = self.base.whole().float().clone().reshape(self.shape)
        flat = comfy.lora.calculate_weight(self.patches, whole, self.key).flatten()
        return torch.stack([flat[start : start + count] for start in starts]).float().cpu()
