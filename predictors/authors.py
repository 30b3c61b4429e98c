"""Convert the predictors that the method's authors released (pickles) without executing anything in them.

A restricted unpickler admits tensors and plain containers, replaces the objects of the authors' files
(predictor, layers, loss) by inert records, and refuses every other name. Source code in such a file is read
as text and dropped."""

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

# bytes of a file, and numbers of a tensor; the authors' files have about 100 kB and 9,000 numbers
MAX_SIZE = 2 * 2**20
MAX_STEPS = 1000  # noise levels
MAX_DEPTH = 3  # of modules inside each other
MAX_MODULES = 20  # inside one module
ZIP = b"PK\x03\x04"  # first bytes of a file that torch.save wrote
STUDENTS = {"amed": "amed", "dpm": "dpm_2", "dpmpp": "dpmpp", "euler": "euler", "ipndm": "ipndm"}
SCHEDULES = ("polynomial", "logsnr", "time_uniform", "discrete")


class Record:
    """An inert stand-in for an object of a pickle: only its attributes, as the dictionary `state`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        record = object.__new__(cls)
        record.__dict__["state"] = {}  # a pickle may skip __init__
        return record

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state if isinstance(state, dict) else {}


class Mapping(dict):
    """An inert stand-in for a dictionary subclass of a pickle; attributes are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _reconstructed(meta: Any) -> Record:
    """Replace torch_utils.persistence._reconstruct_persistent_obj: keep the state, drop the source code."""
    if not isinstance(meta, dict):
        raise PredictorError(
            "a persistent object in the file has no description, so this is not an authors' predictor: "
            "choose another file"
        )
    record = Record()
    record.__setstate__(meta.get("state"))
    return record


def _storage(data: bytes) -> Any:
    """Replace torch.storage._load_from_bytes: load tensors only."""
    if not isinstance(data, bytes):
        raise PredictorError(
            "a tensor's storage in the file is not bytes, so the file is damaged: download it again"
        )
    return load_torch(data)


def load_torch(data: bytes) -> Any:
    """Return the tensors that torch.save wrote as `data`. Raises PredictorError if they are too large."""
    if data.startswith(ZIP):
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(part.file_size for part in packed.infolist()) > MAX_SIZE:
                raise PredictorError(
                    f"the file unpacks to more than {MAX_SIZE} bytes, too many for a predictor: "
                    "choose another file"
                )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """Replace torch._utils._rebuild_tensor_v2: refuse tensors larger than their storage or than MAX_SIZE."""
    counts = (offset, *size, *stride)
    if not isinstance(storage, torch.storage.TypedStorage) or len(size) != len(stride):
        raise PredictorError("a tensor in the file has no storage or no valid shape: download the file again")
    if not all(type(n) is int and 0 <= n <= MAX_SIZE for n in counts):
        raise PredictorError("a tensor in the file has no valid shape: download the file again")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) > MAX_SIZE or (math.prod(size) and last >= len(storage)):
        raise PredictorError("a tensor in the file is larger than its storage: download the file again")
    return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))


def _new_record(cls: type, *_: Any) -> Any:
    """Replace copyreg's reconstructors: return an empty Record or Mapping."""
    if not (isinstance(cls, type) and issubclass(cls, Record | Mapping)):
        raise PredictorError(
            f"the file creates an object of {cls!r}, which is refused for safety: choose another file"
        )
    return cls()


def _parameter(data: Tensor, *_: Any) -> Tensor:
    """Replace torch._utils._rebuild_parameter: return the tensor itself."""
    return data


ADMITTED = {  # the names that a pickle may use, and what they are replaced by
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstructed,
    ("dnnlib.util", "EasyDict"): Mapping,
    ("copyreg", "_reconstructor"): _new_record,
    ("copyreg", "__newobj__"): _new_record,
    ("builtins", "object"): Record,
}


class Reader(pickle._Unpickler):
    """A restricted unpickler: allows the names in ADMITTED, makes Records of layers, and refuses the rest.

    Based on pickle's Python version, whose memory grows with the data and not with the numbers in a file."""

    def build(self) -> None:
        """Set the state of a Record or Mapping (opcode BUILD). Raises PredictorError for any other object."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record | Mapping):  # BUILD could change a function or a tensor
            raise PredictorError(
                f"the file changes a {type(self.stack[-1]).__name__}, which is refused for safety: "
                "choose another file"
            )
        self.stack[-1].__setstate__(state)

    def refuse_memory(self) -> None:
        """Raise PredictorError: opcode BYTEARRAY8 could allocate any amount of memory."""
        raise PredictorError(
            "the file requests empty memory, which is refused for safety: choose another file"
        )

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: build, pickle.BYTEARRAY8[0]: refuse_memory}

    def find_class(self, module: str, name: str) -> Any:
        """Return what replaces a name in the pickle. Raises PredictorError if the name is refused."""
        if (module, name) in ADMITTED:
            return ADMITTED[module, name]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):  # getattr could import
            return vars(torch)[name]
        if module.startswith(("torch.nn.modules.", "training.")) and name.isidentifier():
            return Record
        raise PredictorError(
            f"the file uses {module[:99]}.{name[:99]}, which no predictor needs and which is refused for "
            "safety: choose another file"
        )

    def persistent_load(self, key: Any) -> Any:
        """Raise PredictorError: a predictor needs no data from outside its file."""
        raise PredictorError(
            "the file refers to data outside itself, which is refused for safety: choose another file"
        )


def read(path: Path) -> Any:
    """Return the content of a pickle, its objects replaced by Records.

    Raises:
        PredictorError: if the file is missing, too large, damaged or refused; the message names the file.
    """
    if not os.path.isfile(path):
        raise PredictorError(f"{path}: no such file: check the path")
    if (size := path.stat().st_size) > MAX_SIZE:
        raise PredictorError(
            f"{path}: {size} bytes are too many for an authors' predictor (at most {MAX_SIZE}): "
            "choose another file"
        )
    try:
        data = path.read_bytes()
        return load_torch(data) if data.startswith(ZIP) else Reader(io.BytesIO(data)).load()
    except PredictorError as error:
        problem_and_remedy = str(error)
        raise PredictorError(f"{path}: cannot be read: {problem_and_remedy}") from None
    except Exception as error:  # a broken pickle can raise anything
        raise PredictorError(
            f"{path}: damaged, or not an authors' predictor ({type(error).__name__}: {shortened(error)}): "
            "download it again, or choose another file"
        ) from None


def state_of(item: Any) -> dict[str, Any]:
    """Return the attributes of a Record or the items of a dictionary; empty for anything else."""
    return item.state if isinstance(item, Record) else dict(item) if isinstance(item, dict) else {}


def settings_of(item: Any) -> dict[str, Any]:
    """Return those attributes of a Record that are texts or numbers of moderate size.

    Lists are left out, because the text of a nested list in a hostile file could be endless."""
    values = {k: v for k, v in state_of(item).items() if isinstance(v, str | int | float)}
    return {k: v for k, v in values.items() if (len(v) if isinstance(v, str) else abs(v)) < 1e6}


def parameters(module: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """Return the tensors of a torch module in a pickle (a Record) by dotted name.

    Raises:
        ValueError: if the module is larger than a predictor's network.
    """
    state, tensors = state_of(module), {}
    if depth > MAX_DEPTH or len(state.get("_modules") or ()) > MAX_MODULES:
        raise ValueError(
            f"the module {prefix or 'model'} is larger than a predictor's network: choose another file"
        )
    for group in ("_parameters", "_buffers"):
        for name, value in (state.get(group) or {}).items():
            if isinstance(value, Tensor):
                if value.numel() > MAX_SIZE:
                    raise ValueError(
                        f"the tensor {prefix}{name} has {value.numel()} numbers, too many for a predictor: "
                        "choose another file"
                    )
                tensors[prefix + name] = value.detach().float().contiguous()
    for name, child in (state.get("_modules") or {}).items():
        tensors |= parameters(child, f"{prefix}{name}.", depth + 1)
    return tensors


def convert(
    path: str | Path,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    model_family: str = "",
    model_name: str = "",
) -> Fitted:
    """Return the predictor in a pickle of the method's authors.

    Args:
        path: the pickle.
        sigma_min, sigma_max: noise levels; default: those of the pickle's loss, else 0.002 and 80 (EDM).
        model_family: e.g. "sd15", used to find the predictor; default: unknown.
        model_name: name to show; default: the pickle's data set.

    Raises:
        PredictorError: if the pickle is refused, incomplete or unsupported; the message names the file.
    """
    path = Path(path)
    content = read(path)
    model = content.get("model") if isinstance(content, dict) else None
    settings = settings_of(model)
    if not settings:
        raise PredictorError(
            f"{path}: no 'model' in the file, so it is not an authors' predictor: choose another"
        )
    loss = settings_of(content.get("loss_fn"))
    missing = [n for n in ("num_steps", "sampler_stu", "schedule_type") if settings.get(n) is None]
    if missing:
        raise PredictorError(
            f"{path}: the model in the file has no {', '.join(missing)}, so it cannot be converted: "
            "choose another file"
        )
    student, kind = STUDENTS.get(settings["sampler_stu"]), settings["schedule_type"]
    if student is None or kind not in SCHEDULES:
        raise PredictorError(
            f"{path}: solver {str(settings['sampler_stu'])[:99]} on schedule {str(kind)[:99]} is not "
            f"supported: choose a file for {', '.join(STUDENTS)} on {', '.join(SCHEDULES)}"
        )
    try:
        low = float(sigma_min if sigma_min is not None else loss.get("sigma_min") or 0.002)
        high = float(sigma_max if sigma_max is not None else loss.get("sigma_max") or 80.0)
        rho = float(settings.get("schedule_rho") or schedules.DEFAULT_RHO[kind])
        steps = int(settings["num_steps"])
        if steps > MAX_STEPS:
            raise ValueError(f"num_steps is {steps}, but may be at most {MAX_STEPS}: choose another file")
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
        weights = {name: v for name, v in parameters(model).items() if not name.startswith("map_noise")}
        predictor = build_predictor(spec, {"sigmas": base, **weights})
    except Exception as error:  # the settings can be anything
        raise PredictorError(
            f"{path}: cannot be converted ({shortened(error)}): check --sigma-min and --sigma-max, or choose "
            "another file"
        ) from None
    return Fitted(spec, predictor, base, path.name)
