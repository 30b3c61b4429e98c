"""The samplers in k-diffusion's interface, and their names.

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
    """One of this package's samplers: its default solver, its name in a host's dropdown, a description."""

    solver: Solver  # what it runs without a predictor, and the student of its predictors
    label: str  # its name in a dropdown
    text: str  # what it is, in its docstring


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


def console_bar(count: int, disable: bool | None) -> Iterator[int]:
    """Return range(count), with tqdm's console bar if tqdm is installed, as in k-diffusion's samplers."""
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
    """Run a solver over noise levels.

    Args:
        model: model(x, sigma, **extra_args) -> denoised.
        x: `[B, ...]`, noisy at sigmas[0].
        sigmas: `[n]`, n >= 2, falling noise levels. If the last is 0, the denoised image of one more
            evaluation is the result.
        solver: the solver; "multistep" without a predictor runs iPNDM of second order.
        extra_args: keyword arguments of the model. Default: none.
        callback: called once per step of `sigmas` with k-diffusion's dict (x, i, sigma, sigma_hat, denoised).
        disable: whether to hide the console bar. Default: tqdm's.
        predictor: fitted constants, a fitted table of weights, or a network that predicts the constants; None
            for the plain solver.
        afs: whether the first step uses an analytic slope, without an evaluation. Default: False.
        evaluate: how the model is called, see loop.Evaluate. Default: `loop.denoised_only`.

    Returns:
        The result of the run, `[B, ...]` in x's dtype.

    Raises:
        ValueError: The noise levels do not fall, or the predictor does not fit x.
        NotFiniteError: The model returned NaN or infinity (a ValueError)."""
    watch: list[Any] = []
    problem = Problem(
        model, extra_args or {}, evaluate or denoised_only, parts=parts_of(predictor), watch=watch
    )
    i, bar, result = 0, console_bar(len(sigmas) - 1, disable), x
    before = denoised = None
    for state in trajectory(problem, solver, x, sigmas, predictor, afs):
        row = state.row
        if state.looked and row.opens:
            next(bar, None)
        if callback is not None and state.looked:
            before = state.x if row.opens else before
            evaluation = state.evaluation
            if evaluation is not None:
                denoised = evaluation.denoised
            else:
                slope = state.slopes[-1]
                denoised = slope[1] if row.data else state.x - row.sigma * problem.parts.total(slope)
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
    """Return what a call of the function `sample_<name>` runs: a predictor file's settings, else the
    sampler's defaults.

    Args:
        name: name of the sampler, without "sample_".
        predictor: a loaded predictor file (Fitted), other fitted constants (Predictor), or None for the plain
            solver.
        sigmas: `[n]`, the run's noise levels.
        afs: whether the first step uses an analytic slope, without an evaluation. None: as in the file if the
            run starts at the noise level that the file was fitted from, else False.
        options: fields of Solver to change, e.g. max_order; not allowed with a predictor file.

    Returns:
        The solver, the predictor, whether the first step is analytic, and whether to apply dynamic
        thresholding.

    Raises:
        ValueError: The predictor is for another sampler, or options were given with a file."""
    default, spec = ENTRIES[name].solver, getattr(predictor, "spec", None)
    if spec is None:
        if predictor is not None and (not default.has_recipe) != hasattr(predictor, "table"):
            raise ValueError(
                f"sample_{name} cannot run a predictor of type {type(predictor).__name__}: use "
                "sample_amed_multistep for type Multistep, and any other sample_amed* function for others"
            )
        return replace(default, **options), predictor, bool(afs), False
    if options:
        raise ValueError(
            f"the options {', '.join(options)} cannot be set, because the predictor file sets the solver: "
            "leave them out"
        )
    if host_sampler := spec.of:
        raise ValueError(
            f"this predictor was fitted for the host's sampler {host_sampler!r}, not for sample_{name}: use "
            "it with that sampler, or choose another predictor"
        )
    if ENTRIES[spec.sampler].solver.name != default.name:
        raise ValueError(
            f"this predictor was fitted for the solver {spec.solver!r}, but sample_{name} runs "
            f"{default.name!r}: use the sampler {spec.sampler!r}, or choose another predictor"
        )
    afs = spec.afs and from_the_top(sigmas, spec.sigma_max) if afs is None else afs
    return spec.student, predictor.predictor, afs, spec.thresholding


def _k_diffusion(name: str, entry: Entry) -> Callable[..., Tensor]:
    """Return one of this package's samplers as a function `sample_<name>` with k-diffusion's interface."""

    def sampler(model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None,
                callback: Any = None, disable: bool | None = None, *, predictor: Any = None,
                afs: bool | None = None, evaluate: Evaluate | None = None,
                **options: Any) -> Tensor:  # fmt: skip
        solver, constants, analytic_first, thresholding = settings(name, predictor, sigmas, afs, options)
        evaluate = Thresholded(evaluate or denoised_only) if thresholding else evaluate
        return sample(model, x, sigmas, solver, extra_args, callback, disable, predictor=constants,
                      afs=analytic_first, evaluate=evaluate)  # fmt: skip

    sampler.__name__ = sampler.__qualname__ = f"sample_{name}"
    sampler.__doc__ = f"""{entry.text}, in k-diffusion's sampler interface.

    Args:
        model: model(x, sigma, **extra_args) -> denoised.
        x: [B, ...], noisy at sigmas[0].
        sigmas: [n], n >= 2, falling. A last 0 is one more evaluation, whose denoised image is the end.
        extra_args: keyword arguments of the model. Default: none.
        callback: called once per step of sigmas with k-diffusion's dict (x, i, sigma, sigma_hat, denoised).
        disable: whether to hide the console bar. Default: tqdm's.
        predictor: a predictor file (amed.Fitted), a Predictor, or None for the plain solver.
        afs: whether the first step is analytic. Default: as in the file, if the run starts at its sigma_max;
            without a file, False.
        evaluate: how the model is called, see amed.loop.Evaluate. Default: for its denoised image only.
        options: fields of amed.Solver, for a predictor that is not a Fitted.

    Returns:
        The end of the run, [B, ...] in x's dtype.

    Raises:
        ValueError: The predictor was fitted for another solver, the noise levels do not fall, or the model
            returned NaN or infinity."""
    return sampler


SAMPLERS = {name: _k_diffusion(name, entry) for name, entry in ENTRIES.items()}


def solver_of(sampler: str) -> Solver:
    """Return the default solver of one of this package's samplers, e.g. iPNDM for "amed_ipndm". Raises
    KeyError for another name."""
    return ENTRIES[sampler].solver


def sampler_of(solver: str, max_order: int = 1) -> str:
    """Return the name of this package's sampler for a solver, e.g. "amed_ipndm" for "ipndm". If there are
    several (DPM-Solver++ 2M and 3M), it is the one of order `max_order`, or the first.

    Raises ValueError if there is none."""
    names = [name for name, entry in ENTRIES.items() if entry.solver.name == solver]
    if not names:
        raise ValueError(
            f"no sampler runs predictors for the solver {solver!r}: choose one in amed.kdiffusion.ENTRIES"
        )
    return next((name for name in names if ENTRIES[name].solver.max_order == max_order), names[0])


def register(namespace: Any) -> list[str]:
    """Add this package's samplers to a k-diffusion `sampling` module as functions `sample_<name>`. Existing
    functions are not replaced.

    Args:
        namespace: the module: k-diffusion's, or ComfyUI's or the WebUI's copy of it.

    Returns:
        The names of the samplers that the module now has from this package."""
    for name, function in SAMPLERS.items():
        if not hasattr(namespace, f"sample_{name}"):
            setattr(namespace, f"sample_{name}", function)
    served = ((name, getattr(namespace, f"sample_{name}")) for name in SAMPLERS)
    return [name for name, present in served if getattr(present, "__module__", None) == __name__]
