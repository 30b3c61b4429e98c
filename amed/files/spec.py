"""What a predictor file says of itself, and its header.

Format 2: a field that is absent has its default, one that is not known is kept, and `requires` names what a
reader must be able to do. Format 1 loads too: it had every field, and factors on the guidance scale (`g`)."""

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
HIGHEST = 1e9  # noise level: float32 has room for what a run makes of it
LONGEST, DEEPEST = 10_000, 8  # characters of a field, and lists in lists: no fit writes a tenth of either
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal or an image's metadata may obey


@dataclass(frozen=True)
class Spec:
    """What a predictor file says of itself.

    solver, max_order, predict_x0, lower_order_final, variant: the student, as in amed.recipes.Solver.
    thresholding: dynamic, for pixel models. scales_timestep: a scales only the timestep a VP model is told,
    its input unchanged, as the published SD 1.5 run does. parts: how slopes are split (amed.parts), "" for
    not. num_steps, schedule, rho, sigma_min, sigma_max: its N base times; schedule is one of schedules.KINDS,
    or "custom" where the file's `sigmas` tensor is the only description. afs: analytic first step.
    prediction_type: one of PREDICTION_TYPES. guidance: the guidance scale it was fitted at, 1 for none.
    model_family, model_fingerprint, model_name: for whom; empty where unknown. model_signature: as
    amed.fingerprint.signature gives it, to know the checkpoint in another precision. features: "bottleneck"
    for the MLP, "none" for constants, "plain" for a solver that learned nothing. scale_dir, scale_time: the
    MLP's ranges. channels: of its offsets, 0 for none. of, calls: of a solver "outside", the host's sampler
    that it is wrapped around and its evaluations. how: one sentence, how it was made. source: where its
    numbers come from, if published. metrics: measured. unknown: fields of a newer version, as they were read.

    Raises ValueError naming the field that will not do."""

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
    variant: str = "bh1"
    parts: str = ""
    channels: int = 0
    of: str = ""
    calls: int = 0
    model_signature: str = ""
    fitted_for: str = ""  # the sampler a fit was asked for, where it kept a plain solver instead
    unknown: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        multistep, outside = self.solver == MULTISTEP, self.solver == OUTSIDE
        choices = {"schedule": (*schedules.KINDS, "custom"), "prediction_type": PREDICTION_TYPES,
                   "features": FEATURES, "parts": tuple(PARTS)}  # fmt: skip
        for name, right, expected in (
            *((k, getattr(self, k) in v, f"one of {', '.join(v)}") for k, v in choices.items()),
            ("num_steps", self.num_steps >= 2, "at least 2"),
            (
                "sigma_min",
                0 < self.sigma_min < self.sigma_max,
                f"above 0, below sigma_max = {self.sigma_max}",
            ),
            ("sigma_max", self.sigma_max < HIGHEST, f"below {HIGHEST:g}"),
            ("rho", self.rho > 0, "above 0"),
            ("guidance", math.isfinite(self.guidance), "finite"),
            ("scale_dir", 0 <= self.scale_dir < 1, "in [0, 1)"),
            ("scale_time", 0 <= self.scale_time < 1, "in [0, 1)"),
            ("features", not (multistep or outside) or self.features == "none", f"none, for {self.solver}"),
            ("of", bool(self.of) == outside, "a sampler's name, for outside alone"),
            ("calls", (self.calls > 0) == outside, "a number of evaluations, for outside alone"),
            ("parts", multistep or not self.parts, "none, but for multistep"),
            ("channels", self.channels == 0 or (multistep and self.channels > 0), "0, but for multistep"),
        ):
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected {expected}")
        if outside:
            return
        try:
            _ = self.student, self.sampler
        except ValueError as error:
            which = next((n for n in ("solver", "variant") if n in str(error)), "max_order")
            raise ValueError(f"{which} is {getattr(self, which)}: {error}") from None

    @classmethod
    def on(cls, solver: Solver | str, times: Tensor, **fields: Any) -> "Spec":
        """For a solver (or a name, where that is all) over `times`, falling `[N]`; `fields`: the others."""
        own: dict[str, Any] = {"solver": solver}
        if isinstance(solver, Solver):
            own = dataclasses.asdict(solver)
            own["solver"] = own.pop("name")
        own |= {"num_steps": len(times), "schedule": "custom"}
        own |= {"sigma_min": float(times[-1]), "sigma_max": float(times[0])}
        return cls(**{**own, **fields})

    @property
    def identity(self) -> Identity:
        """The checkpoint it was fitted for."""
        return Identity(self.model_family, self.model_fingerprint, self.model_signature)

    @property
    def student(self) -> Solver:
        """The solver that runs it. Raises ValueError for one that is the host's own."""
        if self.solver == OUTSIDE:
            raise ValueError(f"this predictor is for the host's sampler {self.of}, not for one of ours")
        names = (f.name for f in dataclasses.fields(Solver) if f.name != "name")
        return Solver(self.solver, **{name: getattr(self, name) for name in names})

    def stated(self, name: str) -> float:
        """A number of its metrics; infinite where it states none that can be compared."""
        value = self.metrics.get(name)
        try:
            number = float(value) if isinstance(value, int | float) else math.inf
        except OverflowError:
            return math.inf
        return number if math.isfinite(number) else math.inf

    @property
    def usable(self) -> bool:
        """Whether its fit was worth keeping; of what an older version saved, always."""
        return self.metrics.get("usable") is not False

    @property
    def learned(self) -> bool:
        """Whether anything was fitted."""
        return self.features != "plain"

    @property
    def sampler(self) -> str:
        """The sampler that runs it: a plain solver is a table like any other; "outside" for the host's
        own."""
        if self.solver == OUTSIDE:
            return OUTSIDE
        return sampler_of(self.solver, self.max_order) if self.learned else "amed_multistep"

    def answers(self, sampler: str) -> bool:
        """Whether a run of a sampler may take this file: it is that sampler's, or what a fit for it kept."""
        return sampler in ("auto", self.sampler, self.fitted_for)

    @property
    def nfe(self) -> int:
        """Evaluations from sigma_max to sigma_min; one more if a host goes on to 0. Guidance may double the
        network passes."""
        return self.calls or self.student.evaluations(self.num_steps, self.afs, self.learned)

    @property
    def requires(self) -> list[str]:
        """What a reader must be able to do."""
        if self.solver == OUTSIDE:
            return [OUTSIDE]
        own = self.student.recipe.constants if self.features == "none" and self.solver != MULTISTEP else ()
        constants = [f"constant:{name}" for name in own if name not in AMED]
        parts = [f"parts:{self.parts}"] * bool(self.parts) + ["offset"] * bool(self.channels)
        return parts + ["plain"] * (not self.learned) + constants


def to_header(spec: Spec) -> dict[str, str]:
    """A string-to-string safetensors header: one key a field, JSON values."""
    fields = dataclasses.asdict(spec)
    own = {"amed_format": FORMAT, "requires": json.dumps(spec.requires)}
    if not spec.fitted_for:  # so that other files stay byte for byte what they were
        del fields["fitted_for"]
    return {**fields.pop("unknown"), **own, **{k: json.dumps(v) for k, v in fields.items()}}


def from_header(header: dict[str, str]) -> Spec:
    """The inverse. Raises ValueError naming the field that is missing, unreadable or of the wrong type, or
    what this version cannot do."""
    if "amed_format" not in header:
        raise ValueError("field 'amed_format' is missing: this is not an AMED predictor")
    if (version := header["amed_format"]) not in READABLE:
        reads = f"this version reads {', '.join(READABLE)}; update AMED"
        raise ValueError(f"field 'amed_format' is {version!r}: {reads}")
    able = {
        "plain",
        "offset",
        OUTSIDE,
        *(f"parts:{name}" for name in PARTS),
        *(f"constant:{name}" for name in PARAMETERS),
    }
    if lacking := set(map(str, read(header, "requires", list, []))) - able:
        raise ValueError(f"field 'requires' names {', '.join(sorted(lacking))}: update AMED to use this file")
    values, known = {}, {f.name: f for f in dataclasses.fields(Spec) if f.name != "unknown"}
    for name, f in known.items():
        if name in header:
            kind: Any = (int, float) if f.type is float else get_origin(f.type) or f.type
            values[name] = read(header, name, kind)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"field {name!r} is missing")
    own = {*known, "amed_format", "requires"}
    return Spec(**values, unknown={k: v for k, v in header.items() if k not in own})


def read(header: dict[str, str], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """A field's value. Raises ValueError."""
    if name not in header:
        return default
    text = header[name]
    if len(text) > LONGEST:
        raise ValueError(f"field {name!r} has {len(text)} characters: at most {LONGEST}")
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is in no text
    except (ValueError, RecursionError):
        raise ValueError(f"field {name!r} is not readable: {text!r}") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"field {name!r} is {value!r}: wrong type")
    if isinstance(value, str) and CONTROL.search(value):
        raise ValueError(f"field {name!r} is {value!r}: no control characters")
    if nested(value):
        raise ValueError(f"field {name!r} is nested more than {DEEPEST} deep")
    if isinstance(kind, tuple) and isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"field {name!r} is a number of {len(text)} digits: expected a float") from None
    return value


def nested(value: Any, depth: int = 0) -> bool:
    """Whether lists and objects stand more than DEEPEST deep in each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > DEEPEST or any(nested(v, depth + 1) for v in inner)
