"""AMED's samplers and schedule in the WebUI's dropdown lists.

Interfaces of the WebUI that this file relies on:

- modules/sd_samplers_common.py: `SamplerData(name, constructor, aliases, options)`.
- modules/sd_samplers.py: the list and map of samplers; `set_samplers` derives the other lists from them.
  get_sampler_and_scheduler cuts a schedule's label, name or alias (e.g. " DDIM") off the end of a sampler's
  name, in reForge always. No label here may end in one.
- modules/sd_schedulers.py: `Scheduler`, and a map of schedules by name and by label.
- modules/sd_samplers_kdiffusion.py: `KDiffusionSampler(function, model)` calls its own `get_sigmas`, then the
  function with those of k-diffusion's six arguments that the function's signature names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from amed import kdiffusion


@dataclass(frozen=True)
class SamplerEntry:
    """An AMED sampler in the WebUI's sampler dropdown."""

    label: str  # shown in the dropdown and written to the infotext
    sampler: str  # the sampler's name in amed.kdiffusion.ENTRIES
    aliases: tuple[str, ...]  # other names by which the API finds it
    evaluations: int  # model evaluations per step


ALIASES = {"amed": ("amed_solver",)}  # sampler name -> aliases besides that name
ENTRIES = tuple(
    SamplerEntry(entry.label, name, (name, *ALIASES.get(name, ())), entry.solver.each(learned=True))
    for name, entry in kdiffusion.ENTRIES.items()
)
LABELS = tuple(entry.label for entry in ENTRIES)
SCHEDULE, SCHEDULE_LABEL = "amed", "AMED"
# schedule types with which an AMED sampler runs on its predictor's noise levels
AUTOMATIC = ("Automatic", "automatic", SCHEDULE, SCHEDULE_LABEL)

# (entry, host_sampler, model, x, sigmas, extra_args, callback, disable) -> samples
SampleFunction = Callable[..., Tensor]
# (entry, host_sampler, p, steps) -> noise levels [steps + 1]
SigmasFunction = Callable[..., Tensor]


def entry_of(label: str | None) -> SamplerEntry | None:
    """Return the AMED sampler with this dropdown label; None if the label is not one of AMED's."""
    return next((entry for entry in ENTRIES if entry.label == label), None)


def label_of(sampler: str) -> str:
    """Return the dropdown label of an AMED sampler, given its name in amed.kdiffusion."""
    return kdiffusion.ENTRIES[sampler].label


def sampler_options(entry: SamplerEntry) -> dict[str, Any]:
    """Return the options of the WebUI's SamplerData: the schedule that "Automatic" stands for, and whether a
    step takes two evaluations. Values are scalars, because the WebUI's API returns them as JSON."""
    schedule: dict[str, Any] = {"scheduler": SCHEDULE}
    return schedule | {"second_order": True} if entry.evaluations == 2 else schedule


def sampler_class(
    base: type,
    entry: SamplerEntry,
    sample: SampleFunction,
    sigmas: SigmasFunction,
    schedule_of: Callable[[Any], str],
) -> type:
    """Make a subclass of the WebUI's sampler that runs an AMED sampler.

    Args:
        base: the WebUI's KDiffusionSampler.
        entry: the AMED sampler.
        sample: runs the AMED sampler, as a `SampleFunction`.
        sigmas: returns the noise levels if the schedule type is Automatic or AMED, as a `SigmasFunction`.
        schedule_of: returns the schedule type of a processing object."""

    class AmedSampler(base):
        def __init__(self, model: Any):
            super().__init__(self.integrate, model)

        def get_sigmas(self, p: Any, steps: int) -> Tensor:
            if schedule_of(p) not in AUTOMATIC:
                return super().get_sigmas(p, steps)
            return sigmas(entry, self, p, steps)

        def integrate(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
            return sample(entry, self, model, x, sigmas, extra_args, callback, disable)

    return AmedSampler


def add_samplers(
    sd_samplers: Any,
    common: Any,
    sd_samplers_kdiffusion: Any,
    sample: SampleFunction,
    sigmas: SigmasFunction,
    schedule_of: Callable[[Any], str],
    listed: list[str] | None = None,
) -> None:
    """Add the AMED samplers to the WebUI's lists, replacing any of the same label.

    May be called again when the WebUI reloads its scripts.

    Args:
        sd_samplers, common, sd_samplers_kdiffusion: the WebUI's modules (`common`: sd_samplers_common).
        sample: runs an AMED sampler.
        sigmas: returns its noise levels if the schedule type is Automatic or AMED.
        schedule_of: returns the schedule type of a processing object.
        listed: labels to show in the dropdown; the others can only be chosen by name. None: show all."""
    added = [
        common.SamplerData(
            entry.label,
            sampler_class(sd_samplers_kdiffusion.KDiffusionSampler, entry, sample, sigmas, schedule_of),
            list(entry.aliases),
            sampler_options(entry),
        )
        for entry in ENTRIES
    ]
    sd_samplers.all_samplers[:] = [s for s in sd_samplers.all_samplers if s.name not in LABELS] + added
    sd_samplers.all_samplers_map.update({sampler.name: sampler for sampler in added})
    sd_samplers.set_samplers()
    if listed is not None:
        sd_samplers.samplers_hidden.update(set(LABELS) - set(listed))


def add_schedule(sd_schedulers: Any, sigmas: Callable[..., Tensor]) -> None:
    """Add the AMED schedule to the WebUI's list, replacing an earlier one.

    Args:
        sd_schedulers: the WebUI's module.
        sigmas: `sigmas(n, sigma_min, sigma_max, inner_model, device)` returns the noise levels of n steps."""
    schedule = sd_schedulers.Scheduler(SCHEDULE, SCHEDULE_LABEL, sigmas, need_inner_model=True)
    sd_schedulers.schedulers[:] = [s for s in sd_schedulers.schedulers if s.name != SCHEDULE] + [schedule]
    sd_schedulers.schedulers_map.update({SCHEDULE: schedule, SCHEDULE_LABEL: schedule})
