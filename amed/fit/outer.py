"""Fitting AMED-Plugin from outside (amed.outside) to a sampler whose insides are not known, on the image at
the end: Gauss-Newton iterations on its noise levels and the two numbers of each of its calls.

Nothing of a run can be re-used but its beginning: up to the first call that a change reaches, a sampler asks
what it asked before, and is answered from memory."""

import math
from collections.abc import Callable, Generator, Sequence
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
from .forms import ordered
from .plain import FLOW_SCHEDULES, SCHEDULES
from .samples import Samples, per_sample, robust
from .target import Target

WIDE = 0.4  # secants of times, in shares of the gap to the nearer neighbour
STEPS = {"c": 0.05, "a": 0.1}  # secants of the others
DAMPINGS = (5e-2, 5e-1, 5.0)
ALIKE = 1e-3  # two equal samples of a batch end so near each other, in shares of the deviation


@dataclass(frozen=True)
class HostSampler:
    """A sampler as its host has it: `run(model, x, sigmas, args)` -> where it ends. `name`: for people and
    files. `schedules(steps)`: the host's own, by name, as the host gives them; None for none."""

    name: str
    run: Callable[[Denoiser, Tensor, Tensor, dict[str, Any]], Tensor]
    schedules: Callable[[int], dict[str, Tensor]] | None = None

    def calls(self, noise: Tensor, sigmas: Tensor, real: Denoiser) -> list[float]:
        """The noise levels at which it asks a model for an answer, on a list `sigmas` `[n + 1]` with its 0;
        `noise` `[B, ...]`; `real`: the model, for its attributes; it is not asked. Raises ValueError for a
        sampler that draws noise: two runs then end apart, or two equal samples of a run where its seed is
        fixed."""
        ends, levels = [], list[float]()
        pair = torch.cat([noise[:1], noise[:1]]) * sigmas[0].to(noise)
        for _ in range(2):
            free = ScaledDenoiser(_Free(real), lambda number, sigma: (1.0, 1.0))
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.seed()
                ends.append(self.run(free, pair, sigmas, {}))
            levels = free.levels
        one, other = as_double(ends[0])
        if not torch.equal(*ends) or (one - other).abs().max() > ALIKE * one.std():
            wrong = "draws noise on its way, so no constants of it can be fitted"
            other = "no SDE, no ancestral; eta 0; of a pack's samplers those whose names end in _ode"
            raise ValueError(f"{self.name} {wrong}: choose one without ({other})")
        return levels


class Watched:
    """A denoiser that keeps (sigma, sum of the output) of each call, for amed.loop.check: a sampler of a host
    does not mind NaN. Has the attributes of the denoiser."""

    def __init__(self, model: Denoiser):
        self._model, self.watch = model, list[tuple[Number, Tensor]]()

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        denoised = self._model(x, sigma, *args, **kwargs)
        self.watch.append((float(sigma.flatten()[0]), denoised.sum()))
        return denoised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Free:
    """A denoiser of no cost, with the attributes of another: of data whose pixels are unit noise."""

    def __init__(self, real: Denoiser):
        self._real = real

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        return x / (1 + level**2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@dataclass(frozen=True)
class Listed:
    """A schedule for a sampler: its name, noise levels `[n]` (float64, falling, positive), and the levels at
    which the sampler then asks."""

    schedule: str
    sigmas: Tensor
    levels: tuple[float, ...]

    @property
    def nfe(self) -> int:
        return len(self.levels)


def lists_for(sampler: HostSampler, target: Target, nfe: int, noise: Tensor) -> list[Listed]:
    """The schedules that a sampler is tried on, each of as many evaluations: the most that are not above
    `nfe`: ours, then the host's own that are not among them, each twice: down to the model's lowest level
    and on to 0, or to 0 instead of it. Raises ValueError for a sampler that draws noise, or takes no number
    of them near `nfe`."""

    def made(count: int) -> list[Listed]:
        found = []
        for kind, rho in FLOW_SCHEDULES if target.flow else SCHEDULES:
            for longer in (0, 1):
                if count + longer < 2:
                    continue
                whole = schedules.make(kind, count + longer, target.sigma_min, target.sigma_max, rho)
                usual = schedules.DEFAULT_RHO[kind] == rho and kind != "polynomial"
                name = f"{kind}{'' if usual else f' {rho:g}'}{', no last level' * longer}"
                own = whole[:count]
                levels = sampler.calls(noise, with_zero(own), target.model)
                found.append(Listed(name, own, tuple(levels)))
        return found

    def hosts(count: int, taken: int, found: list[Listed]) -> list[Listed]:
        if sampler.schedules is None:
            return found
        for longer in (0, 1):
            for name, own in sampler.schedules(count + longer).items():
                name = f"{name}{', no last level' * longer}"
                own = as_double(own)[: -1 if len(own) and own[-1] == 0 else None][:count]
                if not len(own) or not (own > 0).all() or not (own.diff() < 0).all():
                    continue  # some end above 0, or have a level twice
                if any(len(own) == len(one.sigmas) and same_times(own, one.sigmas) for one in found):
                    continue
                levels = sampler.calls(noise, with_zero(own), target.model)
                found = [*found, Listed(name, own, tuple(levels))] if len(levels) == taken else found
        return found

    more = set[int]()
    for count in range(max(nfe, 2), 1, -1):
        first = schedules.make("polynomial", count + 1, target.sigma_min, target.sigma_max)[:count]
        taken = len(sampler.calls(noise, with_zero(first), target.model))
        more |= {taken} if taken > nfe else set()
        if 0 < taken <= nfe:
            if taken < nfe / 2:
                break
            return hosts(count, taken, [one for one in made(count) if one.nfe == taken])
    takes = f", but {', '.join(str(n) for n in sorted(more)[:3])}" if more else ""
    wrong = f"{sampler.name} takes no number of evaluations near {nfe}{takes}"
    raise ValueError(f"{wrong}: choose another")


def with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


@dataclass
class OuterFit:
    """The constants of a sampler on a list of noise levels, as a vector: log of the inner and the last times,
    c of each call, log a of each (with_a)."""

    model: Denoiser
    sampler: HostSampler
    start: Listed
    low: float
    batch: int
    with_a: bool = True

    def vector(self) -> Tensor:
        """Where it starts, float64 `[P]`: the plain sampler."""
        times = self.start.sigmas[1:].log()
        calls = self.start.nfe
        return torch.cat([times, times.new_ones(calls), times.new_zeros(calls * self.with_a)])

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise levels `[n]`, c and a `[E]`."""
        inner, calls = len(self.start.sigmas) - 1, self.start.nfe
        times = torch.cat([self.start.sigmas[:1], values[:inner].exp()])
        c, a = values[inner : inner + calls], values[inner + calls :]
        return times, c, a.exp() if self.with_a else torch.ones(calls, dtype=torch.float64)

    def build(self, values: Tensor, noise: Tensor) -> Outside:
        times, c, a = self.parts(values)
        levels = self.levels(values, noise)
        return Outside(times, torch.tensor(levels, dtype=torch.float64), c, a)

    def levels(self, values: Tensor, noise: Tensor) -> list[float]:
        """Those at which the sampler asks: another number of them where it adds or drops a level by what its
        list is."""
        return self.sampler.calls(noise, with_zero(self.parts(values)[0]), self.model)

    @torch.no_grad()
    def end(self, values: Tensor, samples: Samples, memos: Sequence[Memo] | None = None,
            keep: bool = False) -> Tensor:  # fmt: skip
        """Where samples end; memos: one a batch. Raises NotFiniteError if the model returns NaN."""
        times, c, a = (v.tolist() for v in self.parts(values))
        sigmas = with_zero(torch.tensor(times, dtype=torch.float64))

        def at(number: int, sigma: float) -> tuple[float, float]:
            return (c[number], a[number]) if number < len(c) else (1.0, 1.0)

        ends = []
        for i, part in enumerate(samples.batches(self.batch)):
            model = self.model if memos is None else memos[i].run(keep)
            x = part.noise * sigmas[0].to(part.noise)
            watched = Watched(model)
            ends.append(self.sampler.run(ScaledDenoiser(watched, at), x, sigmas, part.args))
            check(watched.watch, x, ends[-1])
        return torch.cat(ends)

    def steps(self, values: Tensor) -> Tensor:
        """Of the secants."""
        inner, calls = len(self.start.sigmas) - 1, self.start.nfe
        logs = torch.cat([self.start.sigmas[:1].log(), values[:inner]])
        below = torch.cat([logs.diff().neg()[1:], logs.new_full((1,), math.inf)])
        gaps = torch.minimum(logs.diff().neg(), below).clamp(max=1.0)
        more = [gaps.new_full((calls,), STEPS[k]) for k in ("c", "a")[: 1 + self.with_a]]
        return torch.cat([WIDE * gaps, *more])

    def bounded(self, values: Tensor, moved: Tensor) -> Tensor:
        """`moved`, within each constant's reach of `values` and its bounds, times in order."""
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
        """Evaluations of `iterate`, of each sample."""
        calls, inner = self.start.nfe, len(self.start.sigmas) - 1
        each = calls / len(self.start.sigmas)  # calls a step
        times = sum(calls - int(n * each) for n in range(1, inner + 1))
        whole = calls * (calls - 1) // 2 + self.with_a * calls * (calls + 1) // 2
        return calls + times + whole + len(DAMPINGS) * calls

    def iterate(
        self, values: Tensor, samples: Samples, scale: float
    ) -> Generator[str, None, tuple[float, Tensor]]:
        """One iteration from `values`: the best loss on the samples, and where; yields what it is doing."""
        parts = list(samples.batches(self.batch))
        memos = [Memo(self.model) for _ in parts]
        end = self.end(values, samples, memos, keep=True)
        best = robust(per_sample(end, samples.end), scale), values
        weight = (1 / (1 + per_sample(end, samples.end) / scale)).sqrt().to(end)[:, None]
        residual = ((end - samples.end.to(end)).flatten(1) * weight).flatten()
        rows, steps = [], self.steps(values)
        for i, step in enumerate(steps.tolist()):
            moved = values.clone()
            moved[i] += step
            change = self.end(moved, samples, memos) - end
            rows.append((change.flatten(1) * weight / step).flatten())
            yield f"{self.sampler.name}: derivative {i + 1} of {len(steps)}"
        jacobian = torch.stack(rows)
        matrix, vector = (as_double(jacobian @ v) for v in (jacobian.T, residual))
        for damping in DAMPINGS:
            pull = torch.diag(damping * matrix.diagonal() + 1e-30)
            tried = self.bounded(values, values - torch.linalg.solve(matrix + pull, vector))
            if len(self.levels(tried, samples.noise[:1])) != self.start.nfe:
                continue
            loss = robust(per_sample(self.end(tried, samples), samples.end), scale)
            best = min(best, (loss, tried), key=lambda one: one[0])
            yield f"{self.sampler.name}: damping {damping:g}: {loss:.4f}"
        return best
