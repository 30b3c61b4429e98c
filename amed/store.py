"""Predictors in safetensors: everything about one stands in its header, and is checked when it is read.

    fitted = load("predictors/emoji32-amed-nfe5.safetensors")
    fitted = Library([folder, ...]).find(solver="amed", nfe=5, guidance=1.0, fingerprint="...")

Nothing is ever unpickled.
"""

import dataclasses
import json
import math
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import schedules
from .predictor import BottleneckPredictor, MultistepTable, TablePredictor
from .sampling import MULTISTEP, SOLVERS, Solver

FORMAT = "1"
PREDICTION_TYPES = ("eps", "v", "edm", "flow", "x0")
FEATURES = ("none", "bottleneck")


class PredictorError(ValueError):
    """A predictor file that is missing, broken or not what was asked for. The message names file and
    field."""


@dataclass(frozen=True)
class Spec:
    """What a predictor file says of itself.

    solver, max_order, predict_x0, lower_order_final, thresholding, scales_timestep: the student, as in
    amed.sampling.Solver.
    num_steps, schedule, rho, sigma_min, sigma_max: its N base times; schedule is one of schedules.KINDS, or
    "custom" where the file's `sigmas` tensor is the only description. afs: analytic first step.
    prediction_type: one of PREDICTION_TYPES. guidance: the guidance scale it was fitted at, 1 for none.
    model_family, model_fingerprint, model_name: for whom; empty where unknown.
    features: "bottleneck" for the MLP, "none" for constants. scale_dir, scale_time: the MLP's ranges.
    how: one sentence, how it was made. source: where its numbers come from, if published. metrics:
    measured."""

    solver: str
    num_steps: int
    schedule: str
    sigma_min: float
    sigma_max: float
    rho: float = 1.0
    afs: bool = False
    max_order: int = 1
    predict_x0: bool = False
    lower_order_final: bool = True
    thresholding: bool = False
    scales_timestep: bool = False
    prediction_type: str = "eps"
    guidance: float = 1.0
    model_family: str = ""
    model_fingerprint: str = ""
    model_name: str = ""
    features: str = "none"
    scale_dir: float = 0.0
    scale_time: float = 0.0
    how: str = ""
    source: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in (
            ("solver", SOLVERS),
            ("schedule", (*schedules.KINDS, "custom")),
            ("prediction_type", PREDICTION_TYPES),
            ("features", FEATURES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(choices)}")
        if self.num_steps < 2:
            raise ValueError(f"num_steps is {self.num_steps}: expected at least 2")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max is {self.sigma_max}: "
                "expected 0 < sigma_min < sigma_max"
            )
        for name, holds in (
            ("rho", self.rho > 0),
            ("guidance", math.isfinite(self.guidance)),
            ("scale_dir", 0 <= self.scale_dir < 1),
            ("scale_time", 0 <= self.scale_time < 1),
            ("features", self.solver != MULTISTEP or self.features == "none"),
        ):
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}: out of range")
        try:
            _ = self.settings
        except ValueError as error:
            raise ValueError(f"max_order is {self.max_order}: {error}") from None

    @classmethod
    def on(cls, solver: Solver, times: Tensor, **told: Any) -> "Spec":
        """For a solver over `times`, falling `[N]`; `told`: the other fields."""
        student = {f.name: getattr(solver, f.name) for f in dataclasses.fields(solver) if f.name != "name"}
        ends = {"sigma_min": float(times[-1]), "sigma_max": float(times[0])}
        return cls(solver=solver.name, num_steps=len(times), schedule="custom", **ends, **student, **told)

    @property
    def settings(self) -> Solver:
        """The student as the sampling loop wants it."""
        return Solver(
            self.solver,
            self.max_order,
            self.predict_x0,
            self.lower_order_final,
            self.thresholding,
            self.scales_timestep,
        )

    @property
    def nfe(self) -> int:
        """Evaluations from sigma_max to sigma_min; one more if a host goes on to 0. Guidance may double the
        network passes."""
        return self.settings.evaluations(self.num_steps, self.afs, with_predictor=True)


@dataclass(frozen=True)
class Fitted:
    """A predictor with its Spec and base times; itself a Predictor. `name` is its file's, for messages."""

    spec: Spec
    predictor: TablePredictor | MultistepTable | BottleneckPredictor
    base: Tensor
    name: str = "unsaved"

    @property
    def wants_bottleneck(self) -> bool:
        return self.predictor.wants_bottleneck

    @property
    def nfe(self) -> int:
        return self.spec.nfe

    @property
    def label(self) -> str:
        """A short text for people."""
        spec = self.spec
        order = f"-{spec.max_order}" if spec.max_order > 1 else ""
        guidance = f", guidance {spec.guidance:g}" if spec.guidance != 1 else ""
        whose = spec.model_name or "any model"
        return f"{self.name} ({spec.solver}{order}, {self.nfe} evaluations{guidance}; {whose})"

    def sigmas(self) -> Tensor:
        """The base times it was fitted on, float64 `[num_steps]`, from sigma_max to sigma_min (no 0)."""
        return self.base.clone()

    def to(self, device: torch.device | str) -> "Fitted":
        """The same predictor on a device (a copy: the library's own is left alone). Tables stay where they
        are: a few scalars, which a GPU takes as arguments."""
        if not self.wants_bottleneck or next(self.predictor.parameters()).device == torch.device(device):
            return self
        return dataclasses.replace(self, predictor=build(self.spec, tensors_of(self)).to(device))

    def __call__(
        self, t_cur: Tensor, t_next: Tensor, bottleneck: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.predictor(t_cur, t_next, bottleneck)

    def __getattr__(self, name: str) -> Any:
        if name in ("row", "before_first"):  # what the solver `multistep` asks of its table
            return getattr(self.predictor, name)
        raise AttributeError(name)


def tensors_of(fitted: Fitted) -> dict[str, Tensor]:
    """The tensors a file holds: `sigmas` [N], and `r`, `c`, `a` [N-1], or `weights` [N-1, H], `a`, `g` [N-1]
    of multistep, or the network's own by their names."""
    p = fitted.predictor
    own = {"r": p.r, "c": p.c, "a": p.a} if isinstance(p, TablePredictor) else p.state_dict()
    return {k: v.detach().cpu().contiguous() for k, v in {"sigmas": fitted.base, **own}.items()}


def build(
    spec: Spec, tensors: dict[str, Tensor]
) -> TablePredictor | MultistepTable | BottleneckPredictor:
    """The predictor a spec and its tensors describe. Raises ValueError naming the tensor that does not
    fit."""
    if spec.features == "none":
        names = ("weights", "a", "g") if spec.solver == MULTISTEP else ("r", "c", "a")
        if missing := set(names) - tensors.keys():
            raise ValueError(f"tensor {min(missing)!r} is missing")
        if spec.solver == MULTISTEP:
            return MultistepTable(tensors["sigmas"], *(tensors[name] for name in names))
        return TablePredictor(tensors["sigmas"], tensors["r"], tensors["c"], tensors["a"]).requires_grad_(
            False
        )
    predictor = BottleneckPredictor(spec.scale_dir, spec.scale_time)
    expected = predictor.state_dict()
    own = {k: v for k, v in tensors.items() if k != "sigmas"}
    for name in sorted(expected.keys() ^ own.keys()):
        raise ValueError(
            f"tensor {name!r} is {'missing' if name in expected else 'not one of this predictor'}"
        )
    for name, value in own.items():
        if value.shape != expected[name].shape:
            raise ValueError(
                f"tensor {name!r} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
            )
        if not value.isfinite().all():
            raise ValueError(f"tensor {name!r} is not finite")
    for name, parameter in predictor.named_parameters():  # not load_state_dict: see predictor.Linear
        parameter.data = own[name].clone()
    return predictor.eval().requires_grad_(False)


def to_header(spec: Spec) -> dict[str, str]:
    """A string-to-string safetensors header: one key a field, JSON values."""
    return {"amed_format": FORMAT} | {k: json.dumps(v) for k, v in dataclasses.asdict(spec).items()}


def from_header(header: dict[str, str]) -> Spec:
    """The inverse; raises ValueError naming the field that is missing, unknown or of the wrong type."""
    if "amed_format" not in header:
        raise ValueError("field 'amed_format' is missing: this is not an AMED predictor")
    if header["amed_format"] != FORMAT:
        raise ValueError(f"field 'amed_format' is {header['amed_format']!r}: this version reads {FORMAT!r}")
    values = {}
    for f in dataclasses.fields(Spec):
        if f.name not in header:
            raise ValueError(f"field {f.name!r} is missing")
        try:
            value = json.loads(header[f.name])
        except json.JSONDecodeError:
            raise ValueError(f"field {f.name!r} is not readable: {header[f.name]!r}") from None
        kind = {float: (int, float)}.get(f.type, f.type if isinstance(f.type, type) else dict)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"field {f.name!r} is {value!r}: wrong type")
        values[f.name] = value
    return Spec(**values)


def checked_base(spec: Spec, tensors: dict[str, Tensor]) -> Tensor:
    """The base times of a file, held against what its spec says of them."""
    if "sigmas" not in tensors:
        raise ValueError("tensor 'sigmas' is missing")
    base = schedules.checked(tensors["sigmas"])
    if len(base) != spec.num_steps:
        raise ValueError(f"tensor 'sigmas' has {len(base)} times, but field 'num_steps' is {spec.num_steps}")
    ends = torch.tensor([spec.sigma_max, spec.sigma_min], dtype=torch.float64)
    if not torch.allclose(base[[0, -1]], ends, rtol=1e-4):
        raise ValueError(
            f"tensor 'sigmas' runs from {base[0]:.5g} to {base[-1]:.5g}, but fields 'sigma_max' and "
            f"'sigma_min' are {spec.sigma_max:.5g} and {spec.sigma_min:.5g}"
        )
    if spec.schedule not in ("custom", "discrete"):
        told = schedules.make(spec.schedule, spec.num_steps, spec.sigma_min, spec.sigma_max, spec.rho)
        if not torch.allclose(base, told, rtol=1e-4):
            raise ValueError(
                f"tensor 'sigmas' is not the {spec.schedule} schedule that field 'schedule' names"
            )
    return base


def load(path: str | os.PathLike) -> Fitted:
    """Read and validate a predictor file. Raises PredictorError naming the file and the field."""
    path = Path(path)
    if not path.is_file():
        raise PredictorError(f"{path}: no such predictor file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            spec = from_header(header)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        base = checked_base(spec, tensors)
        return Fitted(spec, build(spec, tensors), base, path.name)
    except SafetensorError as error:
        raise PredictorError(
            f"{path}: not a whole safetensors file ({error}); download or fit it again"
        ) from None
    except (ValueError, OSError) as error:
        raise PredictorError(f"{path}: {error}") from None


def save(path: str | os.PathLike, fitted: Fitted) -> Path:
    """Write a predictor file, to the side first and then moved into place; what is written loads again.

    Raises PredictorError when the predictor is inconsistent, with no file touched."""
    path = Path(path)
    tensors = tensors_of(fitted)
    try:
        checked_base(fitted.spec, tensors)
        build(fitted.spec, tensors)
    except ValueError as error:
        raise PredictorError(f"{path}: not saved: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, part, metadata=to_header(fitted.spec))
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return path


def file_name(name: str) -> str:
    """A predictor's file name from what a user typed. Raises ValueError for what is no plain name."""
    stem = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"\w[\w .+-]*", stem):
        raise ValueError(f"{name!r} is no file name: use letters, digits, spaces and . _ + -")
    return f"{stem}.safetensors"


def saved_as(name: str, nfe: int, guidance: float) -> str:
    """The file a fit is saved as. Raises ValueError for a name that is none."""
    return file_name(f"{name}-nfe{nfe}-cfg{guidance:g}")


class Library:
    """The predictors in some folders (the user's first, then the bundled): by name, or by what they are
    for."""

    def __init__(self, folders: list[Path]):
        self.folders = [Path(f) for f in folders]
        self._cache: dict[Path, tuple[float, Fitted | PredictorError]] = {}

    def paths(self) -> dict[str, Path]:
        """name -> file; of two with the same name, the first folder's."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else ():
                found.setdefault(path.relative_to(folder).as_posix(), path)
        return found

    def names(self) -> list[str]:
        return sorted(self.paths())

    def path(self, name: str) -> Path:
        """Raises PredictorError naming what exists."""
        paths = self.paths()
        if name not in paths:
            raise PredictorError(
                f"no predictor named {name!r} in {self._where()}; there are: {', '.join(sorted(paths))}"
            )
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

    def find(
        self,
        *,
        solver: str | None = None,
        nfe: int | None = None,
        guidance: float | None = None,
        family: str | None = None,
        fingerprint: str | None = None,
        max_order: int | None = None,
    ) -> Fitted:
        """The best match: solver, NFE and order exactly; the same checkpoint before the same family; the
        nearest guidance scale (compare by ratio). A family match that is another checkpoint is for the caller
        to report.

        Raises PredictorError naming what was looked for and what exists."""
        fits = [
            f
            for f in self.fitted()
            if (solver is None or f.spec.solver == solver)
            and (nfe is None or f.nfe == nfe)
            and (max_order is None or f.spec.max_order == max_order)
        ]
        same = [f for f in fits if fingerprint and f.spec.model_fingerprint == fingerprint]
        kin = [f for f in fits if family and f.spec.model_family == family]
        candidates = same or kin or (fits if family is None and fingerprint is None else [])
        if not candidates:
            asked = {
                "solver": solver,
                "order": max_order,
                "NFE": nfe,
                "guidance": guidance,
                "model family": family,
                "checkpoint": fingerprint,
            }
            text = ", ".join(f"{k} {v}" for k, v in asked.items() if v is not None)
            there = "; ".join(sorted(f.label for f in self.fitted())) or "none"
            raise PredictorError(f"no predictor for {text} in {self._where()}.\nThere are: {there}")
        if guidance is None:
            return candidates[0]
        return min(candidates, key=lambda f: abs(math.log(max(f.spec.guidance, 1e-3) / max(guidance, 1e-3))))

    def _where(self) -> str:
        return " or ".join(str(f) for f in self.folders)

    def _try(self, path: Path) -> Fitted | PredictorError:
        try:
            return self._read(path)
        except PredictorError as error:
            return error

    def _read(self, path: Path) -> Fitted:
        stamp = path.stat().st_mtime if path.is_file() else 0.0
        if path not in self._cache or self._cache[path][0] != stamp:
            try:
                self._cache[path] = stamp, load(path)
            except PredictorError as error:
                self._cache[path] = stamp, error
        result = self._cache[path][1]
        if isinstance(result, PredictorError):
            raise result
        return result
