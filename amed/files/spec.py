"""`Spec`, the content of a predictor file's header, and its conversion from and to that header.

A predictor file is a safetensors file whose header maps strings to strings; each value is JSON. In format 2
an absent field has its default, an unknown field is kept, and `requires` lists what a reader must support.
Format 1 can be read too: all its fields were mandatory, and its tensor `g` scaled the guidance."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, get_origin

from torch import Tensor

from .. import schedules
from ..fingerprint import Identity
from ..kdiffusion import sampler_of
from ..outside import OUTSIDE
from ..parameters import AMED, PARAMETERS
from ..parts import PARTS
from ..recipes import MULTISTEP, Solver

FORMAT, READABLE = "2", ("1", "2")
PREDICTION_TYPES = ("eps", "v", "edm", "flow", "x0")
FEATURES = ("none", "bottleneck", "plain")
MAX_SIGMA = 1e9  # float32 can hold what a run computes from noise levels below this
MAX_CHARACTERS = 10_000  # of a field; no fit writes a tenth of it
MAX_DEPTH = 8  # of lists and objects inside each other; no fit writes more than one
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal could execute these


@dataclass(frozen=True)
class Spec:
    """The header of a predictor file: solver, noise levels, checkpoint, and how the predictor was made.

    Raises:
        ValueError: if a field has an invalid value; the message names the field.
    """

    # the solver, as in amed.recipes.Solver; "outside": the host's sampler `of` with AMED-Plugin around it
    solver: str
    num_steps: int  # number N of base times, at least 2
    schedule: str  # one of schedules.KINDS, or "custom": only the file's tensor `sigmas` describes it
    sigma_min: float  # last base time
    sigma_max: float  # first base time
    rho: float = 1.0  # exponent of the schedule
    afs: bool = False  # analytic first step: no evaluation at sigma_max
    max_order: int = 1  # of the solver
    predict_x0: bool = False  # the solver predicts data (denoised), not noise
    lower_order_final: bool = True  # the solver lowers its order in the last steps
    thresholding: bool = False  # dynamic thresholding, for pixel-space models
    # `a` scales only the timestep that a VP model is given, not the model's input (published SD 1.5 table)
    scales_timestep: bool = False
    prediction_type: str = "eps"  # of the model; one of PREDICTION_TYPES
    guidance: float = 1.0  # guidance scale of the fit; 1: no guidance
    model_family: str = ""  # e.g. "sd15"; "": unknown
    model_fingerprint: str = ""  # of the checkpoint, see amed.fingerprint; "": unknown
    model_name: str = ""  # of the checkpoint, for people
    features: str = "none"  # "none": constants; "bottleneck": the paper's network; "plain": nothing learned
    scale_dir: float = 0.0  # the network's c lies in 1 ± scale_dir
    scale_time: float = 0.0  # the network's a lies in 1 ± scale_time
    how: str = ""  # how the predictor was made, in one sentence
    source: str = ""  # where published numbers come from
    metrics: dict[str, Any] = field(default_factory=dict)  # measured values by name, e.g. "error"
    variant: str = "bh1"  # of UniPC
    parts: str = ""  # how slopes are split, a key of amed.parts.PARTS; "": not split
    channels: int = 0  # of the offsets; 0: no offsets
    of: str = ""  # for "outside": name of the host's sampler
    calls: int = 0  # for "outside": evaluations of a run
    model_signature: str = ""  # identifies the checkpoint in any precision (amed.fingerprint.signature)
    fitted_for: str = ""  # the sampler that was requested, where the fit saved a plain solver instead
    unknown: dict[str, str] = field(default_factory=dict)  # fields of a newer version, as read

    def __post_init__(self) -> None:
        multistep, outside = self.solver == MULTISTEP, self.solver == OUTSIDE
        choices = {"schedule": (*schedules.KINDS, "custom"), "prediction_type": PREDICTION_TYPES,
                   "features": FEATURES, "parts": tuple(PARTS)}  # fmt: skip
        for name, valid, expected in (
            *((k, getattr(self, k) in v, f"one of {', '.join(v)}") for k, v in choices.items()),
            ("num_steps", self.num_steps >= 2, "at least 2"),
            (
                "sigma_min",
                0 < self.sigma_min < self.sigma_max,
                f"above 0, below sigma_max = {self.sigma_max}",
            ),
            ("sigma_max", self.sigma_max < MAX_SIGMA, f"below {MAX_SIGMA:g}"),
            ("rho", self.rho > 0, "above 0"),
            ("guidance", math.isfinite(self.guidance), "finite"),
            ("scale_dir", 0 <= self.scale_dir < 1, "in [0, 1)"),
            ("scale_time", 0 <= self.scale_time < 1, "in [0, 1)"),
            ("features", not (multistep or outside) or self.features == "none", f"'none' for {self.solver}"),
            ("of", bool(self.of) == outside, "a sampler's name for solver 'outside', else ''"),
            ("calls", (self.calls > 0) == outside, "above 0 for solver 'outside', else 0"),
            ("parts", multistep or not self.parts, "'' unless the solver is multistep"),
            ("channels", self.channels == 0 or (multistep and self.channels > 0),
             "0, or above 0 if the solver is multistep"),
        ):  # fmt: skip
            if not valid:
                raise ValueError(
                    f"field {name!r} of the predictor is {getattr(self, name)!r}, but must be {expected}: "
                    "download or calibrate the predictor again"
                )
        if outside:
            return
        try:
            _ = self.student, self.sampler
        except ValueError as error:
            name = next((n for n in ("solver", "variant") if n in str(error)), "max_order")
            raise ValueError(
                f"field {name!r} of the predictor is {getattr(self, name)!r}, which does not work ({error}): "
                "download or calibrate the predictor again"
            ) from None

    @classmethod
    def on(cls, solver: Solver | str, times: Tensor, **fields: Any) -> "Spec":
        """Return the header (Spec) of a predictor for a solver that runs on given noise levels.

        Args:
            solver: a Solver, or only its name; its other settings then have their defaults.
            times: noise levels, falling `[N]`, without a last 0. The schedule is "custom" unless `fields`
                names another.
            fields: the other fields of the Spec.
        """
        values: dict[str, Any] = {"solver": solver}
        if isinstance(solver, Solver):
            values = dataclasses.asdict(solver)
            values["solver"] = values.pop("name")
        values |= {"num_steps": len(times), "schedule": "custom"}
        values |= {"sigma_min": float(times[-1]), "sigma_max": float(times[0])}
        return cls(**{**values, **fields})

    @property
    def identity(self) -> Identity:
        """Model family and fingerprints of the checkpoint that the predictor was fitted to."""
        return Identity(self.model_family, self.model_fingerprint, self.model_signature)

    @property
    def student(self) -> Solver:
        """The AMED solver that runs the predictor.

        Raises:
            ValueError: if the predictor is for a sampler of the host.
        """
        if self.solver == OUTSIDE:
            raise ValueError(
                f"this predictor was fitted for the host's sampler {self.of}, not for an AMED sampler: "
                f"choose the sampler {self.of}, or another predictor"
            )
        names = (f.name for f in dataclasses.fields(Solver) if f.name != "name")
        return Solver(self.solver, **{name: getattr(self, name) for name in names})

    def metric(self, name: str) -> float:
        """Return a measured value of the header, e.g. "error"; infinity if it is absent or not finite."""
        value = self.metrics.get(name)
        try:
            number = float(value) if isinstance(value, int | float) else math.inf
        except OverflowError:
            return math.inf
        return number if math.isfinite(number) else math.inf

    @property
    def usable(self) -> bool:
        """Whether the predictor's images are nearer to the reference images than images from other noise are.

        The reference images come from runs with many steps. True if the file does not state it."""
        return self.metrics.get("usable") is not False

    @property
    def learned(self) -> bool:
        """Whether the file has learned constants or a network; False for a plain solver."""
        return self.features != "plain"

    @property
    def sampler(self) -> str:
        """Name of the AMED sampler that runs the predictor; "outside" if a sampler of the host runs it.

        A plain solver, for which nothing was fitted, runs in "amed_multistep"."""
        if self.solver == OUTSIDE:
            return OUTSIDE
        return sampler_of(self.solver, self.max_order) if self.learned else "amed_multistep"

    def answers(self, sampler: str) -> bool:
        """Return whether a user who requests `sampler` may get this predictor; with "auto" always."""
        return sampler in ("auto", self.sampler, self.fitted_for)

    @property
    def nfe(self) -> int:
        """Evaluations of the model from sigma_max to sigma_min; a further step to sigma 0 takes one more."""
        return self.calls or self.student.evaluations(self.num_steps, self.afs, self.learned)

    @property
    def requires(self) -> list[str]:
        """Names of the optional parts of the file format that a program must know to run the predictor."""
        if self.solver == OUTSIDE:
            return [OUTSIDE]
        recipe = self.features == "none" and self.solver != MULTISTEP
        names = self.student.recipe.constants if recipe else ()
        constants = [f"constant:{name}" for name in names if name not in AMED]
        parts = [f"parts:{self.parts}"] * bool(self.parts) + ["offset"] * bool(self.channels)
        return parts + ["plain"] * (not self.learned) + constants


def to_header(spec: Spec) -> dict[str, str]:
    """Return a Spec (a predictor's settings) as a safetensors header: each field's value as JSON."""
    fields = dataclasses.asdict(spec)
    if not spec.fitted_for:  # left out, so that other files stay byte for byte as they were before this field
        del fields["fitted_for"]
    first = {"amed_format": FORMAT, "requires": json.dumps(spec.requires)}
    return {**fields.pop("unknown"), **first, **{k: json.dumps(v) for k, v in fields.items()}}


def from_header(header: dict[str, str]) -> Spec:
    """Read a Spec, the settings of a predictor, from the header of a safetensors file.

    Raises:
        ValueError: if a field is missing, unreadable or of the wrong type, or if this version lacks a feature
            that the file requires; the message names the field.
    """
    if "amed_format" not in header:
        raise ValueError(
            "field 'amed_format' is missing, so this is not an AMED predictor: choose a file that AMED saved"
        )
    if (version := header["amed_format"]) not in READABLE:
        raise ValueError(
            f"field 'amed_format' is {version!r}, but this version of AMED only reads formats "
            f"{', '.join(READABLE)}: update AMED to use the predictor"
        )
    supported = {
        "plain", "offset", OUTSIDE, *(f"parts:{name}" for name in PARTS),
        *(f"constant:{name}" for name in PARAMETERS),
    }  # fmt: skip
    if lacking := set(map(str, read_field(header, "requires", list, []))) - supported:
        raise ValueError(
            f"field 'requires' names {', '.join(sorted(lacking))}, which this version does not support: "
            "update AMED to use the predictor"
        )
    values, fields = {}, {f.name: f for f in dataclasses.fields(Spec) if f.name != "unknown"}
    for name, f in fields.items():
        if name in header:
            kind: Any = (int, float) if f.type is float else get_origin(f.type) or f.type
            values[name] = read_field(header, name, kind)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(
                f"field {name!r} is missing from the header: download or calibrate the predictor again"
            )
    known = {*fields, "amed_format", "requires"}
    return Spec(**values, unknown={k: v for k, v in header.items() if k not in known})


def read_field(header: dict[str, str], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """Return the value of a field of a predictor file's header.

    Args:
        header: the header, with each value as JSON.
        name: the field.
        kind: the type, or types, that the value must have.
        default: returned if the field is absent.

    Raises:
        ValueError: if the field is too long, not JSON, of the wrong type, nested too deep, or has control
            characters.
    """
    if name not in header:
        return default
    text = header[name]
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"field {name!r} has {len(text)} characters, at most {MAX_CHARACTERS} are allowed: "
            "download or calibrate the predictor again"
        )
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except (ValueError, RecursionError):
        raise ValueError(
            f"field {name!r} is not valid JSON ({text!r}): download or calibrate the predictor again"
        ) from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(
            f"field {name!r} has the wrong type ({value!r}): download or calibrate the predictor again"
        )
    if isinstance(value, str) and CONTROL.search(value):
        raise ValueError(
            f"field {name!r} has control characters ({value!r}): download or calibrate the predictor again"
        )
    if is_too_deep(value):
        raise ValueError(
            f"field {name!r} is nested more than {MAX_DEPTH} levels deep: "
            "download or calibrate the predictor again"
        )
    if isinstance(kind, tuple) and isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(
                f"field {name!r} is too large for a float ({len(text)} digits): "
                "download or calibrate the predictor again"
            ) from None
    return value


def is_too_deep(value: Any, depth: int = 0) -> bool:
    """Return whether a JSON value has lists or objects nested more than MAX_DEPTH levels deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > MAX_DEPTH or any(is_too_deep(v, depth + 1) for v in inner)
