"""Fit AMED-Plugin to a sampler of the host as a black box (amed.outside), on the end state.

Gauss-Newton iterations move the noise levels of the sampler's schedule and the two scales c and a of each of
its calls of the model.

A run of a black box cannot be started in the middle. But up to the first call that a change reaches, the
sampler makes the same calls as before, and these are answered from memory (Memo)."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import schedules
from ..constants import same_times
from ..double import as_double
from ..loop import Denoiser, check
from ..outside import Memo, Outside, ScaledDenoiser
from ..parameters import PARAMETERS
from ..table import Number
from .gauss_newton import DAMPINGS, NormalEquations
from .parametrisation import ordered
from .plain_solvers import FLOW_SCHEDULES, SCHEDULES, schedule_name
from .samples import Samples, per_sample, robust
from .target import Target

WIDE = 0.4  # finite-difference steps of times, in shares of the log distance to the nearer neighbour
STEPS = {"c": 0.05, "a": 0.1}  # finite-difference steps of c and log a
EQUAL = 1e-3  # most distance of two equal samples of a batch at the end, in shares of the standard deviation


@dataclass(frozen=True)
class HostSampler:
    """A sampler of the host (ComfyUI or the WebUI), called as a black box."""

    name: str  # for people and files
    # (model, x at the first level, sigmas `[n + 1]` with their 0, args) -> end states
    run: Callable[[Denoiser, Tensor, Tensor, dict[str, Any]], Tensor]
    # steps -> the host's schedules by name, sigmas `[n]` as the host makes them; None: the host has none
    schedules: Callable[[int], dict[str, Tensor]] | None = None

    def call_levels(self, noise: Tensor, sigmas: Tensor, real: Denoiser) -> list[float]:
        """Return the noise levels at which the sampler calls the model.

        They are found by a run with a trivial denoiser instead of the model.

        Args:
            noise: unit noise `[n, ...]`; only the first sample is used.
            sigmas: schedule `[n + 1]`, with its 0.
            real: the model; only its attributes are read.

        Raises:
            ValueError: the sampler draws noise: two of its runs end differently or, where its seed is fixed,
                two equal samples of one run.
        """
        ends, levels = [], list[float]()
        pair = torch.cat([noise[:1], noise[:1]]) * sigmas[0].to(noise)
        for _ in range(2):
            free = ScaledDenoiser(FreeDenoiser(real), lambda number, sigma: (1.0, 1.0))
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.seed()
                ends.append(self.run(free, pair, sigmas, {}))
            levels = free.levels
        first, second = as_double(ends[0])
        if not torch.equal(*ends) or (first - second).abs().max() > EQUAL * first.std():
            raise ValueError(
                f"{self.name} draws noise while it samples, so it cannot be calibrated: choose one without "
                "noise (no SDE, no ancestral sampler; or set eta 0; in sampler packs, names that end in _ode)"
            )
        return levels


class RecordingDenoiser:
    """A wrapper around a denoiser that records sigma and the output's sum at each call.

    amed.loop.check finds NaN in these records after the run, since a host's sampler does not stop at NaN
    by itself. Other attributes are those of the wrapped denoiser."""

    def __init__(self, model: Denoiser):
        self._model, self.watch = model, list[tuple[Number, Tensor]]()

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        denoised = self._model(x, sigma, *args, **kwargs)
        self.watch.append((float(sigma.flatten()[0]), denoised.sum()))
        return denoised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class FreeDenoiser:
    """The exact denoiser of unit Gaussian data, for runs of a sampler without the model.

    Other attributes are those of the real model."""

    def __init__(self, real: Denoiser):
        self._real = real

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        return x / (1 + level**2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@dataclass(frozen=True)
class HostSchedule:
    """A schedule for a host's sampler, with the calls of the model that the sampler makes on it."""

    schedule: str  # name, for people
    sigmas: Tensor  # falling, positive noise levels, float64 `[n]`; the sampler is also given a 0
    levels: tuple[float, ...]  # noise level of each call that the sampler then makes

    @property
    def nfe(self) -> int:
        """Number of evaluations per sample on this schedule."""
        return len(self.levels)


def host_schedules(sampler: HostSampler, target: Target, nfe: int, noise: Tensor) -> list[HostSchedule]:
    """Return the schedules to try a host's sampler on, all with the same number of evaluations.

    It is the largest number up to `nfe` that the sampler can run with. The schedules are those of
    plain_solvers.SCHEDULES (FLOW_SCHEDULES for flow models), then the host's own ones that differ from
    these. Each comes in two variants: with the model's lowest noise level before the final 0, and without
    it.

    Args:
        sampler: the host's sampler.
        target: the model.
        nfe: most evaluations per sample.
        noise: unit noise `[n, ...]`, for trial runs with a stand-in for the model, which count the
            evaluations.

    Raises:
        ValueError: the sampler draws noise, or can run with no number of evaluations from nfe / 2 to
            `nfe`.
    """

    def engine_schedules(count: int) -> list[HostSchedule]:
        listed = []
        for kind, rho in FLOW_SCHEDULES if target.flow else SCHEDULES:
            for longer in (0, 1):
                if count + longer < 2:
                    continue
                whole = schedules.make(kind, count + longer, target.sigma_min, target.sigma_max, rho)
                name = f"{schedule_name(kind, rho)}{', no last level' * longer}"
                sigmas = whole[:count]
                levels = sampler.call_levels(noise, with_zero(sigmas), target.model)
                listed.append(HostSchedule(name, sigmas, tuple(levels)))
        return listed

    def with_hosts_own(count: int, calls: int, listed: list[HostSchedule]) -> list[HostSchedule]:
        if sampler.schedules is None:
            return listed
        for longer in (0, 1):
            for name, sigmas in sampler.schedules(count + longer).items():
                name = f"{name}{', no last level' * longer}"
                sigmas = as_double(sigmas)[: -1 if len(sigmas) and sigmas[-1] == 0 else None][:count]
                if not len(sigmas) or not (sigmas > 0).all() or not (sigmas.diff() < 0).all():
                    continue  # some end above 0, or have a level twice
                if any(len(sigmas) == len(s.sigmas) and same_times(sigmas, s.sigmas) for s in listed):
                    continue
                levels = sampler.call_levels(noise, with_zero(sigmas), target.model)
                if len(levels) == calls:
                    listed = [*listed, HostSchedule(name, sigmas, tuple(levels))]
        return listed

    above = set[int]()  # numbers of evaluations above nfe that the sampler can take
    for count in range(max(nfe, 2), 1, -1):
        first = schedules.make("polynomial", count + 1, target.sigma_min, target.sigma_max)[:count]
        calls = len(sampler.call_levels(noise, with_zero(first), target.model))
        above |= {calls} if calls > nfe else set()
        if 0 < calls <= nfe:
            if calls < nfe / 2:
                break
            return with_hosts_own(count, calls, [s for s in engine_schedules(count) if s.nfe == calls])
    possible_numbers = f" (but with {', '.join(str(n) for n in sorted(above)[:3])})" if above else ""
    raise ValueError(
        f"{sampler.name} cannot run with {nfe} evaluations or a few less{possible_numbers}: choose another "
        "number of evaluations, or another sampler"
    )


def with_zero(sigmas: Tensor) -> Tensor:
    """Return noise levels `[n]` with a 0 after them, `[n + 1]`."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


@dataclass
class HostFit:
    """The constants of AMED-Plugin around a host's sampler as one vector, and their fit.

    The vector, float64 `[P]`, holds the log of all noise levels of the schedule but the first, then c (the
    scale of the direction) for each call of the model, then log a for each call (a: the scale of the noise
    level that the model is given; only if `with_a`)."""

    model: Denoiser
    sampler: HostSampler
    start: HostSchedule  # the schedule at the start
    low: float  # the model's lowest noise level
    batch: int  # most samples in one call of the model
    with_a: bool = True  # whether a is fitted

    def vector(self) -> Tensor:
        """Return the initial constants `[P]`, which do not change the sampler: all scales c and a are 1."""
        times = self.start.sigmas[1:].log()
        calls = self.start.nfe
        return torch.cat([times, times.new_ones(calls), times.new_zeros(calls * self.with_a)])

    def split(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split a vector of constants into noise levels `[n]`, and c and a of each call of the model, `[E]`.

        c scales the direction, a the noise level that the model is given."""
        inner, calls = len(self.start.sigmas) - 1, self.start.nfe
        times = torch.cat([self.start.sigmas[:1], values[:inner].exp()])
        c, a = values[inner : inner + calls], values[inner + calls :]
        return times, c, a.exp() if self.with_a else torch.ones(calls, dtype=torch.float64)

    def build(self, values: Tensor, noise: Tensor) -> Outside:
        """Return the predictor with the constants `values`.

        `noise` `[n, ...]` is for a run without the model, which finds the noise levels at which the
        sampler calls it."""
        times, c, a = self.split(values)
        levels = self.levels(values, noise)
        return Outside(times, torch.tensor(levels, dtype=torch.float64), c, a)

    def levels(self, values: Tensor, noise: Tensor) -> list[float]:
        """Return the noise level of each call of the model, with the constants `values`.

        The number of calls may differ from that on the initial schedule, since some samplers edit the
        schedule that they are given."""
        return self.sampler.call_levels(noise, with_zero(self.split(values)[0]), self.model)

    @torch.no_grad()
    def end(self, values: Tensor, samples: Samples, memos: Sequence[Memo] | None = None,
            keep: bool = False) -> Tensor:  # fmt: skip
        """Run the host's sampler with the constants `values`, and return the end states `[n, ...]`.

        Args:
            values: the constants `[P]`.
            samples: whose noise the sampler starts from.
            memos: recorded model calls of an earlier run, one Memo per batch; equal calls reuse their
                results.
            keep: record this run's calls in `memos`.

        Raises:
            NotFiniteError: the model returned NaN or infinity.
        """
        times, c, a = (v.tolist() for v in self.split(values))
        sigmas = with_zero(torch.tensor(times, dtype=torch.float64))

        def at(number: int, sigma: float) -> tuple[float, float]:
            return (c[number], a[number]) if number < len(c) else (1.0, 1.0)

        ends = []
        for i, part in enumerate(samples.batches(self.batch)):
            model = self.model if memos is None else memos[i].run(keep)
            x = part.noise * sigmas[0].to(part.noise)
            recording = RecordingDenoiser(model)
            ends.append(self.sampler.run(ScaledDenoiser(recording, at), x, sigmas, part.args))
            check(recording.watch, x, ends[-1])
        return torch.cat(ends)

    def steps(self, values: Tensor) -> Tensor:
        """Return how much to change each of the P constants for its finite difference, `[P]`.

        The constants are log noise levels, and the scales c and log a of each call of the model."""
        inner, calls = len(self.start.sigmas) - 1, self.start.nfe
        logs = torch.cat([self.start.sigmas[:1].log(), values[:inner]])
        below = torch.cat([logs.diff().neg()[1:], logs.new_full((1,), math.inf)])
        gaps = torch.minimum(logs.diff().neg(), below).clamp(max=1.0)
        scales = [gaps.new_full((calls,), STEPS[k]) for k in ("c", "a")[: 1 + self.with_a]]
        return torch.cat([WIDE * gaps, *scales])

    def bounded(self, values: Tensor, moved: Tensor) -> Tensor:
        """Return the constants `moved` `[P]`, limited to their bounds and to a largest change from `values`.

        The noise levels stay in falling order."""
        inner, calls = len(self.start.sigmas) - 1, self.start.nfe
        kinds = ["t"] * inner + ["c"] * calls + ["a"] * calls * self.with_a
        limits = [(PARAMETERS[k].reach, PARAMETERS[k].low, PARAMETERS[k].high) for k in kinds]
        reach, low, high = torch.tensor(limits, dtype=torch.float64).T
        moved = torch.maximum(torch.minimum(moved, values + reach), values - reach)
        moved[inner:] = moved[inner:].clamp(low[inner:], high[inner:])
        ends = as_double([math.log(float(self.start.sigmas[0])), math.log(self.low) - 0.1])
        moved[:inner] = ordered(ends, moved[:inner])
        return moved

    def cost(self) -> int:
        """Return the number of evaluations per sample that `iterate` takes."""
        calls, inner = self.start.nfe, len(self.start.sigmas) - 1
        per_step = calls / len(self.start.sigmas)
        times = sum(calls - int(n * per_step) for n in range(1, inner + 1))
        scales = calls * (calls - 1) // 2 + self.with_a * calls * (calls + 1) // 2
        return calls + times + scales + len(DAMPINGS) * calls

    def iterate(
        self, values: Tensor, samples: Samples, scale: float
    ) -> Generator[str, None, tuple[float, Tensor]]:
        """Run one Gauss-Newton iteration on the constants.

        Args:
            values: constants at the start `[P]`.
            samples: to fit to.
            scale: mean squared error at which a sample's weight is 1/2, the scale of Cauchy's loss.

        Yields:
            Lines of progress.

        Returns:
            The robust error (by Cauchy's loss) and the constants of the best trial, or of `values` if no
            trial is better.
        """
        memos = [Memo(self.model) for _ in samples.batches(self.batch)]
        end = self.end(values, samples, memos, keep=True)
        equations = NormalEquations(len(values))

        def moved() -> Iterator[tuple[Tensor, float]]:
            for i, step in enumerate(self.steps(values).tolist()):
                changed = values.clone()
                changed[i] += step
                yield self.end(changed, samples, memos), step

        def attempt(step: Tensor) -> tuple[float, Tensor] | None:
            trial = self.bounded(values, values - step)
            if len(self.levels(trial, samples.noise[:1])) != self.start.nfe:
                return None
            return robust(per_sample(self.end(trial, samples), samples.end), scale), trial

        yield from equations.add(self.sampler.name, end, samples.end, scale, moved())
        tried = yield from equations.trials(self.sampler.name, attempt)
        start = robust(per_sample(end, samples.end), scale), values
        return min([start, *tried], key=lambda trial: trial[0])
