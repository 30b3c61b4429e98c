"""The dropdown: our samplers and schedule among the host's.

Contracts: `SamplerData(name, constructor, aliases, options)` of modules/sd_samplers_common.py, the lists of
modules/sd_samplers.py (read through `set_samplers`), `Scheduler` of modules/sd_schedulers.py (a map by name
and label is looked at), `KDiffusionSampler(function, model)` of modules/sd_samplers_kdiffusion.py, which asks
itself for the noise levels and calls the function with what its signature names: k-diffusion's own six.
get_sampler_and_scheduler of modules/sd_samplers.py cuts a scheduler's label, name or alias off the end of a
sampler's name (" DDIM"; reForge in any case): no label of ours may end in one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from amed import kdiffusion


@dataclass(frozen=True)
class Line:
    """A line of the dropdown. sampler: its name in amed.kdiffusion. evaluations: of the model, a step."""

    label: str
    sampler: str
    aliases: tuple[str, ...]
    evaluations: int


ALIASES = {"amed": ("amed_solver",)}  # beside the sampler's own name
LINES = tuple(
    Line(entry.label, name, (name, *ALIASES.get(name, ())), entry.solver.each(learned=True))
    for name, entry in kdiffusion.ENTRIES.items()
)
LABELS = tuple(line.label for line in LINES)
SCHEDULE, SCHEDULE_LABEL = "amed", "AMED"
AUTOMATIC = ("Automatic", "automatic", SCHEDULE, SCHEDULE_LABEL)  # with a sampler of ours

# run(line, sampler, model, x, sigmas, extra_args, callback, disable); sampler: the host's object
Run = Callable[..., Tensor]
Times = Callable[..., Tensor]  # times(line, sampler, p, steps): the noise levels of so many steps


def line_of(label: str | None) -> Line | None:
    """The line with a sampler's label, None if it is not ours."""
    return next((line for line in LINES if line.label == label), None)


def label_of(sampler: str) -> str:
    """What a sampler of the engine is called here."""
    return kdiffusion.ENTRIES[sampler].label


def options(line: Line) -> dict[str, Any]:
    """What the host should know: "Automatic" takes our schedule, and a step may cost two evaluations.
    Scalars, for the API tells them."""
    own: dict[str, Any] = {"scheduler": SCHEDULE}
    return own | {"second_order": True} if line.evaluations == 2 else own


def sampler_class(base: type, line: Line, run: Run, times: Times, schedule_of: Callable[[Any], str]) -> type:
    """The host's sampler with one line's noise levels, where the schedule is left to us, and steps."""

    class AmedSampler(base):
        def __init__(self, model: Any):
            super().__init__(self.integrate, model)

        def get_sigmas(self, p: Any, steps: int) -> Tensor:
            if schedule_of(p) not in AUTOMATIC:
                return super().get_sigmas(p, steps)
            return times(line, self, p, steps)

        def integrate(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
            return run(line, self, model, x, sigmas, extra_args, callback, disable)

    return AmedSampler


def add_samplers(
    sd_samplers: Any,
    common: Any,
    sd_samplers_kdiffusion: Any,
    run: Run,
    times: Times,
    schedule_of: Callable[[Any], str],
    listed: list[str] | None = None,
) -> None:
    """Put LINES into the host's lists, in place of any of the same name: so it may be done again on a
    reload of the scripts. Those whose label is not `listed` are found by name but not shown."""
    ours = [
        common.SamplerData(
            line.label,
            sampler_class(sd_samplers_kdiffusion.KDiffusionSampler, line, run, times, schedule_of),
            list(line.aliases),
            options(line),
        )
        for line in LINES
    ]
    sd_samplers.all_samplers[:] = [s for s in sd_samplers.all_samplers if s.name not in LABELS] + ours
    sd_samplers.all_samplers_map.update({sampler.name: sampler for sampler in ours})
    sd_samplers.set_samplers()
    if listed is not None:
        sd_samplers.samplers_hidden.update(set(LABELS) - set(listed))


def add_schedule(sd_schedulers: Any, sigmas: Callable[..., Tensor]) -> None:
    """Our schedule, once: `sigmas(n, sigma_min, sigma_max, inner_model, device)` gives n steps' noise
    levels."""
    ours = sd_schedulers.Scheduler(SCHEDULE, SCHEDULE_LABEL, sigmas, need_inner_model=True)
    sd_schedulers.schedulers[:] = [s for s in sd_schedulers.schedulers if s.name != SCHEDULE] + [ours]
    sd_schedulers.schedulers_map.update({SCHEDULE: ours, SCHEDULE_LABEL: ours})
