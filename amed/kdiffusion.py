"""The solvers in k-diffusion's sampler interface.

sample_amed(model, x, sigmas, extra_args=None, callback=None, disable=None, *, predictor=None, ...)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .constants import from_the_top
from .evaluate import Thresholded
from .loop import Denoiser, Evaluate, Problem, check, denoised_only
from .recipes import MULTISTEP, Predictor, Solver
from .run import parts_of, trajectory


@dataclass(frozen=True)
class Entry:
    """A sampler: its solver by default, its name in a dropdown, and what it is."""

    solver: Solver
    label: str
    text: str


ENTRIES = {
    "amed": Entry(Solver("amed"), "AMED", "AMED-Solver (Zhou et al. 2024, eq. 9)"),
    "amed_euler": Entry(Solver("euler"), "AMED Plugin Euler", "AMED-Plugin on Euler / DDIM"),
    "amed_dpm_2": Entry(Solver("dpm_2"), "AMED Plugin DPM2", "AMED-Plugin on DPM-Solver-2"),
    "amed_dpmpp_2m": Entry(
        Solver("dpmpp", 2, True), "AMED Plugin DPM++ 2M", "AMED-Plugin on DPM-Solver++ 2M"
    ),
    "amed_dpmpp_3m": Entry(
        Solver("dpmpp", 3, True), "AMED Plugin DPM++ 3M", "AMED-Plugin on DPM-Solver++ 3M"
    ),
    "amed_ipndm": Entry(Solver("ipndm", 4), "AMED Plugin iPNDM", "AMED-Plugin on iPNDM"),
    "amed_uni_pc": Entry(Solver("unipc", 3), "AMED Plugin UniPC", "AMED-Plugin on UniPC"),
    "amed_deis": Entry(Solver("deis", 3), "AMED Plugin DEIS", "AMED-Plugin on DEIS"),
    "amed_multistep": Entry(
        Solver(MULTISTEP), "AMED Multistep", "The calibrated multistep solver (amed.fit)"
    ),
}


def progress(count: int, disable: bool | None) -> Iterator[int]:
    """range(count), with a console bar where tqdm is there, as k-diffusion's samplers have."""
    try:
        from tqdm.auto import trange
    except ImportError:
        return iter(range(count))
    return iter(trange(count, disable=disable))


@torch.no_grad()
def sample(
    model: Denoiser, x: Tensor, sigmas: Tensor, solver: Solver, extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None, disable: bool | None = None, *,
    predictor: Predictor | Any = None, afs: bool = False, evaluate: Evaluate | None = None,
) -> Tensor:  # fmt: skip
    """Run a solver over a sigma list; returns the end state in x's dtype.

    `callback` is called once per base step with k-diffusion's dict (x, i, sigma, sigma_hat, denoised)."""
    watch: list[Any] = []
    problem = Problem(
        model, extra_args or {}, evaluate or denoised_only, parts=parts_of(predictor), watch=watch
    )
    i, bar, result = 0, progress(len(sigmas) - 1, disable), x
    before = denoised = None
    for state in trajectory(problem, solver, x, sigmas, predictor, afs):
        row = state.row
        if state.looked and row.opens:
            next(bar, None)
        if callback is not None and state.looked:
            before = state.x if row.opens else before
            seen = state.evaluation
            if seen is not None:
                denoised = seen.denoised
            else:
                kept = state.slopes[-1]
                denoised = kept[1] if row.data else state.x - row.sigma * problem.parts.total(kept)
        elif callback is not None and row.closes:
            callback({"x": before, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
            i, before, denoised = i + 1, None, None
        result = state.x
        del state, row
    next(bar, None)
    check(watch, x, result)
    return result.to(x.dtype)


def settings(name: str, predictor: Any, sigmas: Tensor, afs: bool | None,
             options: dict[str, Any]) -> tuple[Solver, Any, bool, bool]:  # fmt: skip
    """(solver, predictor, AFS, thresholding) that a call of a sampler means: a fitted file's own settings win
    over the sampler's defaults. Raises ValueError where they disagree."""
    default, spec = ENTRIES[name].solver, getattr(predictor, "spec", None)
    if spec is None:
        if predictor is not None and (not default.has_recipe) != hasattr(predictor, "table"):
            raise ValueError(f"sample_{name} cannot run a {type(predictor).__name__}")
        return replace(default, **options), predictor, bool(afs), False
    if options:
        raise ValueError(f"{', '.join(options)}: this predictor's file sets the solver; leave these out")
    if spec.of:
        wrong = f"this predictor was fitted for the host's sampler {spec.of!r}, not for sample_{name}"
        raise ValueError(f"{wrong}: use it with that sampler, or choose another predictor")
    if ENTRIES[spec.sampler].solver.name != default.name:
        raise ValueError(
            f"this predictor was fitted for {spec.solver!r}, but sample_{name} runs {default.name!r}: "
            f"use the sampler {spec.sampler!r}, or another predictor"
        )
    afs = spec.afs and from_the_top(sigmas, spec.sigma_max) if afs is None else afs
    return spec.student, predictor.predictor, afs, spec.thresholding


def _k_diffusion(name: str, entry: Entry) -> Callable[..., Tensor]:
    def sampler(model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None,
                callback: Any = None, disable: bool | None = None, *, predictor: Any = None,
                afs: bool | None = None, evaluate: Evaluate | None = None,
                **options: Any) -> Tensor:  # fmt: skip
        solver, constants, first, thresholding = settings(name, predictor, sigmas, afs, options)
        ask = Thresholded(evaluate or denoised_only) if thresholding else evaluate
        return sample(model, x, sigmas, solver, extra_args, callback, disable, predictor=constants, afs=first,
                      evaluate=ask)  # fmt: skip

    sampler.__name__ = sampler.__qualname__ = f"sample_{name}"
    sampler.__doc__ = f"""{entry.text}, in k-diffusion's sampler interface.

    model(x, sigma, **extra_args) -> denoised; x [B, ...] at sigmas[0]; sigmas [n >= 2] falling, may end in 0.
    `predictor`: a fitted file (amed.Fitted), any Predictor, or None for the untrained solver. `afs`: analytic
    first step; None leaves it to the fitted file, and off where the start is not its sigma_max. `evaluate`:
    how the model is asked, see amed.loop.Evaluate. `options`: fields of Solver, for a predictor that is not a
    Fitted. Raises ValueError for a predictor fitted for another solver, a bad sigma list, or NaN from the
    model."""
    return sampler


SAMPLERS = {name: _k_diffusion(name, entry) for name, entry in ENTRIES.items()}


def solver_of(sampler: str) -> Solver:
    """The Solver a sampler name runs by default. Raises KeyError for a name that is not ours."""
    return ENTRIES[sampler].solver


def sampler_of(solver: str, max_order: int = 1) -> str:
    """Return the name of the sampler that runs a solver as a student: of several, the one of that order
    (DPM-Solver++ has 2M and 3M), or the first.

    Raises ValueError if there is none."""
    names = [name for name, entry in ENTRIES.items() if entry.solver.name == solver]
    if not names:
        raise ValueError(f"no sampler runs the solver {solver!r} as a student")
    return next((name for name in names if ENTRIES[name].solver.max_order == max_order), names[0])


def register(namespace: Any) -> list[str]:
    """Add the samplers to a k-diffusion `sampling` module (PyPI's or a host's) as `sample_<name>`.

    Idempotent; a name that is already there and not ours is left alone. Returns the names now served by
    us."""
    for name, function in SAMPLERS.items():
        if not hasattr(namespace, f"sample_{name}"):
            setattr(namespace, f"sample_{name}", function)
    served = ((name, getattr(namespace, f"sample_{name}")) for name in SAMPLERS)
    return [name for name, present in served if getattr(present, "__module__", None) == __name__]
