"""What an object holds, as a short code that is the same in another process: for the identity of a SAMPLER.

Places in memory, counters of the interpreter and paths take no part. Functions of a module count by their
names, as samplers do; those made by another function also by what they were made with."""

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

DEEPEST = 12  # objects in objects
LARGE = 1_000_000  # values of a tensor: of a larger one some of them
SCALARS = bool | int | float | complex | str | bytes | None


def code_of(value: Any) -> str:
    """8 hexadecimal digits of what a value holds."""
    return hashlib.sha256(content(value).encode()).hexdigest()[:8]


def content(value: Any, around: tuple[int, ...] = ()) -> str:
    """What a value holds, as text. `around`: the ids of the objects that hold it; one that holds itself is
    named only."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, SCALARS):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return numbers(value)
    if isinstance(value, type | types.ModuleType):
        return value.__name__.rpartition(".")[2]
    name = kind_of(value)
    if id(value) in around or len(around) >= DEEPEST:
        return name
    around = (*around, id(value))
    if isinstance(value, dict):
        pairs = (f"{content(k, around)}: {content(v, around)}" for k, v in value.items())
        return f"{{{', '.join(sorted(pairs))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(content(v, around) for v in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(content(v, around) for v in value))}}}"
    if is_model(value) or isinstance(value, nn.Module):
        return f"{name} {weights(value)}"
    return f"{name} {content(bound_to(value), around)}"


def kind_of(value: Any) -> str:
    """The name of a function, or of an object's class."""
    if isinstance(value, functools.partial):
        return f"partial {kind_of(value.func)}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def bound_to(value: Any) -> Any:
    """What a function was made with, or an object's fields; empty for a function of a module."""
    if isinstance(value, functools.partial):
        return [value.args, value.keywords, bound_to(value.func)]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return bound_to_function(value)
    if isinstance(value, types.BuiltinFunctionType | type | None):
        return None
    if is_sampler(value):
        return sampler_fields(value)
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    slots = [s for c in type(value).__mro__ for s in np.atleast_1d(getattr(c, "__slots__", ())).tolist()]
    fields = {s: getattr(value, s) for s in slots if hasattr(value, s) and not s.startswith("__")}
    return fields | vars(value) if hasattr(value, "__dict__") else fields or None


def bound_to_function(function: types.FunctionType) -> Any:
    if "<" not in function.__qualname__:  # of a module or a class: its name says it all
        return None
    held = [cell_of(cell) for cell in function.__closure__ or ()]
    bound = [*zip(function.__code__.co_freevars, held), function.__defaults__, function.__kwdefaults__]
    if function.__name__ == "<lambda>":
        try:
            bound.append(inspect.getsource(function).strip())
        except (OSError, TypeError):
            bound.append(function.__code__.co_code)
    return bound if any(v is not None for v in bound) else None


def cell_of(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def numbers(value: Any) -> str:
    """Kind, shape and values."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    flat = tensor.reshape(-1)
    flat = flat[:: len(flat) // LARGE + 1].cpu().contiguous()
    values = flat.view(torch.uint8) if len(flat) else flat
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest}"


def is_model(value: Any) -> bool:
    """Whether a value is a MODEL of the host's: its options and ids differ from run to run."""
    return isinstance(getattr(value, "model", None), nn.Module) and hasattr(value, "patches")


def weights(value: Any) -> str:
    """A network's fingerprint; "" where it has none."""
    network = value.model if is_model(value) else value
    try:
        return fingerprint(network.named_parameters())
    except Exception:  # no matrix, or quantised in a way that we do not know: its class must do
        return ""


def samplers_in(value: Any, around: tuple[int, ...] = ()) -> Iterator[Any]:
    """The SAMPLERs that a value holds, not those within them."""
    if is_sampler(value):
        yield value
        return
    if isinstance(value, SCALARS | Tensor | np.ndarray | nn.Module | type | types.ModuleType):
        return
    if is_model(value) or id(value) in around or len(around) >= DEEPEST:
        return
    around = (*around, id(value))
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    else:
        inner = [bound_to(value)]
    for held in inner:
        yield from samplers_in(held, around)
