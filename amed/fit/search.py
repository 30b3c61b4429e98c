"""The first stage of a calibration: find the best plain solver and schedule by successive halving."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .compare import Judge
from .plain_solvers import Setting, settings_for
from .samples import References, Samples, per_sample, robust, scale_of
from .settings import Settings
from .target import Target

USUAL = "time_uniform + AFS"  # the best initial schedule of a table for most models
SECOND = 20  # settings in the second round
FAMILIES = 4  # schedules on which all solvers are tried, where the first solver is tried on all schedules


@dataclass(frozen=True)
class Search:
    """The result of the search for the best plain solver, i.e. solver without fitted constants."""

    # All settings that were tried, best first; finalists by the held-out samples, others by a few samples.
    ranking: list[Setting]
    best: Setting  # the finalist with the best Judge.score
    ends: dict[Setting, Tensor]  # end states `[n, ...]` of the finalists on the held-out samples
    judge: Judge  # with the scale that follows from the finalists

    def schedules(self, settings: Settings) -> list[Setting]:
        """Return the schedules to fit a multistep solver's weights on, as settings of plain solvers.

        First comes the schedule of the best plain solver with one evaluation per step. Second comes
        time_uniform with an analytic first step (AFS), which suits most models; third the first schedule
        again, with AFS added or removed. The schedules of the next best solvers follow. None occurs twice."""
        single = [s for s in self.ranking if not s.solver.recipe.pair]
        alike = [s for s in single if (s.kind, s.rho) == (single[0].kind, single[0].rho)]
        twin = [s for s in alike if s.afs != single[0].afs][:1]
        usual = [s for s in single if s.schedule == USUAL] or [
            s for s in single if (s.kind, s.rho) == ("time_uniform", 1.0)
        ]
        chosen = dict[str, Setting]()
        for setting in (*single[:1], *usual[:1], *twin, *single):
            chosen.setdefault(setting.schedule, setting)
        return list(chosen.values())[: settings.by_budget(2, 4, 8)]


def first_round(settings: Settings) -> tuple[int, int]:
    """Return two numbers for the first round of the search for the best plain solver and schedule.

    They are the number of samples that each solver runs on, and how many pairs of a solver and a schedule
    the budget allows."""
    unit = 2 if 240 * settings.nfe < 0.12 * settings.budget else 1
    share = 0.07 if settings.large else 0.15
    return unit, max(12, int((share * settings.budget / settings.nfe - 40 * unit) / unit))


def small_calls(target: Target, settings: Settings) -> int:
    """Return the number of evaluations that the search makes in calls with at most 4 samples."""
    unit, count = first_round(settings)
    every = settings_for(target, settings.plain_nfe)
    if target.flow:
        schedules = {(s.kind, s.rho) for s in every}
        alone = len([s for s in every if s.solver == every[0].solver])
        every = every[: alone + (len(every) - alone) * FAMILIES // len(schedules)]
    tried = min(count, len(every))
    return settings.nfe * unit * (tried + 2 * min(tried, SECOND))


def search(
    target: Target, settings: Settings, references: References, judge: Judge
) -> Generator[str, None, Search]:
    """Search for the best plain solver (one without fitted constants) and schedule.

    Yields lines of progress. Each pair of a solver and a schedule runs on one or two samples, the best 20
    (SECOND) on two or four more, and the best few on the held-out samples, which decide. On a flow model the
    first solver runs on every schedule, and the others only on the four (FAMILIES) that were best for it."""
    unit, count = first_round(settings)
    every = settings_for(target, settings.plain_nfe)  # likely ones first: a small budget cuts the others
    errors: dict[Setting, list[Tensor]] = {}
    first, scale = references.held_out, 1.0

    def loss(setting: Setting) -> float:
        return robust(torch.cat(errors[setting]), scale)

    def tried(stage: str, these: list[Setting], samples: Samples) -> Generator[str, None, None]:
        for i, setting in enumerate(these):
            error = per_sample(judge.plain(setting, samples), samples.end)
            errors.setdefault(setting, []).append(error)
            yield f"plain solvers, {stage}: {i + 1} of {len(these)}"

    yield from references.make(first + unit)
    samples = references.take(first, unit)
    left = every[:count]
    if target.flow:
        left = [s for s in every if s.solver == every[0].solver][:count]
        yield from tried("schedules", left, samples)
        scale = scale_of(torch.cat(errors[s]) for s in left)
        good = {(s.kind, s.rho) for s in sorted(left, key=loss)[:FAMILIES]}
        left += [s for s in every if s not in errors and (s.kind, s.rho) in good][: count - len(left)]
    yield from tried("round 1", [s for s in left if s not in errors], samples)
    scale = scale_of(torch.cat(errors[s]) for s in left)
    left = sorted(left, key=loss)[:SECOND]
    first += unit
    yield from references.make(first + 2 * unit)
    yield from tried("round 2", left, references.take(first, 2 * unit))
    scale = scale_of(torch.cat(errors[s]) for s in left)
    left.sort(key=loss)
    finalists, ends = left[: settings.by_budget(2, 2, 3)], dict[Setting, Tensor]()
    for i, setting in enumerate(finalists):
        ends[setting] = judge.plain(setting)
        errors[setting].append(per_sample(ends[setting], judge.held_out.end))
        yield f"plain solvers, last round: {i + 1} of {len(finalists)}"
    scale = scale_of(torch.cat(errors[s]) for s in finalists)
    finalists.sort(key=loss)
    judge = replace(judge, scale=scale)
    best = min(finalists, key=lambda s: judge.score(ends[s]))
    rest = sorted((s for s in errors if s not in finalists), key=loss)
    return Search([*finalists, *rest], best, ends, judge)
