"""The dropdown: our samplers and schedule among the host's.

Contracts: `SamplerData(name, constructor, aliases, options)` of modules/sd_samplers_common.py, the lists of
modules/sd_samplers.py (read through `set_samplers`), `Scheduler` of modules/sd_schedulers.py (a map by name
and label is looked at). Options are scalars. A sampler is called with what its signature names, so it names
no more than k-diffusion's own six."""

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
SCHEDULE, SCHEDULE_LABEL = "amed", "AMED"
Run = Callable[..., Tensor]  # run(entry, model, x, sigmas, extra_args, callback, disable)


def function(entry: Entry, run: Run) -> Callable[..., Tensor]:
    """A k-diffusion sampler that runs one entry."""

    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return run(entry, model, x, sigmas, extra_args, callback, disable)

    sampler.__name__ = sampler.__qualname__ = f"sample_{entry.sampler}"
    return sampler


def options(entry: Entry) -> dict[str, Any]:
    """What the host should know: "Automatic" takes our schedule, and a step may cost two evaluations."""
    told: dict[str, Any] = {"scheduler": SCHEDULE}
    return told | {"second_order": True} if entry.evaluations == 2 else told


def add_samplers(
    sd_samplers: Any, common: Any, kdiffusion: Any, run: Run, shown: set[str] | None = None
) -> None:
    """Put ENTRIES (or those whose label is `shown`) into the host's lists, in place of any of the same
    name: so it may be done again on a reload of the scripts."""

    def data(entry: Entry) -> Any:
        call = function(entry, run)
        return common.SamplerData(
            entry.label,
            lambda model: kdiffusion.KDiffusionSampler(call, model),
            list(entry.aliases),
            options(entry),
        )

    ours = [data(entry) for entry in ENTRIES if shown is None or entry.label in shown]
    names = {entry.label for entry in ENTRIES}
    sd_samplers.all_samplers[:] = [s for s in sd_samplers.all_samplers if s.name not in names] + ours
    for name in names:
        sd_samplers.all_samplers_map.pop(name, None)
    sd_samplers.all_samplers_map.update({sampler.name: sampler for sampler in ours})
    sd_samplers.set_samplers()


def add_schedule(sd_schedulers: Any, sigmas: Callable[..., Tensor]) -> None:
    """Our schedule, once: `sigmas(n, sigma_min, sigma_max, inner_model, device)` gives n steps' noise
    levels."""
    ours = sd_schedulers.Scheduler(SCHEDULE, SCHEDULE_LABEL, sigmas, need_inner_model=True)
    sd_schedulers.schedulers[:] = [s for s in sd_schedulers.schedulers if s.name != SCHEDULE] + [ours]
    sd_schedulers.schedulers_map.update({SCHEDULE: ours, SCHEDULE_LABEL: ours})
