"""Predictors in safetensors: everything about one stands in its header, and is checked when it is read.

    fitted = load("predictors/emoji32-amed-nfe5.safetensors")

Nothing is ever unpickled, and a file is written to the side and moved into place."""

import dataclasses
import json
import os
import re
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import schedules
from ..constants import Constants, Multistep
from ..network import BottleneckPredictor
from ..outside import NAMES, OUTSIDE, Outside
from ..parameters import AMED, PARAMETERS
from ..parts import PARTS
from ..recipes import MULTISTEP
from .spec import PredictorError, Spec, UnsavedError, from_header, to_header

ROOM = 64_000  # bytes that every predictor fits into: the paper's network has 38,000
LEFT = 3600.0  # seconds after which nobody writes to a file at the side any more

LARGEST = 4 * 2**20  # bytes of a file: a network's are 38,000, a table's of 200 steps a million
LONGEST_NAME = 180  # bytes: file systems take 255, of which saving and numbering need some
LONGEST_PART = 80  # bytes of a name that is made up of several
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Fitted:
    """A predictor with its Spec and base times. `predictor`: None for a plain solver. `name` is its file's,
    for messages."""

    spec: Spec
    predictor: Constants | Multistep | Outside | BottleneckPredictor | None
    base: Tensor
    name: str = "unsaved"

    @property
    def wants_bottleneck(self) -> bool:
        return self.predictor is not None and self.predictor.wants_bottleneck

    @property
    def nfe(self) -> int:
        return self.spec.nfe

    @property
    def halved(self) -> bool:
        """Whether it takes guidance's halves apart."""
        return "halves" in PARTS[self.spec.parts].wants

    @property
    def passes(self) -> int:
        """Of the network for an image: with guidance two an evaluation, but where the table says so one."""
        guided = self.nfe * (1 if self.spec.guidance == 1 else 2)
        return guided - len(getattr(self.predictor, "alone", ()))

    @property
    def label(self) -> str:
        """A short text for people."""
        spec = self.spec
        order = f"-{spec.max_order}" if spec.max_order > 1 else ""
        solver = f"AMED-Plugin on the host's {spec.of}" if spec.of else f"{spec.solver}{order}"
        guidance = f", guidance {spec.guidance:g}" if spec.guidance != 1 else ""
        whose = spec.model_name or "any model"
        spared = f" in {self.passes} passes" if getattr(self.predictor, "alone", ()) else ""
        return f"{self.name} ({solver}, {self.nfe} evaluations{spared}{guidance}; {whose})"

    def sigmas(self) -> Tensor:
        """The base times it was fitted on, float64 `[num_steps]`, from sigma_max to sigma_min (no 0)."""
        return self.base.clone()

    def to(self, device: torch.device | str) -> "Fitted":
        """The same predictor on a device (a copy: the library's own is left alone). Constants stay where they
        are: a few numbers, which a GPU takes as arguments."""
        own = self.predictor
        if not isinstance(own, BottleneckPredictor) or next(own.parameters()).device == torch.device(device):
            return self
        copy = BottleneckPredictor(own.scale_dir, own.scale_time)
        copy.adopt(own.state_dict())
        copy = copy if torch.device(device).type == "cpu" else copy.float()  # it may have no float64
        return dataclasses.replace(self, predictor=copy.to(device))


def values_of(fitted: Fitted) -> dict[str, Tensor]:
    """Its constants by name: r, c, a `[N-1]`, or weights `[N-1, H]` and a; empty for a network or a plain
    solver."""
    return getattr(fitted.predictor, "values", {})


def tensors_of(fitted: Fitted) -> dict[str, Tensor]:
    """The tensors a file holds: `sigmas` [N], and its constants, or the network's own by their names."""
    network = fitted.predictor
    own = network.state_dict() if isinstance(network, BottleneckPredictor) else values_of(fitted)
    return {k: v.detach().cpu().contiguous().clone() for k, v in {"sigmas": fitted.base, **own}.items()}


def as_json(fitted: Fitted) -> dict[str, Any]:
    """Everything a file says, its tensors as lists."""
    unknown, header = fitted.spec.unknown, to_header(fitted.spec)
    header = {k: v if k in unknown else json.loads(v) for k, v in header.items() if k != "amed_format"}
    return header | {"tensors": {k: v.tolist() for k, v in tensors_of(fitted).items()}}


def described(fitted: Fitted) -> str:
    """Everything a file says, for people: its header, then its constants interval by interval."""
    header = {k: v for k, v in to_header(fitted.spec).items() if v not in ('""', "{}", "[]")}
    lines = [fitted.label, "", *(f"{name}: {value}" for name, value in header.items()), ""]
    sigmas, values = fitted.base.tolist(), values_of(fitted)
    if not values:
        count = sum(v.numel() for k, v in tensors_of(fitted).items() if k != "sigmas")
        what = f"a network of {count} parameters: r, c, a from the image" if count else "nothing was fitted"
        return "\n".join([*lines, "sigmas: " + ", ".join(f"{t:.5g}" for t in sigmas), what])
    if isinstance(fitted.predictor, Outside):
        lines.append("its noise levels: " + ", ".join(f"{t:.5g}" for t in sigmas))
        lines.append("asked at sigma: c, a")
        calls = zip(*(v.tolist() for v in values.values()))
        return "\n".join([*lines, *(f"{level:.5g}: {c:.4f}, {a:.4f}" for level, c, a in calls)])
    lines.append("sigma -> next: " + ", ".join(values))
    for n, (t, t_next) in enumerate(zip(sigmas, sigmas[1:])):
        row = [" ".join(f"{x:.4f}" for x in v[n].reshape(-1).tolist()) for v in values.values()]
        lines.append(f"{t:.5g} -> {t_next:.5g}: {', '.join(row)}")
    return "\n".join(lines)


def build(
    spec: Spec, tensors: dict[str, Tensor]
) -> Constants | Multistep | Outside | BottleneckPredictor | None:
    """The predictor a spec and its tensors describe. Raises ValueError naming the tensor that does not
    fit."""
    if not spec.learned:
        return None
    if spec.solver == OUTSIDE:
        if missing := {"levels", *NAMES} - tensors.keys():
            raise ValueError(f"tensor {min(missing)!r} is missing")
        if len(tensors["levels"]) != spec.calls:
            raise ValueError(f"tensor 'levels' must have {spec.calls} values, as field 'calls' says")
        return Outside(tensors["sigmas"], *(tensors[name] for name in ("levels", *NAMES)))
    if spec.features == "none":
        names = ("weights", "a") if spec.solver == MULTISTEP else spec.student.recipe.constants
        if missing := {"weights", *AMED} & set(names) - tensors.keys():
            raise ValueError(f"tensor {min(missing)!r} is missing")
        if spec.solver == MULTISTEP:
            offset = tensors.get("offset") if spec.channels else None
            if (0 if offset is None else offset.shape[-1]) != spec.channels:
                raise ValueError(
                    f"tensor 'offset' must have {spec.channels} channels, as field 'channels' says"
                )
            marked = tensors.get("alone", torch.zeros(0))
            if marked.ndim != 1:
                raise ValueError(f"tensor 'alone' has shape {tuple(marked.shape)}: expected one value a step")
            alone = marked.nonzero().flatten().tolist()
            return Multistep(tensors["sigmas"], tensors["weights"], tensors["a"], spec.parts, offset, alone)
        own = {name: tensors[name] for name in names if name in tensors}
        return Constants(tensors["sigmas"], spec.scales_timestep, names, **own)
    predictor = BottleneckPredictor(spec.scale_dir, spec.scale_time)
    expected = predictor.state_dict()
    own = {k: v for k, v in tensors.items() if k != "sigmas"}
    double = all(v.dtype == torch.float64 for v in own.values())
    own = {k: v if double else v.float() for k, v in own.items()}  # of one kind, to be multiplied together
    for name in sorted(expected.keys() ^ own.keys()):
        wrong = "missing" if name in expected else "not one of this predictor"
        raise ValueError(f"tensor {name!r} is {wrong}")
    for name, value in own.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(expected[name].shape)}"
            raise ValueError(f"tensor {name!r} has shape {shapes}")
        if not value.isfinite().all():
            raise ValueError(f"tensor {name!r} is not finite")
    return predictor.adopt(own)


def with_factors(spec: Spec, tensors: dict[str, Tensor]) -> tuple[Spec, dict[str, Tensor]]:
    """Format 1's factors `g` on each evaluation's guidance scale, as weights of the guidance's own part."""
    g = tensors.pop("g", None) if spec.solver == MULTISTEP else None
    if g is None or (g.isfinite().all() and (g == 1).all()):
        return spec, tensors
    weights = tensors.get("weights")
    if weights is None or weights.ndim != 2 or g.shape != weights.shape[:1] or not (g > 0).all():
        raise ValueError(f"tensor 'g' must be positive, one value a step, got {g.tolist()}")
    rows, lags = torch.meshgrid(*(torch.arange(n) for n in weights.shape), indexing="ij")
    factor = torch.where(rows >= lags, g[(rows - lags).clamp(min=0)], 1.0)
    tensors["weights"] = torch.stack([weights, weights * factor], dim=-1)
    return dataclasses.replace(spec, parts="guidance"), tensors


def checked_base(spec: Spec, tensors: dict[str, Tensor]) -> Tensor:
    """The base times of a file, held against what its spec says of them."""
    if "sigmas" not in tensors:
        raise ValueError("tensor 'sigmas' is missing")
    base = schedules.checked(tensors["sigmas"])
    if len(base) != spec.num_steps:
        raise ValueError(f"tensor 'sigmas' has {len(base)} times, but field 'num_steps' is {spec.num_steps}")
    ends = torch.tensor([spec.sigma_max, spec.sigma_min], dtype=torch.float64)
    if not torch.allclose(base[[0, -1]], ends, rtol=1e-4):
        said = f"fields 'sigma_max' and 'sigma_min' are {spec.sigma_max:.5g} and {spec.sigma_min:.5g}"
        raise ValueError(f"tensor 'sigmas' runs from {base[0]:.5g} to {base[-1]:.5g}, but {said}")
    if spec.schedule not in ("custom", "discrete"):
        try:
            named = schedules.make(spec.schedule, spec.num_steps, spec.sigma_min, spec.sigma_max, spec.rho)
        except ArithmeticError:
            raise ValueError(f"fields 'rho' and 'sigma_max' make no {spec.schedule} schedule") from None
        if not torch.allclose(base, named, rtol=1e-4):
            raise ValueError(f"tensor 'sigmas' is not the {spec.schedule} schedule that 'schedule' names")
    return base


def check_kinds(spec: Spec, tensors: dict[str, Tensor]) -> None:
    """Raises ValueError for a tensor in use that holds no real numbers, or a single one. Others may be as a
    newer version has them."""
    used = {"sigmas", "g", "weights", "offset", "alone", "levels", *PARAMETERS}
    for name, value in tensors.items():
        if name not in used and spec.features != "bottleneck":
            continue
        if value.dtype not in REAL or value.ndim == 0:
            kind = str(value.dtype).removeprefix("torch.")
            raise ValueError(
                f"tensor {name!r} is {kind} {tuple(value.shape)}: expected lists of float numbers"
            )


def checked(spec: Spec, tensors: dict[str, Tensor], name: str) -> Fitted:
    """What a file holds, held against itself. Raises ValueError naming the field or tensor that does not
    fit."""
    check_kinds(spec, tensors)
    spec, tensors = with_factors(spec, tensors)
    base = checked_base(spec, tensors)
    return Fitted(spec, build(spec, tensors), base, name)


def load(path: str | os.PathLike[str]) -> Fitted:
    """Read and validate a predictor file. Raises PredictorError naming the file and the field."""
    path = Path(path)
    place = shown(path)
    if not os.path.isfile(path):
        what = (
            "no file, but a folder, a pipe or a broken link"
            if os.path.lexists(path)
            else "no such predictor file"
        )
        raise PredictorError(f"{place}: {what}")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"{size} bytes are no predictor's (at most {LARGEST}): not an AMED predictor")
        with safe_open(path, framework="pt") as file:
            spec = from_header(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return checked(spec, tensors, shown(path.name))
    except SafetensorError as error:
        wrong = f"not a whole safetensors file ({error}); download or fit it again"
        raise PredictorError(f"{place}: {wrong}") from None
    except (ValueError, OSError) as error:
        raise PredictorError(f"{place}: {brief(error)}") from None


def shown(path: str | Path) -> str:
    """A path as text that can be printed and sent: the bytes of a file's name may be none."""
    return str(path).encode("utf-8", "replace").decode()


def brief(error: Exception, most: int = 600) -> str:
    """What an error says, without all of the long list in it."""
    text = str(error)
    return text if len(text) <= most else f"{text[: most - 50]} ... {text[-40:]}"


def save(path: str | os.PathLike[str], fitted: Fitted) -> Path:
    """Write a predictor file, to the side first and then moved into place; what is written loads again.

    Raises PredictorError when the predictor is inconsistent, UnsavedError (which is one) when it cannot be
    written; what was there stays."""
    path, tensors = Path(path), tensors_of(fitted)
    try:
        checked_base(fitted.spec, tensors)
        build(fitted.spec, tensors)
    except ValueError as error:
        raise PredictorError(f"{path}: not saved: {error}") from None
    data = safetensors.torch.save(tensors, metadata=to_header(fitted.spec))
    try:
        part = written(path, data)
        try:
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unsaved(path, error) from error
    return path


def written(path: Path, data: bytes) -> Path:
    """A file beside `path`, whole and on the disk, or none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def tidy(folder: Path) -> None:
    """Remove what was written to the side by those that were killed meanwhile. No list shows it."""
    for part in folder.glob(".*.safetensors.*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > LEFT:
                part.unlink()


def check_room(path: Path) -> None:
    """Raise UnsavedError if no predictor could be written there: to be asked before a long work."""
    try:
        written(path, bytes(ROOM)).unlink()
    except OSError as error:
        raise unsaved(path, error) from error


def unsaved(path: Path, error: OSError) -> UnsavedError:
    """What to raise for a file that the system did not take."""
    todo = f"free some space in {path.parent}, or see to it that files can be written there"
    return UnsavedError(f"{path}: not saved: {error.strerror or error}; {todo}")


def file_name(name: str) -> str:
    """A predictor's file name from what a user typed. Raises ValueError for what is no plain name."""
    stem = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"\w[\w .+-]*", stem):
        raise ValueError(f"{name[:99]!r} is no file name: use letters, digits, spaces and . _ + -")
    if DEVICES.fullmatch(stem) or len(stem.encode()) > LONGEST_NAME:
        raise ValueError(f"{name[:99]!r} is no file name: too long, or Windows' name for a device")
    return f"{stem}.safetensors"


def as_name(text: str, otherwise: str = "model") -> str:
    """Any text as a part of a predictor's name: what a file name cannot hold becomes a hyphen."""
    short = re.sub(r"[^\w+]+", "-", text).strip("-+").encode()[:LONGEST_PART]
    return short.decode(errors="ignore") or otherwise


def saved_as(name: str, nfe: int, guidance: float, passes: int | None = None) -> str:
    """The file a fit is saved as. Raises ValueError for a name that is none."""
    return file_name(f"{name}-nfe{nfe}-cfg{guidance:g}" + (f"-passes{passes}" if passes else ""))


Stamp = tuple[int, int]


def stamp_of(path: Path) -> Stamp:
    """What differs when a file was replaced: its time, and which it is, for the clock may stand for two."""
    try:
        seen = path.stat()
    except OSError:  # gone since it was listed
        return 0, 0
    return seen.st_mtime_ns, seen.st_ino


class Library:
    """The predictors in some folders (the user's first, then the bundled): by name. Threads may share one."""

    def __init__(self, folders: list[Path]):
        self.folders = [Path(f) for f in folders]
        self._cache: dict[Path, tuple[Stamp, Fitted | str]] = {}  # or why it does not load
        self._lock = threading.RLock()  # held around every use of the cache

    def paths(self) -> dict[str, Path]:
        """name -> file; of two with the same name, the first folder's."""
        paths: dict[str, Path] = {}
        for folder in self.folders:
            for path in sorted(folder.rglob("*.safetensors")) if os.path.isdir(folder) else ():
                paths.setdefault(shown(path.relative_to(folder).as_posix()), path)
        there = set(paths.values())
        with self._lock:
            self._cache = {path: read for path, read in self._cache.items() if path in there}
        return paths

    def names(self) -> list[str]:
        return sorted(self.paths())

    def path(self, name: str) -> Path:
        """Raises PredictorError naming what exists."""
        paths = self.paths()
        if name not in paths:
            there = ", ".join(sorted(paths))
            raise PredictorError(f"no predictor named {name!r} in {self.where()}; there are: {there}")
        return paths[name]

    def load(self, name: str) -> Fitted:
        return self._read(self.path(name))

    def problems(self) -> list[str]:
        """What is wrong with the files that do not load."""
        read = (self._try(path) for path in self.paths().values())
        return [str(result) for result in read if isinstance(result, PredictorError)]

    def fitted(self) -> list[Fitted]:
        """All that load, in the folders' order."""
        return list(self.named().values())

    def named(self) -> dict[str, Fitted]:
        """name -> predictor, of all that load, in the folders' order."""
        read = {name: self._try(path) for name, path in self.paths().items()}
        return {name: result for name, result in read.items() if isinstance(result, Fitted)}

    def where(self) -> str:
        return " or ".join(str(f) for f in self.folders)

    def leaves(self, path: Path) -> bool:
        """Whether a file of these folders is a link to a place outside them. (No linked folder is
        searched.)"""
        if not path.is_symlink():
            return False
        real = Path(os.path.realpath(path))
        return not any(real.is_relative_to(os.path.realpath(folder)) for folder in self.folders)

    def _try(self, path: Path) -> Fitted | PredictorError:
        try:
            return self._read(path)
        except PredictorError as error:
            return error

    def _read(self, path: Path) -> Fitted:
        if self.leaves(path):
            raise PredictorError(f"{shown(path)}: a link out of its folder: put the file itself there")
        changed = stamp_of(path)
        with self._lock:
            if path not in self._cache or self._cache[path][0] != changed:
                try:
                    self._cache[path] = changed, load(path)
                except PredictorError as error:
                    self._cache[path] = changed, str(error)
            result = self._cache[path][1]
        if isinstance(
            result, str
        ):  # a new error each time: one that is kept keeps the frames it went through
            raise PredictorError(result)
        return result
