"""Algorithm 2, once: one loop for every student and every plain solver, and its k-diffusion interface.

    sample_amed(model, x, sigmas, extra_args=None, callback=None, disable=None, *, predictor=None, ...)

A solver is data (`Solver`), an interval is one function (`interval`), the rest happens here and only here:
analytic first step, the last step to sigma 0, callbacks, capture, dtypes, the check for values that are not
finite."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import schedules, steps
from .bottleneck import Capture, Denoiser, plain
from .predictor import Predictor

TWO_POINT = {"amed": steps.amed, "dpm_2": steps.dpm_2, "heun": steps.heun}  # always 2 evaluations an interval
MAX_ORDER = {"euler": 1, "ipndm": 4, "dpmpp": 3}  # one leg an interval, two with a predictor
MULTISTEP = "multistep"  # one leg an interval, by its own table (predictor.MultistepTable)
SOLVERS = (*TWO_POINT, *MAX_ORDER, MULTISTEP)

# evaluate with another guidance scale: (model, x, sigma, extra_args, factor on the scale) -> denoised
Guide = Callable[[Denoiser, Tensor, Tensor, dict[str, Any], float], Tensor]


class NotFiniteError(ValueError):
    """The model returned NaN or infinity; the message names the sigma."""


@dataclass(frozen=True)
class Solver:
    """Which ODE solver: a name of SOLVERS and the settings of the multistep ones.

    `max_order` 1..4 for ipndm, 1..3 for dpmpp; `predict_x0` data instead of noise prediction (dpmpp);
    `lower_order_final` first order at the last leg (dpmpp); `thresholding` dynamic, for pixel models (dpmpp
    with predict_x0); `scales_timestep`: a scales only the timestep a VP model is told, its input unchanged,
    as the published SD 1.5 run does, instead of the whole noise level. Raises ValueError for what no solver
    has."""

    name: str = "amed"
    max_order: int = 1
    predict_x0: bool = False
    lower_order_final: bool = True
    thresholding: bool = False
    scales_timestep: bool = False

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise ValueError(f"unknown solver {self.name!r}: choose one of {', '.join(SOLVERS)}")
        if not 1 <= self.max_order <= MAX_ORDER.get(self.name, 1):
            raise ValueError(
                f"{self.name} has orders 1 to {MAX_ORDER.get(self.name, 1)}, got {self.max_order}"
            )

    def evaluations(self, base_times: int, afs: bool, with_predictor: bool) -> int:
        """How many evaluations a run over `base_times` positive times takes (for planning; counts are
        counted)."""
        both = self.name in TWO_POINT or (with_predictor and self.name != MULTISTEP)
        each = 2 if both else 1
        return each * (base_times - 1) - afs


@dataclass(frozen=True)
class State:
    """Where a run is: x `[B, ...]`, the history of (model output, time) newest last, legs taken so far, the
    last interval's denoised image and (r, c, a); and, of an interval that is begun (`begin`), its first
    (denoised if it is needed again, slope, bottleneck)."""

    x: Tensor
    history: tuple[tuple[Tensor, Tensor], ...] = ()
    legs: int = 0
    denoised: Tensor | None = None
    constants: tuple[Tensor, Tensor, Tensor] | None = None
    begun: tuple[Tensor | None, Tensor, Tensor | None] | None = None

    def detached(self) -> "State":
        return replace(
            self, x=self.x.detach(), history=tuple((o.detach(), t.detach()) for o, t in self.history)
        )


@dataclass(frozen=True)
class Problem:
    """What an interval is solved with: the denoiser and how to ask it, the solver, the predictor, the run's
    legs."""

    model: Denoiser
    solver: Solver
    predictor: Predictor | None = None
    extra_args: dict[str, Any] = field(default_factory=dict)
    capture: Capture = plain
    total_legs: int = 0
    dtype: torch.dtype | None = None  # what the model is called in; None: x's own
    guide: Guide | None = None  # None: the guidance scale cannot be changed here
    watch: list[tuple[Tensor, Tensor]] | None = None  # for `check`, after the run; None: each output at once

    def evaluate(
        self, x: Tensor, t: Tensor, ask: Capture = plain, factor: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Denoised image (in x's dtype) and bottleneck at time t `[B or 1, 1, ...]`; `factor` on the guidance
        scale."""
        dtype = self.dtype or x.dtype
        if t.ndim == 0 and not t.requires_grad:
            sigma = x.new_full((len(x),), float(t), dtype=dtype)
        else:
            sigma = t.flatten().expand(len(x)).to(x.device, dtype)
        if factor != 1 and self.guide is not None:
            denoised, bottleneck = (
                self.guide(self.model, x.to(dtype), sigma, self.extra_args, factor),
                None,
            )
        else:
            denoised, bottleneck = ask(self.model, x.to(dtype), sigma, self.extra_args)
        denoised = denoised.to(x.dtype)
        if self.watch is not None:
            self.watch.append((t, denoised[..., 0].sum()))
        elif not denoised.isfinite().all():
            raise not_finite(t, x)
        return denoised, bottleneck


def not_finite(t: Tensor, x: Tensor | None = None) -> NotFiniteError:
    """What to raise when the model returned NaN or infinity at time t, for x if it is still there."""
    message = f"the model returned NaN or infinity at sigma={float(t.flatten()[0]):.5g}"
    if x is not None:
        message += f"; x was {'finite' if x.isfinite().all() else 'already not finite'}"
    return NotFiniteError(message)


def check(watch: list[tuple[Tensor, Tensor]], x: Tensor, end: Tensor) -> None:
    """Raise NotFiniteError if a run from x came to an end that is not finite, naming the first evaluation
    whose output was not (`watch`: time, sum of some of the output). This waits for the device, so it comes
    after the loop."""
    if end.sum().isfinite():
        return
    finite = torch.stack([total for _, total in watch]).isfinite().tolist() if watch else []
    if all(finite):
        raise NotFiniteError(f"the result is not finite; x was {'' if x.isfinite().all() else 'not '}finite")
    first = finite.index(False)
    raise not_finite(watch[first][0], None if first else x)


def begin(problem: Problem, state: State, t: Tensor, afs: bool = False) -> State:
    """The first evaluation of the interval from t, kept in `begun`; analytic with `afs`.

    It carries no gradient (its input never depends on the interval's own r, c, a)."""
    solver, predictor, x = problem.solver, problem.predictor, state.x
    two = solver.name in TWO_POINT or (predictor is not None and solver.name in ("euler", "ipndm"))
    if afs:
        d = x / (1 + t**2).sqrt()
        return State(x, state.history, state.legs, begun=(None if two else x - t * d, d, None))
    told, factor = t, 1.0
    if solver.name == MULTISTEP and predictor is not None:
        _, a, factor = predictor.row(t)
        told = a * t
    wanted = predictor is not None and predictor.wants_bottleneck
    with torch.no_grad():
        denoised, bottleneck = problem.evaluate(x, told, problem.capture if wanted else plain, factor)
    if wanted and bottleneck is None:
        warnings.warn(
            "no bottleneck could be captured from this model: the AMED predictor is fed zeros",
            stacklevel=2,
        )
    begun = (None if two else denoised, (x - denoised).div_(t), bottleneck)
    return State(x, state.history, state.legs, begun=begun)


def interval(problem: Problem, state: State, t: Tensor, t_next: Tensor, afs: bool = False) -> State:
    """One interval of Algorithm 2, from t to t_next (> 0): the first slope, r, c, a, the second slope, the
    step."""
    if state.begun is None:
        state = begin(problem, state, t, afs)
    solver, predictor, x = problem.solver, problem.predictor, state.x
    denoised, d, bottleneck = state.begun
    if solver.name == MULTISTEP:
        return multistep(problem, state, t, t_next)
    constants = None
    if predictor is not None:
        constants = r, c, a = [beside(v, x) for v in predictor(t, t_next, bottleneck)]
    elif solver.name in TWO_POINT:
        half = torch.full_like(t, 0.5)
        r, c, a = (
            (torch.ones_like(t) if solver.name == "heun" else half),
            torch.ones_like(t),
            torch.ones_like(t),
        )

    def second_slope(x_mid: Tensor, t_mid: Tensor) -> tuple[Tensor, Tensor]:
        t_called = a * t_mid
        if not solver.scales_timestep:
            denoised, _ = problem.evaluate(x_mid, t_called)
            return denoised, (x_mid - denoised) / t_mid
        x_called = x_mid * ((1 + t_called**2) / (1 + t_mid**2)).sqrt()  # the same x in the model's VP units
        d = (x_called - problem.evaluate(x_called, t_called)[0]) / t_called
        return x_mid - t_mid * d, d

    if solver.name in TWO_POINT:
        t_mid = steps.midpoint_time(t, t_next, r)
        denoised, d_mid = second_slope(steps.euler(x, d, t, t_mid), t_mid)
        x_next = TWO_POINT[solver.name](x, d, d_mid, t, t_next, r, c)
        return State(x_next, (), state.legs + 2, denoised, constants)

    history = remember(solver, state.history, denoised, d, t)
    if predictor is None:
        x_next = leg(problem, x, history, t_next, state.legs)
        return State(x_next, history, state.legs + 1, denoised)
    t_mid = steps.midpoint_time(t, t_next, r)
    x_mid = leg(problem, x, history, t_mid, state.legs)
    denoised, d_mid = second_slope(x_mid, t_mid)
    history = remember(solver, history, denoised, d_mid, t_mid)
    x_next = leg(problem, x_mid, history, t_next, state.legs + 1, c)
    return State(x_next, history, state.legs + 2, denoised, constants)


def beside(v: Tensor, x: Tensor) -> Tensor:
    """A predictor's `[B or 1]` as it multiplies x `[B, ...]`. One number on the CPU stays there: as a
    scalar no device has to be waited for."""
    if len(v) == 1 and v.device.type == "cpu":
        return v.to(x.dtype).reshape(())
    return v.to(x).view(-1, *[1] * (x.ndim - 1))


def multistep(problem: Problem, state: State, t: Tensor, t_next: Tensor) -> State:
    """One leg of the free multistep student. Without a table it is iPNDM-2. Weights on slopes a run does not
    have (it began below the table's first time) go to its newest."""
    denoised, d, _ = state.begun
    table = problem.predictor
    row = steps.ADAMS_BASHFORTH[2] if table is None else table.row(t)[0]
    history = (*state.history, (d, t))[-len(row) :]
    slopes = [slope for slope, _ in reversed(history)]
    weights = list(row[: len(slopes)])
    weights[0] += sum(row[len(slopes) :])
    x = steps.multistep(state.x, slopes, t, t_next, weights)
    return State(x, history, state.legs + 1, denoised)


def first_state(problem: Problem, x: Tensor, t: Tensor, afs: bool) -> State:
    """The state a run begins with: x at t, and for a multistep table that weighs it the analytic slope."""
    table = problem.predictor
    if problem.solver.name == MULTISTEP and table is not None and not afs and table.before_first():
        at_top = abs(float(t) / float(table.sigmas[0]) - 1) < 0.01
        return State(x, ((x / (1 + t**2).sqrt(), t),) if at_top else ())
    return State(x)


def remember(solver: Solver, history: tuple, denoised: Tensor, d: Tensor, t: Tensor) -> tuple:
    """The history with this evaluation added, no longer than the solver's order needs."""
    data = solver.name == "dpmpp" and solver.predict_x0
    output = d if not data else steps.dynamic_threshold(denoised) if solver.thresholding else denoised
    return (*history, (output, t))[-solver.max_order :]


def leg(
    problem: Problem, x: Tensor, history: tuple, t_next: Tensor, legs: int, c: Tensor | float = 1.0
) -> Tensor:
    """One multistep leg from history's newest time to t_next; `legs` were taken before it."""
    solver, (outputs, times) = problem.solver, zip(*history)
    order = min(solver.max_order, len(history))
    if solver.name == "dpmpp":
        if solver.lower_order_final and legs + 1 >= solver.max_order:
            order = min(order, problem.total_legs - legs)
        return steps.dpmpp(x, outputs, times, t_next, order, solver.predict_x0, c)
    return steps.ipndm(x, outputs, times[-1], t_next, order, c)


def trajectory(problem: Problem, x: Tensor, sigmas: Tensor, afs: bool = False) -> Iterator[State]:
    """The states after each interval of `sigmas` `[n]` (falling; a last 0 means one more evaluation, whose
    output is the end). x `[B, ...]` at sigmas[0]. Works in float32 at least; the model is called in x's
    dtype.

    Raises ValueError for a list that cannot be sampled on, NotFiniteError if the model returns NaN."""
    sigmas = schedules.checked(sigmas)
    work = torch.promote_types(x.dtype, torch.float32)
    times = sigmas.to(work).unbind()  # on the CPU: as scalars no device has to be waited for
    positive = int((sigmas > 0).sum())
    total_legs = problem.solver.evaluations(positive, False, problem.predictor is not None)
    problem = replace(problem, dtype=problem.dtype or x.dtype, total_legs=total_legs)
    state = first_state(problem, x.to(work), times[0], afs)
    del x
    for i in range(len(sigmas) - 1):
        if sigmas[i + 1] == 0:
            denoised, _ = problem.evaluate(state.x, times[i])
            state = State(denoised, denoised=denoised)
        else:
            state = interval(problem, state, times[i], times[i + 1], afs and i == 0)
        yield state
        state = State(state.x, state.history, state.legs)


def progress(count: int, disable: bool | None) -> Iterator[int]:
    """range(count), with a console bar where tqdm is there, as k-diffusion's samplers have."""
    try:
        from tqdm.auto import trange
    except ImportError:
        return iter(range(count))
    return iter(trange(count, disable=disable))


@torch.no_grad()
def sample(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    solver: Solver,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    predictor: Predictor | None = None,
    afs: bool = False,
    capture: Capture | None = None,
    guide: Guide | None = None,
) -> Tensor:
    """Run a solver over a sigma list; returns the end state in x's dtype.

    `callback` is called once per base step with k-diffusion's dict (x, i, sigma, sigma_hat, denoised)."""
    watch: list[tuple[Tensor, Tensor]] = []
    problem = Problem(model, solver, predictor, extra_args or {}, capture or plain, guide=guide, watch=watch)
    states = trajectory(problem, x, sigmas, afs)
    result = x
    for i in progress(len(sigmas) - 1, disable):
        before, state = result if callback is not None else None, next(states)
        if callback is not None:
            callback(
                {"x": before, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": state.denoised}
            )
        result = state.x
        del before, state
    check(watch, x, result)
    return result.to(x.dtype)


def _k_diffusion(name: str, default: Solver, what: str) -> Callable[..., Tensor]:
    def sampler(
        model,
        x,
        sigmas,
        extra_args=None,
        callback=None,
        disable=None,
        *,
        predictor=None,
        afs=None,
        capture=None,
        guide=None,
        **options,
    ):
        solver, afs = settings(name, default, predictor, sigmas, afs, options)
        return sample(
            model,
            x,
            sigmas,
            solver,
            extra_args,
            callback,
            disable,
            predictor=predictor,
            afs=afs,
            capture=capture,
            guide=guide,
        )

    sampler.__name__ = sampler.__qualname__ = f"sample_{name}"
    sampler.__doc__ = f"""{what}, in k-diffusion's sampler interface.

    model(x, sigma, **extra_args) -> denoised; x [B, ...] at sigmas[0]; sigmas [n >= 2] falling, may end in 0.
    `predictor`: a fitted file (amed.store.Fitted), any Predictor, or None for the untrained solver.
    `afs`: analytic first step; None leaves it to the fitted file, and off where the start is not its
    sigma_max. `capture`: see amed.bottleneck.Capture; `guide`: see Guide. `options`: fields of Solver, for a
    predictor that is not a Fitted. Raises ValueError for a predictor fitted for another solver, a bad sigma
    list, or NaN from the model."""
    return sampler


def settings(
    name: str, default: Solver, predictor: Any, sigmas: Tensor, afs: bool | None, options: dict[str, Any]
) -> tuple[Solver, bool]:
    """The Solver and AFS a call means: a fitted file's own settings win over the sampler's defaults."""
    spec = getattr(predictor, "spec", None)
    if spec is None:
        if predictor is not None and (default.name == MULTISTEP) != hasattr(predictor, "row"):
            raise ValueError(f"sample_{name} cannot run a {type(predictor).__name__}")
        return replace(default, **options), bool(afs)
    if options:
        raise ValueError(f"{', '.join(options)}: this predictor's file sets the solver; leave these out")
    if spec.solver != default.name:
        raise ValueError(
            f"this predictor was fitted for {spec.solver!r}, but sample_{name} runs {default.name!r}: "
            f"use the sampler {sampler_of(spec.solver, spec.max_order)!r}, or another predictor"
        )
    starts_at_max = abs(float(sigmas[0]) / spec.sigma_max - 1) < 0.01
    return spec.settings, spec.afs and starts_at_max if afs is None else afs


_DEFAULTS = {
    "amed": (Solver("amed"), "AMED-Solver (Zhou et al. 2024, eq. 9)"),
    "amed_euler": (Solver("euler"), "AMED-Plugin on Euler / DDIM"),
    "amed_dpm_2": (Solver("dpm_2"), "AMED-Plugin on DPM-Solver-2"),
    "amed_dpmpp_2m": (Solver("dpmpp", 2, predict_x0=True), "AMED-Plugin on DPM-Solver++ 2M"),
    "amed_dpmpp_3m": (Solver("dpmpp", 3, predict_x0=True), "AMED-Plugin on DPM-Solver++ 3M"),
    "amed_ipndm": (Solver("ipndm", 4), "AMED-Plugin on iPNDM"),
    "amed_multistep": (Solver(MULTISTEP), "The calibrated multistep solver (amed.calibration)"),
}
SAMPLERS = {name: _k_diffusion(name, solver, what) for name, (solver, what) in _DEFAULTS.items()}
(
    sample_amed,
    sample_amed_euler,
    sample_amed_dpm_2,
    sample_amed_dpmpp_2m,
    sample_amed_dpmpp_3m,
    sample_amed_ipndm,
    sample_amed_multistep,
) = SAMPLERS.values()


def solver_of(sampler: str) -> Solver:
    """The Solver a sampler name runs by default. Raises KeyError for a name that is not ours."""
    return _DEFAULTS[sampler][0]


def sampler_of(solver: str, max_order: int = 1) -> str:
    """The sampler name for a solver: `dpmpp` splits into 2M and 3M by order."""
    if solver == "dpmpp":
        return "amed_dpmpp_3m" if max_order == 3 else "amed_dpmpp_2m"
    return next(name for name, (default, _) in _DEFAULTS.items() if default.name == solver)


def register(namespace: Any) -> list[str]:
    """Add the samplers to a k-diffusion `sampling` module (PyPI's or a host's) as `sample_<name>`.

    Idempotent; a name that is already there and not ours is left alone. Returns the names now served by
    us."""
    ours = []
    for name, function in SAMPLERS.items():
        present = getattr(namespace, f"sample_{name}", None)
        if present is None or getattr(present, "__module__", None) == __name__:
            setattr(namespace, f"sample_{name}", function)
            ours.append(name)
    return ours
