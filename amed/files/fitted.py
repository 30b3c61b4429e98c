"""`Fitted`, a predictor together with its header and base times, and its construction from tensors."""

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

Predictor = Constants | Multistep | Outside | BottleneckPredictor

REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Fitted:
    """A predictor with the header of its file and its base times (the noise levels it was fitted on)."""

    spec: Spec  # the content of the file's header
    predictor: Predictor | None  # None for a plain solver
    base: Tensor  # base times, from sigma_max to sigma_min, float64 [num_steps]
    name: str = "unsaved"  # file name, for messages

    @property
    def wants_bottleneck(self) -> bool:
        """Whether each evaluation must also return the U-Net's bottleneck, for the predictor's network."""
        return self.predictor is not None and self.predictor.wants_bottleneck

    @property
    def nfe(self) -> int:
        """Evaluations of the model per run."""
        return self.spec.nfe

    @property
    def wants_halves(self) -> bool:
        """Whether each evaluation must return the prompt's and the negative prompt's results separately.

        True if the predictor weighs them separately."""
        return "halves" in PARTS[self.spec.parts].wants

    @property
    def passes(self) -> int:
        """Passes through the diffusion model per image.

        With guidance an evaluation takes two, or one if it skips the negative prompt."""
        guided = self.nfe * (1 if self.spec.guidance == 1 else 2)
        return guided - len(getattr(self.predictor, "alone", ()))

    @property
    def label(self) -> str:
        """A short text for people: file name, solver, evaluations, guidance and model."""
        spec = self.spec
        order = f"-{spec.max_order}" if spec.max_order > 1 else ""
        solver = f"AMED-Plugin on the host's {spec.of}" if spec.of else f"{spec.solver}{order}"
        guidance = f", guidance {spec.guidance:g}" if spec.guidance != 1 else ""
        model = spec.model_name or "any model"
        passes = f" in {self.passes} passes" if getattr(self.predictor, "alone", ()) else ""
        return f"{self.name} ({solver}, {self.nfe} evaluations{passes}{guidance}; {model})"

    def sigmas(self) -> Tensor:
        """Return a copy of the noise levels, sigma_max to sigma_min (without 0), float64 `[num_steps]`."""
        return self.base.clone()

    def to(self, device: torch.device | str) -> "Fitted":
        """Return this predictor with its network copied to `device`; constants stay on the CPU.

        The original is not changed, because other runs may use it."""
        network = self.predictor
        if not isinstance(network, BottleneckPredictor):
            return self
        if next(network.parameters()).device == torch.device(device):
            return self
        copy = BottleneckPredictor(network.scale_dir, network.scale_time)
        copy.adopt(network.state_dict())
        copy = copy if torch.device(device).type == "cpu" else copy.float()  # the device may lack float64
        return dataclasses.replace(self, predictor=copy.to(device))


def constants_of(fitted: Fitted) -> dict[str, Tensor]:
    """Return the fitted tensors of a predictor by name; empty for a network or a plain solver.

    For AMED-Solver, e.g., they are the mid time r, direction scale c and time scale a of each interval."""
    return getattr(fitted.predictor, "values", {})


def tensors_of(fitted: Fitted) -> dict[str, Tensor]:
    """Return the tensors of a predictor's file: noise levels `sigmas`, and constants or network weights."""
    network = fitted.predictor
    learned = network.state_dict() if isinstance(network, BottleneckPredictor) else constants_of(fitted)
    return {k: v.detach().cpu().contiguous().clone() for k, v in {"sigmas": fitted.base, **learned}.items()}


def fitted_from(spec: Spec, tensors: dict[str, Tensor], name: str) -> Fitted:
    """Build a `Fitted` from the header and the tensors of a predictor file.

    Args:
        name: file name of the predictor, for messages.

    Raises:
        ValueError: if header and tensors contradict each other; the message names the field or tensor.
    """
    check_types(spec, tensors)
    spec, tensors = convert_factors(spec, tensors)
    base = base_times(spec, tensors)
    return Fitted(spec, build_predictor(spec, tensors), base, name)


def check_types(spec: Spec, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError if a known tensor of a predictor file is a scalar or not floating-point."""
    used = {"sigmas", "g", "weights", "offset", "alone", "levels", *PARAMETERS}
    for name, value in tensors.items():
        if name not in used and spec.features != "bottleneck":
            continue
        if value.dtype not in REAL or value.ndim == 0:
            kind = str(value.dtype).removeprefix("torch.")
            raise ValueError(
                f"tensor {name!r} is {kind} {list(value.shape)}, but must be a list of floats: "
                "download or calibrate the predictor again"
            )


def convert_factors(spec: Spec, tensors: dict[str, Tensor]) -> tuple[Spec, dict[str, Tensor]]:
    """Convert tensor `g` of an old predictor file, a factor on guidance in each step, to tensor `weights`.

    A header and tensors without `g` are returned unchanged. Raises ValueError if `g` is invalid."""
    g = tensors.pop("g", None) if spec.solver == MULTISTEP else None
    if g is None or (g.isfinite().all() and (g == 1).all()):
        return spec, tensors
    weights = tensors.get("weights")
    if weights is None or weights.ndim != 2 or g.shape != weights.shape[:1] or not (g > 0).all():
        raise ValueError(
            f"tensor 'g' is {g.tolist()}, but must have one value above 0 per step: "
            "download or calibrate the predictor again"
        )
    rows, lags = torch.meshgrid(*(torch.arange(n) for n in weights.shape), indexing="ij")
    factor = torch.where(rows >= lags, g[(rows - lags).clamp(min=0)], 1.0)
    tensors["weights"] = torch.stack([weights, weights * factor], dim=-1)
    return dataclasses.replace(spec, parts="guidance"), tensors


def base_times(spec: Spec, tensors: dict[str, Tensor]) -> Tensor:
    """Return the noise levels that a predictor was fitted on (tensor `sigmas`), float64 `[num_steps]`.

    Args:
        spec: the header of the predictor's file.
        tensors: the tensors of the file by name.

    Raises:
        ValueError: if the noise levels are missing or contradict the header.
    """
    require(tensors, {"sigmas"})
    base = schedules.checked(tensors["sigmas"])
    if len(base) != spec.num_steps:
        raise ValueError(
            f"tensor 'sigmas' has {len(base)} times, but field 'num_steps' is {spec.num_steps}: "
            "download or calibrate the predictor again"
        )
    ends = torch.tensor([spec.sigma_max, spec.sigma_min], dtype=torch.float64)
    if not torch.allclose(base[[0, -1]], ends, rtol=1e-4):
        raise ValueError(
            f"tensor 'sigmas' runs from {base[0]:.5g} to {base[-1]:.5g}, but field 'sigma_max' is "
            f"{spec.sigma_max:.5g} and field 'sigma_min' is {spec.sigma_min:.5g}: "
            "download or calibrate the predictor again"
        )
    if spec.schedule not in ("custom", "discrete"):
        try:
            named = schedules.make(spec.schedule, spec.num_steps, spec.sigma_min, spec.sigma_max, spec.rho)
        except ArithmeticError:
            raise ValueError(
                f"no {spec.schedule} schedule exists for field 'rho' = {spec.rho:g} and field 'sigma_max' = "
                f"{spec.sigma_max:g}: download or calibrate the predictor again"
            ) from None
        if not torch.allclose(base, named, rtol=1e-4):
            raise ValueError(
                f"tensor 'sigmas' is not the {spec.schedule} schedule that field 'schedule' names: "
                "download or calibrate the predictor again"
            )
    return base


def require(tensors: dict[str, Tensor], names: set[str]) -> None:
    """Raise ValueError if a predictor file lacks one of the tensors called `names`."""
    if missing := names - tensors.keys():
        raise ValueError(
            f"tensor {min(missing)!r} is missing from the predictor: download or calibrate it again"
        )


def build_predictor(spec: Spec, tensors: dict[str, Tensor]) -> Predictor | None:
    """Build the predictor from the header and the tensors of its file; None for a plain solver.

    Raises:
        ValueError: if a tensor is missing or invalid; the message names the tensor.
    """
    if not spec.learned:
        return None
    if spec.solver == OUTSIDE:
        require(tensors, {"levels", *NAMES})
        if len(tensors["levels"]) != spec.calls:
            raise ValueError(
                f"tensor 'levels' has {len(tensors['levels'])} values, but field 'calls' is {spec.calls}: "
                "download or calibrate the predictor again"
            )
        return Outside(tensors["sigmas"], *(tensors[name] for name in ("levels", *NAMES)))
    if spec.features == "bottleneck":
        return build_network(spec, {name: value for name, value in tensors.items() if name != "sigmas"})
    if spec.solver == MULTISTEP:
        return build_table(spec, tensors)
    names = spec.student.recipe.constants
    require(tensors, set(AMED) & set(names))
    constants = {name: tensors[name] for name in names if name in tensors}
    return Constants(tensors["sigmas"], spec.scales_timestep, names, **constants)


def build_table(spec: Spec, tensors: dict[str, Tensor]) -> Multistep:
    """Build a `Multistep` predictor, which holds the weights of the slopes in each step, from its tensors.

    Raises:
        ValueError: if a tensor is missing or invalid; the message names the tensor.
    """
    require(tensors, {"weights", "a"})
    offset = tensors.get("offset") if spec.channels else None
    channels = 0 if offset is None else offset.shape[-1]
    if channels != spec.channels:
        raise ValueError(
            f"tensor 'offset' has {channels} channels, but field 'channels' is {spec.channels}: "
            "download or calibrate the predictor again"
        )
    skipped = tensors.get("alone", torch.zeros(0))
    if skipped.ndim != 1:
        raise ValueError(
            f"tensor 'alone' has shape {list(skipped.shape)}, but must have one value per step: "
            "download or calibrate the predictor again"
        )
    alone = skipped.nonzero().flatten().tolist()
    return Multistep(tensors["sigmas"], tensors["weights"], tensors["a"], spec.parts, offset, alone)


def build_network(spec: Spec, weights: dict[str, Tensor]) -> BottleneckPredictor:
    """Build the network of the AMED paper from its weight tensors by name.

    Raises:
        ValueError: if a tensor is missing or invalid; the message names the tensor.
    """
    predictor = BottleneckPredictor(spec.scale_dir, spec.scale_time)
    expected = predictor.state_dict()
    double = all(value.dtype == torch.float64 for value in weights.values())
    weights = {k: v if double else v.float() for k, v in weights.items()}  # layers need a common dtype
    require(weights, set(expected))
    if unknown := weights.keys() - expected.keys():
        raise ValueError(
            f"tensor {min(unknown)!r} does not belong to a predictor's network: "
            "download or train the predictor again"
        )
    for name, value in sorted(weights.items()):
        if value.shape != expected[name].shape:
            raise ValueError(
                f"tensor {name!r} has shape {list(value.shape)}, but must have {list(expected[name].shape)}: "
                "download or train the predictor again"
            )
        if not value.isfinite().all():
            raise ValueError(
                f"tensor {name!r} contains NaN or infinity: download or train the predictor again"
            )
    return predictor.adopt(weights)
