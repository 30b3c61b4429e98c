"""The entries in the dropdown, with the hosts' lists reimplemented here (modules/sd_samplers*.py,
modules/sd_schedulers.py)."""

import inspect
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from amed_webui.samplers import ENTRIES, SCHEDULE_LABEL, add_samplers, add_schedule

from amed import SAMPLERS


class SamplerData(namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])):
    def total_steps(self, steps):
        return steps * 2 if self.options.get("second_order", False) else steps


@dataclass
class Scheduler:
    name: str
    label: str
    function: object
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: list = None


class KDiffusionSampler:
    """Computes noise levels, and gives its function the arguments that its signature names."""

    def __init__(self, func, model):
        self.func, self.model = func, model

    def get_sigmas(self, p, steps):
        return torch.tensor([9.0, 0.0])

    def sample(self, p, x):
        wanted = inspect.signature(self.func).parameters
        arguments = {"n": 5, "sigma_min": 0.1, "sigma_max": 9.0, "sigmas": self.get_sigmas(p, 3)}
        extra = {k: v for k, v in arguments.items() if k in wanted}
        return self.func(self.model, x, extra_args={}, disable=False, callback=lambda d: None, **extra)


@pytest.fixture
def host():
    euler = SamplerData("Euler", lambda model: KDiffusionSampler(None, model), ["k_euler"], {})
    samplers = SimpleNamespace(
        all_samplers=[euler], all_samplers_map={"Euler": euler}, samplers_map={}, samplers_hidden={"x"}
    )

    def set_samplers():
        samplers.samplers, samplers.samplers_hidden = samplers.all_samplers, set()
        samplers.samplers_map.clear()
        for sampler in samplers.all_samplers:
            samplers.samplers_map[sampler.name.lower()] = sampler.name
            for alias in sampler.aliases:
                samplers.samplers_map[alias.lower()] = sampler.name

    samplers.set_samplers = set_samplers
    schedulers = [Scheduler("automatic", "Automatic", None), Scheduler("karras", "Karras", None)]
    schedules = SimpleNamespace(
        Scheduler=Scheduler,
        schedulers=schedulers,
        schedulers_map={**{s.name: s for s in schedulers}, **{s.label: s for s in schedulers}},
    )
    return SimpleNamespace(
        samplers=samplers,
        common=SimpleNamespace(SamplerData=SamplerData),
        kdiffusion=SimpleNamespace(KDiffusionSampler=KDiffusionSampler),
        schedules=schedules,
    )


def add(host, run=None, listed=None):
    def times(line, sampler, p, steps):
        return torch.linspace(2, 1, steps + 1)

    def schedule_of(p):
        return p.scheduler

    arguments = run or (lambda *a: None), times, schedule_of
    add_samplers(host.samplers, host.common, host.kdiffusion, *arguments, listed)


def test_samplers_are_added_only_once(host):
    add(host)
    add(host)
    names = [s.name for s in host.samplers.samplers]
    assert names == ["Euler", *(e.label for e in ENTRIES)]
    assert set(host.samplers.all_samplers_map) == set(names)
    assert host.samplers.samplers_map["amed_ipndm"] == "AMED Plugin iPNDM"


def test_an_unlisted_sampler_is_hidden_but_usable(host):
    add(host, listed=["AMED"])
    shown = [s.name for s in host.samplers.samplers if s.name not in host.samplers.samplers_hidden]
    assert shown == ["Euler", "AMED"]
    assert host.samplers.samplers_map["amed_multistep"] == "AMED Multistep"


def test_the_names_are_kept():
    """Saved settings, infotexts and API calls name these: the old ones in the old order."""
    assert {line.label: line.aliases for line in ENTRIES} == {
        "AMED": ("amed", "amed_solver"),
        "AMED Plugin Euler": ("amed_euler",),
        "AMED Plugin DPM2": ("amed_dpm_2",),
        "AMED Plugin DPM++ 2M": ("amed_dpmpp_2m",),
        "AMED Plugin DPM++ 3M": ("amed_dpmpp_3m",),
        "AMED Plugin iPNDM": ("amed_ipndm",),
        "AMED Plugin UniPC": ("amed_uni_pc",),
        "AMED Plugin DEIS": ("amed_deis",),
        "AMED Multistep": ("amed_multistep",),
    }
    old = [line.label for line in ENTRIES if not line.label.endswith(("UniPC", "DEIS"))]
    assert old == ["AMED", "AMED Plugin Euler", "AMED Plugin DPM2", "AMED Plugin DPM++ 2M",
                   "AMED Plugin DPM++ 3M", "AMED Plugin iPNDM", "AMED Multistep"]  # fmt: skip
    assert [line.evaluations for line in ENTRIES] == [2] * 8 + [1]


# labels, names and aliases of the schedules of A1111, Forge and reForge
SCHEDULES = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "SGMUniform",
    "KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta", "Turbo", "Optimal",
    "Align Your Steps GITS", "Align Your Steps 11", "Align Your Steps 32", "Align Your Steps Custom",
    "Sinusoidal SF", "Invcosinusoidal SF", "React Cosinusoidal DynSF", "Cosine", "Cosine-exponential Blend",
    "Phi", "Laplace", "Karras Dynamic", "kl_optimal", "align_your_steps", "align_your_steps_GITS",
    "sinusoidal_sf", "sgm_uniform", SCHEDULE_LABEL, "amed",
)  # fmt: skip


def test_every_line_is_a_sampler_of_the_engine_and_no_name_ends_in_a_schedule(host):
    """The hosts cut such an end off, reForge in any case, and sample with something else."""
    assert {line.sampler for line in ENTRIES} == set(SAMPLERS)
    for line in ENTRIES:
        for name in (line.label, *line.aliases):
            assert not any(name.lower().endswith(" " + schedule.lower()) for schedule in SCHEDULES)
        assert not line.label.endswith(SCHEDULES) or line.label == SCHEDULE_LABEL


def test_the_host_passes_the_arguments_in_the_signature(host):
    calls = []

    def run(line, sampler, model, x, sigmas, extra_args, callback, disable):
        calls.append((line.sampler, model, sigmas.tolist(), extra_args, disable, callable(callback)))
        return x + 1

    add(host, run)
    data = host.samplers.all_samplers_map["AMED"]
    assert data.total_steps(3) == 6 and host.samplers.all_samplers_map["AMED Multistep"].total_steps(5) == 5
    for scheduler in ("Automatic", "AMED"):
        end = data.constructor("model").sample(SimpleNamespace(scheduler=scheduler), torch.zeros(1))
        assert end.tolist() == [1.0]
        assert calls.pop() == ("amed", "model", torch.linspace(2, 1, 4).tolist(), {}, False, True)
    data.constructor("model").sample(SimpleNamespace(scheduler="Karras"), torch.zeros(1))
    assert calls.pop()[2] == [9.0, 0.0]


def test_the_schedule_entry(host):
    add_schedule(host.schedules, lambda **levels: levels)
    add_schedule(host.schedules, lambda **levels: levels)
    assert [s.name for s in host.schedules.schedulers] == ["automatic", "karras", "amed"]
    assert host.schedules.schedulers_map["AMED"] is host.schedules.schedulers_map["amed"]
    add(host)
    assert all(s.options["scheduler"] == "amed" for s in host.samplers.samplers[1:])
    assert all(isinstance(v, (str, bool)) for s in host.samplers.samplers for v in s.options.values())
