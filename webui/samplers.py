"""The dropdown: our samplers and schedule among the host's.

Contracts: `SamplerData(name, constructor, aliases, options)` of modules/sd_samplers_common.py, the lists of
modules/sd_samplers.py (read through `set_samplers`), `Scheduler` of modules/sd_schedulers.py (a map by name
and label is looked at), `KDiffusionSampler(function, model)` of modules/sd_samplers_kdiffusion.py, which asks
itself for the noise levels and calls the function with what its signature names: k-diffusion's own six."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """A line of the dropdown. evaluations: of the model, a step."""

    label: str
    sampler: str
    aliases: tuple[str, ...]
    evaluations: int = 2


ENTRIES = (
    Entry("AMED", "amed", ("amed", "amed_solver")),
    Entry("AMED Plugin Euler", "amed_euler", ("amed_euler",)),
    Entry("AMED Plugin DPM2", "amed_dpm_2", ("amed_dpm_2",)),
    Entry("AMED Plugin DPM++ 2M", "amed_dpmpp_2m", ("amed_dpmpp_2m",)),
    Entry("AMED Plugin DPM++ 3M", "amed_dpmpp_3m", ("amed_dpmpp_3m",)),
    Entry("AMED Plugin iPNDM", "amed_ipndm", ("amed_ipndm",)),
    Entry("AMED Multistep", "amed_multistep", ("amed_multistep",), evaluations=1),
)
LABELS = tuple(entry.label for entry in ENTRIES)
SCHEDULE, SCHEDULE_LABEL = "amed", "AMED"
AUTOMATIC = ("Automatic", "automatic", SCHEDULE, SCHEDULE_LABEL)  # with a sampler of ours

# run(entry, sampler, model, x, sigmas, extra_args, callback, disable); sampler: the host's object
Run = Callable[..., Tensor]
Times = Callable[..., Tensor]  # times(entry, sampler, p, steps): the noise levels of so many steps


def entry_of(label: str | None) -> Entry | None:
    """The entry of a sampler's name, None if it is not ours."""
    return next((entry for entry in ENTRIES if entry.label == label), None)


def options(entry: Entry) -> dict[str, Any]:
    """What the host should know: "Automatic" takes our schedule, and a step may cost two evaluations.
    Scalars, for the API tells them."""
    told: dict[str, Any] = {"scheduler": SCHEDULE}
    return told | {"second_order": True} if entry.evaluations == 2 else told


def sampler_class(
    base: type, entry: Entry, run: Run, times: Times, schedule_of: Callable[[Any], str]
) -> type:
    """The host's sampler with one entry's noise levels, where the schedule is left to us, and steps."""

    class AmedSampler(base):
        def __init__(self, model: Any):
            super().__init__(self.integrate, model)

        def get_sigmas(self, p: Any, steps: int) -> Tensor:
            if schedule_of(p) not in AUTOMATIC:
                return super().get_sigmas(p, steps)
            return times(entry, self, p, steps)

        def integrate(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
            return run(entry, self, model, x, sigmas, extra_args, callback, disable)

    return AmedSampler


def add_samplers(
    sd_samplers: Any,
    common: Any,
    kdiffusion: Any,
    run: Run,
    times: Times,
    schedule_of: Callable[[Any], str],
    listed: list[str] | None = None,
) -> None:
    """Put ENTRIES into the host's lists, in place of any of the same name: so it may be done again on a
    reload of the scripts. Those whose label is not `listed` are found by name but not shown."""
    ours = [
        common.SamplerData(
            entry.label,
            sampler_class(kdiffusion.KDiffusionSampler, entry, run, times, schedule_of),
            list(entry.aliases),
            options(entry),
        )
        for entry in ENTRIES
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
