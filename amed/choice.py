"""Which predictor a run takes, and what is said of the run: what the hosts' adapters share."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .conversion import as_multistep
from .predictor import TablePredictor
from .sampling import MULTISTEP, Solver, solver_of
from .store import Fitted, Library, PredictorError, Spec


@dataclass(frozen=True)
class Identity:
    """A checkpoint: its family ("sd15", "sdxl", "flux" ...) and fingerprint ("" where weights are not
    readable)."""

    family: str
    fingerprint: str


def find(
    library: Library,
    model: Identity,
    solver: str | None,
    nfe: int,
    guidance: float,
    max_order: int | None,
    advice: str,
) -> Fitted:
    """The library's predictor for this model. Raises PredictorError: what was looked for, which NFE there
    are, which files are broken, and what to do (`advice`, the host's)."""
    try:
        found = library.find(
            solver=solver,
            nfe=nfe,
            guidance=guidance,
            family=model.family,
            fingerprint=model.fingerprint,
            max_order=max_order,
        )
        return found if solver else best_like(library, found)
    except PredictorError as error:
        fits = [f.spec for f in library.fitted() if model.family == f.spec.model_family]
        allowed = sorted({s.nfe for s in fits if solver in (None, s.solver)})
        hint = (
            f"For this model{f' and {solver}' if solver else ''}, NFE can be {', '.join(map(str, allowed))}."
            if allowed
            else "There are none for this model."
        )
        broken = "".join(f"\nBroken file: {p}" for p in library.problems())
        raise PredictorError(f"{error}\n{hint} {advice}{broken}") from None


def best_like(library: Library, found: Fitted) -> Fitted:
    """Of the predictors for the same model, evaluations and guidance, whatever their solver, the one whose
    file states the smallest error to the reference (where none does, the smallest Fréchet distance); `found`
    itself where none states one."""

    def same(other: Fitted) -> bool:
        keys = ("nfe", "guidance", "model_family", "model_fingerprint")
        return all(getattr(other.spec, k) == getattr(found.spec, k) for k in keys)

    def told(name: str, other: Fitted) -> float:
        value = other.spec.metrics.get(name)
        return float(value) if isinstance(value, int | float) else math.inf

    alike = [found, *filter(same, library.fitted())]
    by = "rmse_ref" if any(told("rmse_ref", f) < math.inf for f in alike) else "fd_ref"
    return min(alike, key=lambda f: told(by, f))


def find_for_times(
    library: Library, model: Identity, sampler: str, times: Tensor | int, guidance: float, advice: str
) -> Fitted:
    """The library's predictor for a sampler that is to run over `times`, noise levels above 0 or how many of
    them: one fitted on as many, on these very times if there is one. Raises PredictorError as `find` does."""
    solver = solver_of(sampler)
    order = solver.max_order if solver.name == "dpmpp" else None
    count = times if isinstance(times, int) else len(times)
    mine = [
        f
        for f in library.fitted()
        if f.spec.solver == solver.name
        and order in (None, f.spec.max_order)
        and f.spec.num_steps == count
        and f.spec.model_family == model.family
    ]
    if not mine:
        nfe = solver.evaluations(count, afs=False, with_predictor=True)
        try:
            return find(library, model, solver.name, nfe, guidance, order, advice)
        except PredictorError as error:
            raise PredictorError(
                f"the sampler {sampler!r} has no predictor for {count} noise levels "
                f"(about {nfe} evaluations).\n{error}"
            ) from None

    def order_of(f: Fitted) -> tuple:
        same = bool(model.fingerprint) and f.spec.model_fingerprint == model.fingerprint
        off = not isinstance(times, int) and not on_grid(f, times)
        return off, not same, ratio(f.spec.guidance, guidance)

    return min(mine, key=order_of)


def on_grid(fitted: Fitted, sigmas: Tensor) -> bool:
    """Whether the positive ones of `sigmas` are the times a predictor was fitted on (to 1 %)."""
    times, own = sigmas[sigmas > 0].double().cpu(), fitted.sigmas()
    return len(times) == len(own) and bool(((times / own).log().abs() < 0.01).all())


def ratio(a: float, b: float) -> float:
    return abs(math.log(max(a, 1e-3) / max(b, 1e-3)))


def untrained(sampler: str, times: Tensor, afs: bool = False) -> Fitted:
    """The plain solver as a predictor: geometric midpoints (r = 1/2), no scales; for multistep, iPNDM-2."""
    solver = solver_of(sampler)
    multistep = solver.name == MULTISTEP
    kind = "iPNDM-2" if multistep else "geometric midpoints"
    spec = Spec.on(solver, times, afs=afs, model_name=f"untrained: {kind}")
    times = torch.as_tensor(times, dtype=torch.float64)
    if multistep:
        return Fitted(spec, as_multistep(Solver("ipndm", 2), times, afs), times, "untrained")
    halves = torch.full((len(times) - 1,), 0.5, dtype=torch.float64)
    return Fitted(spec, TablePredictor(times, halves), times, "untrained")


def mismatches(fitted: Fitted, model: Identity, guidance: float) -> list[str]:
    """What a predictor was not fitted for, in words."""
    spec, found = fitted.spec, []
    if spec.model_family and spec.model_family != model.family:
        found.append(f"fitted for a model of the family {spec.model_family}, this is {model.family}")
    elif spec.model_fingerprint and model.fingerprint and spec.model_fingerprint != model.fingerprint:
        found.append(
            f"fitted for another checkpoint of this family ({spec.model_name or spec.model_fingerprint})"
        )
    if fitted.name != "untrained" and ratio(spec.guidance, guidance) > 0.01:
        found.append(f"fitted at guidance {spec.guidance:g}, running at {guidance:g}")
    return found


@dataclass
class Report:
    """What a run did: `evaluations` one after the other, `rows` through the network (None: not countable
    here), `batch` images, the predictor, remarks."""

    evaluations: int = 0
    rows: int | None = None
    batch: int = 1
    fitted: Fitted | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def passes(self) -> int | None:
        """Network passes per image; guidance makes two of most evaluations."""
        return None if self.rows is None else round(self.rows / self.batch)

    def text(self) -> str:
        passes = "" if self.passes is None else f", {self.passes} network passes an image"
        lines = [
            f"predictor: {self.fitted.label}" if self.fitted else "predictor: none",
            f"evaluations counted: {self.evaluations}{passes}",
        ]
        return "\n".join(lines + [f"note: {remark}" for remark in self.remarks])


