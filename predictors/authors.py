"""The AMED authors' released predictors (pickles) into safetensors, without running anything in them.

A restricted unpickler admits tensors and plain containers, makes inert records of the objects their files
hold (the predictor, its layers, its loss), and refuses every other name. Source code that such a file
carries is read as text and dropped."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amed import Fitted, PredictorError, Spec, schedules
from amed.files.store import build

LARGEST = 64 * 2**20  # bytes; the real files have about a hundred thousand
STUDENTS = {"amed": "amed", "dpm": "dpm_2", "dpmpp": "dpmpp", "euler": "euler", "ipndm": "ipndm"}
KINDS = {
    "polynomial": "polynomial",
    "logsnr": "logsnr",
    "time_uniform": "time_uniform",
    "discrete": "discrete",
}


class Record:
    """An object of a file, without its class: `kind` its name, `state` what it held."""

    kind = "object"

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["state"] = {}

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state if isinstance(state, dict) else {}


class Mapping(dict):
    """A dictionary subclass of a file, as a plain one."""

    def __setstate__(self, state: Any) -> None:
        pass


def _record(name: str) -> type[Record]:
    return type(name.rsplit(".", 1)[-1], (Record,), {"kind": name})


def _reconstructed(meta: Any) -> Record:
    """What stands for torch_utils.persistence._reconstruct_persistent_obj: the state, never the source."""
    if not isinstance(meta, dict):
        raise PredictorError("a persistent object in it has no description")
    record = _record(str(meta.get("class_name", "object")))()
    record.__setstate__(meta.get("state") or {})
    return record


def _storage(data: bytes) -> Any:
    if not isinstance(data, bytes):
        raise PredictorError("a tensor's storage in it is no bytes")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


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
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstructed,
    ("dnnlib.util", "EasyDict"): Mapping,
    ("copyreg", "_reconstructor"): _made,
    ("copyreg", "__newobj__"): _made,
    ("builtins", "object"): Record,
}


class Reader(pickle.Unpickler):
    """Admits PLAIN; records for network layers; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith(("torch.nn.modules.", "training.")) and name.isidentifier():
            return _record(f"{module}.{name}")
        raise PredictorError(f"it asks for {module}.{name}, which a predictor has no use for; refused")

    def persistent_load(self, key: Any) -> Any:
        raise PredictorError("it refers to data outside itself; refused")


def read(path: Path) -> Any:
    """What a file holds, inert. Raises PredictorError naming what was refused."""
    if not path.is_file():
        raise PredictorError(f"{path}: no such file")
    if path.stat().st_size > LARGEST:
        raise PredictorError(f"{path}: {path.stat().st_size} bytes is no predictor (at most {LARGEST})")
    try:
        if zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        with path.open("rb") as file:
            return Reader(file).load()
    except PredictorError as error:
        raise PredictorError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle can raise anything
        raise PredictorError(
            f"{path}: not a predictor that can be read safely ({type(error).__name__}: {error})"
        ) from None


def state_of(thing: Any) -> dict[str, Any]:
    return thing.state if isinstance(thing, Record) else dict(thing) if isinstance(thing, dict) else {}


def parameters(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors of a recorded module, by dotted name."""
    state, found = state_of(module), {}
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, Tensor):
                found[prefix + name] = value.detach().float().contiguous()
    for name, child in (state.get("_modules") or {}).items():
        found |= parameters(child, f"{prefix}{name}.")
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
    settings = state_of(model)
    if not settings:
        raise PredictorError(f"{path}: it holds no 'model': not one of the AMED authors' predictors")
    loss = state_of(held.get("loss_fn"))
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
        predictor = build(spec, {"sigmas": base, **own})
    except (ValueError, TypeError) as error:
        raise PredictorError(f"{path}: {error}") from None
    return Fitted(spec, predictor, base, path.name)
