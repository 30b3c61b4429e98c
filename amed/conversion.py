"""Every explicit solver here as a table of `multistep`: the same evaluations, the same end.

Each solver's next state is a linear combination of its first state and the slopes so far, so its weights are
read off by running it, through the one sampling loop, on coordinates instead of images: a state is its vector
of coefficients, and the "model" answers so that evaluation j has the unit slope e_j.
"""

from typing import Any

import torch
from torch import Tensor

from .predictor import MultistepTable, Predictor
from .sampling import MULTISTEP, TWO_POINT, Problem, Solver, first_state, interval


class _Unscaled:
    """A predictor with a = 1: where a solver evaluates, without what it tells the model."""

    wants_bottleneck = False

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.scales: list[float] = []

    def __call__(self, t: Tensor, t_next: Tensor, bottleneck: Tensor | None = None):
        r, c, a = self.predictor(t, t_next, bottleneck)
        self.scales.append(float(a.detach()))
        return r, c, torch.ones_like(a)


class _Coordinates:
    """A denoiser of coordinate vectors: evaluation j at (x_j, t_j) has the slope e_j; x_j and t_j are
    kept."""

    def __init__(self):
        self.states: list[Tensor] = []
        self.times: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        unit = torch.zeros_like(x)
        unit[0, 1 + len(self.times)] = 1
        self.states.append(x[0].clone())
        self.times.append(sigma[0].clone())
        return x - sigma * unit


def as_multistep(
    solver: Solver, sigmas: Tensor, afs: bool = False, predictor: Predictor | None = None
) -> MultistepTable:
    """The table with which `multistep` does exactly what `solver` does over `sigmas` `[n]` (positive,
    falling).

    `predictor`: a plugin's, or AMED-Solver's, one that does not look at the image (a TablePredictor). With
    AFS the table's run needs it too. Raises ValueError for a solver no table contains: Heun evaluates twice
    at one time, dynamic thresholding is not linear, `scales_timestep` tells the model other states, a
    bottleneck predictor has no constants."""
    if solver.name == "heun":
        raise ValueError("Heun evaluates twice at the same time: it is no table of times and weights")
    if solver.thresholding or solver.scales_timestep:
        raise ValueError("thresholding and scales_timestep cannot be written as weights on slopes")
    if predictor is not None and predictor.wants_bottleneck:
        raise ValueError("this predictor looks at the image: it has no constants to convert")
    if solver.name == MULTISTEP and predictor is not None:
        return getattr(predictor, "predictor", predictor)
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
    steps = 2 * (len(sigmas) - 1) if predictor is not None or solver.name in TWO_POINT else len(sigmas) - 1
    probe, unscaled = _Coordinates(), None if predictor is None else _Unscaled(predictor)
    legs = solver.evaluations(len(sigmas), False, predictor is not None)
    problem = Problem(probe, solver, unscaled, total_legs=legs)
    state = first_state(problem, torch.eye(1, steps + 1, dtype=torch.float64), sigmas[:1, None], afs)
    for i in range(len(sigmas) - 1):
        state = interval(problem, state, sigmas[i : i + 1, None], sigmas[i + 1 : i + 2, None], afs and i == 0)

    states = torch.stack([*probe.states, state.x[0]])
    times = torch.cat([torch.stack(probe.times), sigmas[-1:]])
    if afs:  # its first state and slope are not evaluations
        states = torch.cat([torch.eye(1, steps + 1, dtype=torch.float64), states])
        times = torch.cat([sigmas[:1], times])
    moved = states.diff(dim=0) / times.diff()[:, None]
    # the coordinate of x_0 is that of the analytic slope x_0 / sqrt(1 + t_0^2): the first in hand with AFS,
    # the one before the first without
    by_slope = torch.cat([moved[:, :1] * (1 + sigmas[0] ** 2).sqrt(), moved[:, 1:]], dim=1)
    if not torch.allclose(states[:1], torch.eye(1, steps + 1, dtype=torch.float64)):
        raise ValueError("the first evaluation is not at the first state")
    count = len(moved)
    first = 0 if afs else 1  # the column of the slope of step 0
    weights = torch.zeros(count, count + (not afs), dtype=torch.float64)
    for step in range(count):
        back = by_slope[step, : step + first + 1].flip(0)
        weights[step, : len(back)] = back
    weights = weights[:, : int(weights.any(dim=0).nonzero().max()) + 1]
    scales = torch.ones(count, dtype=torch.float64)
    if unscaled is not None:
        scales[1::2] = torch.tensor(unscaled.scales, dtype=torch.float64)
    return MultistepTable(times, weights.clone(), scales)
