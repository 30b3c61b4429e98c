"""A hash of what an object holds, equal in every process. It distinguishes SAMPLERs with the same function.

Memory addresses, counters of the interpreter and file paths are left out. A function of a module is known by
its name; a function that another function returned also by the values it captured."""

import dataclasses
import enum
import functools
import hashlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...amed.fingerprint import fingerprint
from .hooks import is_sampler, sampler_fields

DEEPEST = 12  # levels of nested objects that are read
LARGE = 1_000_000  # values of a tensor; of a larger one, evenly spaced values are read
SCALARS = bool | int | float | complex | str | bytes | None


def content_hash(value: Any) -> str:
    """Return a hash, 8 hexadecimal digits, of an object's type and of all values inside it."""
    return hashlib.sha256(content(value).encode()).hexdigest()[:8]


def content(value: Any, holders: tuple[int, ...] = ()) -> str:
    """Return the type of an object and all values inside it as text, equal in every process.

    holders: ids of the objects that contain this one, so that an object inside itself ends the recursion."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, SCALARS):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return tensor_content(value)
    if isinstance(value, type | types.ModuleType):
        return value.__name__.rpartition(".")[2]
    name = kind_of(value)
    if id(value) in holders or len(holders) >= DEEPEST:
        return name
    holders = (*holders, id(value))
    if isinstance(value, dict):
        pairs = (f"{content(k, holders)}: {content(v, holders)}" for k, v in value.items())
        return f"{{{', '.join(sorted(pairs))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(content(v, holders) for v in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(content(v, holders) for v in value))}}}"
    if is_model(value) or isinstance(value, nn.Module):
        return f"{name} {network_fingerprint(value)}"
    return f"{name} {content(captured(value), holders)}"


def kind_of(value: Any) -> str:
    """Return the name of a function, or of an object's class."""
    if isinstance(value, functools.partial):
        return f"partial {kind_of(value.func)}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def captured(value: Any) -> Any:
    """Return the values to hash for an object: those that a closure, partial or method holds, or the object's
    fields; else None."""
    if isinstance(value, functools.partial):
        return [value.args, value.keywords, captured(value.func)]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return captured_by_function(value)
    if isinstance(value, types.BuiltinFunctionType | type | None):
        return None
    if is_sampler(value):
        return sampler_fields(value)
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    slots = [s for c in type(value).__mro__ for s in np.atleast_1d(getattr(c, "__slots__", ())).tolist()]
    fields = {s: getattr(value, s) for s in slots if hasattr(value, s) and not s.startswith("__")}
    return fields | vars(value) if hasattr(value, "__dict__") else fields or None


def captured_by_function(function: types.FunctionType) -> Any:
    """Return what to hash, besides its name, to distinguish a function from others of the same name.

    For a function defined inside another one, or a lambda: the values in its closure, its defaults and a
    lambda's source code; None if it has none. None for other functions, which their name identifies."""
    if "<" not in function.__qualname__:  # of a module or a class: its name identifies it
        return None
    cells = [cell_content(cell) for cell in function.__closure__ or ()]
    values = [*zip(function.__code__.co_freevars, cells), function.__defaults__, function.__kwdefaults__]
    if function.__name__ == "<lambda>":
        try:
            values.append(inspect.getsource(function).strip())
        except (OSError, TypeError):
            values.append(function.__code__.co_code)
    return values if any(v is not None for v in values) else None


def cell_content(cell: Any) -> Any:
    """Return the value in a closure's cell, or None if it is not assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def tensor_content(value: Any) -> str:
    """Return the dtype, the shape and a hash of the values of a tensor or array."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    flat = tensor.reshape(-1)
    flat = flat[:: len(flat) // LARGE + 1].cpu().contiguous()
    values = flat.view(torch.uint8) if len(flat) else flat
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest}"


def is_model(value: Any) -> bool:
    """Whether an object is a ComfyUI MODEL (ModelPatcher)."""
    return isinstance(getattr(value, "model", None), nn.Module) and hasattr(value, "patches")


def network_fingerprint(value: Any) -> str:
    """Return a hash of the weights of a MODEL or module, or "" if they cannot be read."""
    network = value.model if is_model(value) else value
    try:
        return fingerprint(network.named_parameters())
    except Exception:  # no matrix, or an unknown kind of quantisation: its class must do
        return ""


def samplers_in(value: Any, holders: tuple[int, ...] = ()) -> Iterator[Any]:
    """Yield the SAMPLERs inside an object (the outermost ones, if they contain others).

    holders: ids of the objects that contain this one, so that an object inside itself ends the search."""
    if is_sampler(value):
        yield value
        return
    if isinstance(value, SCALARS | Tensor | np.ndarray | nn.Module | type | types.ModuleType):
        return
    if is_model(value) or id(value) in holders or len(holders) >= DEEPEST:
        return
    holders = (*holders, id(value))
    if isinstance(value, dict):
        items = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        items = list(value)
    else:
        items = [captured(value)]
    for item in items:
        yield from samplers_in(item, holders)
