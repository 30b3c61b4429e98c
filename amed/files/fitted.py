"""A predictor with its Spec and base times, and how it is made of a file's tensors."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import schedules
from ..constants import Constants, Multistep
from ..network import BottleneckPredictor
from ..outside import NAMES, OUTSIDE, Outside
from ..parameters import AMED, PARAMETERS
from ..parts import PARTS
from ..recipes import MULTISTEP
from .spec import Spec

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
