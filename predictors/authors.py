"""The AMED authors' released predictors (pickles) into safetensors, without running anything in them.

A restricted unpickler admits tensors and plain containers, makes inert records of the objects their files
hold (the predictor, its layers, its loss), and refuses every other name. Source code that such a file
carries is read as text and dropped."""

import io
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amed import Fitted, PredictorError, Spec, schedules
from amed.files.errors import shortened
from amed.files.fitted import build_predictor

LARGEST = 2 * 2**20  # bytes of a file, numbers in a tensor; the real have about a hundred, nine thousand
MOST_STEPS, DEEPEST = 1000, 3  # noise levels; modules in modules
ZIP = b"PK\x03\x04"
STUDENTS = {"amed": "amed", "dpm": "dpm_2", "dpmpp": "dpmpp", "euler": "euler", "ipndm": "ipndm"}
KINDS = {
    "polynomial": "polynomial",
    "logsnr": "logsnr",
    "time_uniform": "time_uniform",
    "discrete": "discrete",
}


class Record:
    """An object of a file, without its class: `state` is what it held."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        made = object.__new__(cls)
        made.__dict__["state"] = {}  # a pickle need not call __init__
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state if isinstance(state, dict) else {}


class Mapping(dict):
    """A dictionary subclass of a file, as a plain one."""

    def __setstate__(self, state: Any) -> None:
        pass


def _reconstructed(meta: Any) -> Record:
    """What stands for torch_utils.persistence._reconstruct_persistent_obj: the state, never the source."""
    if not isinstance(meta, dict):
        raise PredictorError("a persistent object in it has no description")
    record = Record()
    record.__setstate__(meta.get("state"))
    return record


def _storage(data: bytes) -> Any:
    if not isinstance(data, bytes):
        raise PredictorError("a tensor's storage in it is no bytes")
    return of_torch(data)


def of_torch(data: bytes) -> Any:
    """What torch itself wrote, tensors alone. A zip may unpack to no more than a file may have."""
    if data.startswith(ZIP):
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(part.file_size for part in packed.infolist()) > LARGEST:
                raise PredictorError(f"it unpacks to more than {LARGEST} bytes")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """What stands for torch._utils._rebuild_tensor_v2: never larger than its storage, or than LARGEST."""
    counts = (offset, *size, *stride)
    if not isinstance(storage, torch.storage.TypedStorage) or len(size) != len(stride):
        raise PredictorError("a tensor in it has no storage, or no shape")
    if not all(type(n) is int and 0 <= n <= LARGEST for n in counts):
        raise PredictorError("a tensor's shape in it is none")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) > LARGEST or (math.prod(size) and last >= len(storage)):
        raise PredictorError("a tensor in it is larger than its storage")
    return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))


def _made(cls: type, *_: Any) -> Any:
    """What stands for copyreg's reconstructors: a new inert object."""
    if not (isinstance(cls, type) and issubclass(cls, Record | Mapping)):
        raise PredictorError(f"it makes an object of {cls!r}")
    return cls()


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstructed,
    ("dnnlib.util", "EasyDict"): Mapping,
    ("copyreg", "_reconstructor"): _made,
    ("copyreg", "__newobj__"): _made,
    ("builtins", "object"): Record,
}


class Reader(pickle._Unpickler):
    """Admits PLAIN; records for network layers; nothing else.

    The one in Python: its memo grows with what is put there, not with the largest number a file writes."""

    def build(self) -> None:
        state = self.stack.pop()
        if not isinstance(
            self.stack[-1], Record | Mapping
        ):  # a function's or a tensor's own would be changed
            raise PredictorError(f"it changes a {type(self.stack[-1]).__name__}; refused")
        self.stack[-1].__setstate__(state)

    def room(self) -> None:
        raise PredictorError("it asks for empty memory; refused")

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: build, pickle.BYTEARRAY8[0]: room}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):  # getattr may import
            return vars(torch)[name]
        if module.startswith(("torch.nn.modules.", "training.")) and name.isidentifier():
            return Record
        raise PredictorError(
            f"it asks for {module[:99]}.{name[:99]}, which a predictor has no use for; refused"
        )

    def persistent_load(self, key: Any) -> Any:
        raise PredictorError("it refers to data outside itself; refused")


def read(path: Path) -> Any:
    """What a file holds, inert. Raises PredictorError naming what was refused."""
    if not os.path.isfile(path):
        raise PredictorError(f"{path}: no such file")
    if path.stat().st_size > LARGEST:
        raise PredictorError(f"{path}: {path.stat().st_size} bytes is no predictor (at most {LARGEST})")
    try:
        data = path.read_bytes()
        return of_torch(data) if data.startswith(ZIP) else Reader(io.BytesIO(data)).load()
    except PredictorError as error:
        raise PredictorError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle can raise anything
        raise PredictorError(
            f"{path}: not a predictor that can be read safely ({type(error).__name__}: {shortened(error)})"
        ) from None


def state_of(thing: Any) -> dict[str, Any]:
    return thing.state if isinstance(thing, Record) else dict(thing) if isinstance(thing, dict) else {}


def plain(thing: Any) -> dict[str, Any]:
    """Of what an object held, the numbers and short texts: lists in lists may be endless to write down."""
    held = {k: v for k, v in state_of(thing).items() if isinstance(v, str | int | float)}
    return {k: v for k, v in held.items() if (len(v) if isinstance(v, str) else abs(v)) < 1e6}


def parameters(module: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """All tensors of a recorded module, by dotted name. Raises ValueError for what no network is."""
    state, found = state_of(module), {}
    if depth > DEEPEST or len(state.get("_modules") or ()) > 20:
        raise ValueError(f"its network {prefix or 'as a whole'} is larger than a predictor's")
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, Tensor):
                if value.numel() > LARGEST:
                    raise ValueError(f"its tensor {prefix}{name} has {value.numel()} numbers")
                found[prefix + name] = value.detach().float().contiguous()
    for name, child in (state.get("_modules") or {}).items():
        found |= parameters(child, f"{prefix}{name}.", depth + 1)
    return found


def convert(
    path: str | Path,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    model_family: str = "",
    model_name: str = "",
) -> Fitted:
    """A predictor from the authors' file; store.save writes it.

    The noise levels are those of the file's loss, else 0.002 and 80 (EDM); give others for what they are not.
    Raises PredictorError naming what is missing or does not fit."""
    path = Path(path)
    held = read(path)
    model = held.get("model") if isinstance(held, dict) else None
    settings = plain(model)
    if not settings:
        raise PredictorError(f"{path}: it holds no 'model': not one of the AMED authors' predictors")
    loss = plain(held.get("loss_fn"))
    missing = [n for n in ("num_steps", "sampler_stu", "schedule_type") if settings.get(n) is None]
    if missing:
        raise PredictorError(f"{path}: its model does not say {', '.join(missing)}")
    student, kind = STUDENTS.get(settings["sampler_stu"]), KINDS.get(settings["schedule_type"])
    if student is None or kind is None:
        raise PredictorError(
            f"{path}: student {settings['sampler_stu']!r} on {settings['schedule_type']!r} is unknown"
        )
    try:
        low = float(sigma_min if sigma_min is not None else loss.get("sigma_min") or 0.002)
        high = float(sigma_max if sigma_max is not None else loss.get("sigma_max") or 80.0)
        rho = float(settings.get("schedule_rho") or schedules.DEFAULT_RHO[kind])
        steps = int(settings["num_steps"])
        if steps > MOST_STEPS:
            raise ValueError(f"num_steps is {steps}: at most {MOST_STEPS}")
        table = schedules.sd_sigmas() if kind == "discrete" else None
        base = schedules.make(kind, steps, low, high, rho, **({"table": table} if table is not None else {}))
        multistep = student in ("dpmpp", "ipndm")
        spec = Spec(
            solver=student, num_steps=steps, schedule=kind, rho=rho, sigma_min=float(base[-1]),
            sigma_max=float(base[0]), afs=bool(settings.get("afs")),
            max_order=int(settings.get("max_order") or (3 if student == "dpmpp" else 4)) if multistep else 1,
            predict_x0=bool(settings.get("predict_x0", True)) if student == "dpmpp" else False,
            lower_order_final=bool(settings.get("lower_order_final", True)),
            prediction_type="eps", guidance=float(settings.get("guidance_rate") or 1.0),
            model_family=model_family, model_name=model_name or str(settings.get("dataset_name") or ""),
            features="bottleneck", scale_dir=float(settings.get("scale_dir") or 0.0),
            scale_time=float(settings.get("scale_time") or 0.0),
            how=f"Algorithm 1, {settings.get('sampler_tea')} teacher, M={settings.get('M')}",
            source=f"converted from {path.name} of the method's authors",
        )  # fmt: skip
        own = {name: value for name, value in parameters(model).items() if not name.startswith("map_noise")}
        predictor = build_predictor(spec, {"sigmas": base, **own})
    except Exception as error:  # what it holds can be anything
        raise PredictorError(f"{path}: {shortened(error)}") from None
    return Fitted(spec, predictor, base, path.name)
