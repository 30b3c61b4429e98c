"""Each thing of a WebUI that host.py and evaluate.py can do without, taken from the fake hosts once: at
most one line, that feature off, the rest working."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optional_names import optional_names_in

GONE = object()


@dataclass(frozen=True)
class Case:
    """take(webui, put): take it away, by `put(owner, name, value)`. feature(webui): what one has of it; now:
    that without it, was: with it, None for not asked. said: words of the one line, "" for none, where what is
    left is right as it is. same: whether the image stays. on: the kinds of host that have it. covers: names
    by which the adapter asks for it."""

    take: Callable[[Any, Callable], None]
    feature: Callable[[Any], Any]
    now: Any
    was: Any = None
    said: str = ""
    same: bool = True
    on: tuple[str, ...] = ("a1111", "forge")
    covers: tuple[str, ...] = ()


def kdiffusion() -> Any:
    return sys.modules["modules.sd_samplers_kdiffusion"]


def checkpoint(webui: Any) -> Any:
    return webui.shared.sd_model


def asked(webui: Any, **lacks: Any) -> SimpleNamespace:
    """A generation as another extension may have it, with less."""
    return SimpleNamespace(cfg_scale=7.0, scheduler="Karras", extra_generation_params={}, **lacks)


def of_checkpoint(name: str) -> Callable[[Any, Callable], None]:
    def take(webui: Any, put: Callable) -> None:
        own = checkpoint(webui)
        put(own if name in vars(own) else type(own), name, GONE)

    return take


def no_middle_block(webui: Any, put: Callable) -> None:
    put(checkpoint(webui).network._modules, "middle_block", GONE)


CASES = {
    "samplers_k_diffusion": Case(
        lambda w, put: put(kdiffusion(), "samplers_k_diffusion", GONE),
        lambda w: len(w.host.sampler_functions()), 0, 3, covers=("samplers_k_diffusion", "__name__"),
    ),
    "k_diffusion": Case(
        lambda w, put: put(kdiffusion(), "k_diffusion", GONE),
        lambda w: len(w.host.sampler_functions()), 0, 3, covers=("k_diffusion", "sampling"),
    ),
    "sd_checkpoint_info": Case(
        of_checkpoint("sd_checkpoint_info"), lambda w: w.host.checkpoint_name(checkpoint(w)), "checkpoint",
        "emoji",
        covers=("sd_checkpoint_info", "filename", "model_name", "name"),
    ),
    "is_sd1": Case(
        of_checkpoint("is_sd1"), lambda w: w.read_identity(checkpoint(w)).family, "checkpoint", "sd15",
        covers=(),
    ),
    "is_sd3": Case(
        of_checkpoint("is_sd3"), lambda w: w.host.prediction_type(checkpoint(w)), "eps", "eps",
        covers=("is_sd3",),
    ),
    "parameterization": Case(
        of_checkpoint("parameterization"), lambda w: w.host.prediction_type(checkpoint(w)), "eps", "eps",
        covers=("parameterization",),
    ),
    "model.diffusion_model": Case(
        lambda w, put: put(checkpoint(w).model, "diffusion_model", GONE),
        lambda w: [w.host.current_network(), w.read_identity(checkpoint(w)).fingerprint], [None, ""],
        said="cannot tell this checkpoint from others", same=False,
        on=("a1111",), covers=("model", "diffusion_model"),
    ),
    "unet.model.diffusion_model": Case(
        lambda w, put: put(checkpoint(w).forge_objects.unet.model, "diffusion_model", GONE),
        lambda w: [w.host.current_network(), w.read_identity(checkpoint(w)).fingerprint], [None, ""],
        said="cannot tell this checkpoint from others", same=False,
        on=("forge",), covers=("forge_objects", "unet"),
    ),
    "unet.model_options": Case(
        lambda w, put: None,
        lambda w: w.host.guidance_is_patched(SimpleNamespace(forge_objects=SimpleNamespace(unet=object()))),
        False,
        covers=("model_options",),
    ),
    "unet.model.predictor": Case(
        lambda w, put: None,
        lambda w: w.host.prediction_type(checkpoint(w)), "eps", on=("forge",),
        covers=("predictor", "prediction_type"),
    ),
    "forge_model_reload": Case(
        lambda w, put: None, lambda w: w.host.checkpoint() is checkpoint(w), True,
        covers=("forge_model_reload",),
    ),
    "modules_forge": Case(
        lambda w, put: put(sys.modules, "modules_forge", None),
        lambda w: w.host.on_main_thread(lambda x: x + 1, 1), 2,
        covers=("modules_forge", "run_and_wait_result"),
    ),
    "no_gradio_queue": Case(
        lambda w, put: None, lambda w: w.host.has_gradio_queue(), True, covers=("no_gradio_queue",),
    ),
    "the X/Y/Z plot": Case(
        lambda w, put: put(w.scripts, "scripts_data", [SimpleNamespace(module=object())]),
        lambda w: w.host.xyz_module(), None, covers=("AxisOption", "axis_options"),
    ),
    "p.scheduler": Case(
        lambda w, put: None,
        lambda w: w.host.schedule_of(SimpleNamespace()), "Automatic",
        covers=("scheduler", "sampler_noise_scheduler_override", "is_hr_pass"),
    ),
    "p.init_images": Case(
        lambda w, put: None, lambda w: w.host.runs_lower_part(asked(w)), False, covers=("init_images",),
    ),
    "p.hr_cfg": Case(
        lambda w, put: None, lambda w: w.host.guidance(asked(w, is_hr_pass=True)), 7.0, covers=("hr_cfg",),
    ),
    "p.sampler.func": Case(
        lambda w, put: None,
        lambda w: w.run and sys.modules["amed_webui.host_samplers"].wrap_sampler(
            asked(w, amed_wrapper=object(), sampler=object())), None,
        covers=("sampler", "func"),
    ),
    "middle_block": Case(
        no_middle_block, lambda w: infotext(w), "zeros in its place", same=False, covers=("middle_block",),
    ),
    "denoiser.mask": Case(
        lambda w, put: None,
        lambda w: evaluate().apply_mask(object(), torch.ones(1), torch.ones(1)).item(), 1.0,
        covers=("mask", "mask_before_denoising"),
    ),
    "denoiser.inner_model": Case(
        lambda w, put: None, lambda w: halves_of(object()), [None, None], covers=("inner_model",),
    ),
    "cond.batch": Case(
        lambda w, put: None, lambda w: evaluate().prompts_of({"cond": object()}, 2), [[None], [None]],
        covers=("batch",),
    ),
    "prompt.weight": Case(
        lambda w, put: None, lambda w: weightless(), 1.5, covers=("weight",),
    ),
}  # fmt: skip
OURS = {"amed", "amed_choice", "amed_nfe", "amed_wrapper", "amed_predictor", "hr_sampler_name"}


def evaluate() -> Any:
    return sys.modules["amed_webui.evaluate"]


def halves_of(denoiser: Any) -> list:
    """Of either order."""
    found = set()
    for order in (evaluate().PromptsFirst(), evaluate().Chunks()):
        recording = evaluate().Recording()
        with order.recording_halves(denoiser, recording):
            pass
        found.add(order.halves(recording, 1, {}))
    return list(*found)


def weightless() -> float:
    """The mean of two prompts' rows, 1 and 2, whose prompts have no weight."""
    recording = evaluate().Recording(denoised=[torch.tensor([[1.0], [2.0]])])
    told = {"cond": SimpleNamespace(batch=[[object(), object()]])}
    return float(evaluate().PromptsFirst().halves(recording, 1, told)[0])


def sampled(webui: Any) -> tuple[torch.Tensor, Any]:
    """A generation with the paper's network, one that looks at the bottleneck, under guidance."""
    p = webui.Processing(sampler_name="AMED Plugin iPNDM", cfg_scale=2.0, prompt="3")
    args = ("emoji32-ipndm-nfe5-cfg2.safetensors", 0, "error")
    return webui.generate(p, webui.script, args), p


def infotext(webui: Any) -> str:
    return str(sampled(webui)[1].extra_generation_params.get("AMED note", ""))


def test_nothing_that_is_asked_for_is_left_out():
    found = optional_names_in("webui")
    covered = {name for case in CASES.values() for name in case.covers}
    assert len(found) > 25 and found - OURS == covered


@pytest.fixture
def put(monkeypatch):
    """`put(owner, name, value)`: an attribute, or an entry of a dict, for this test."""

    def change(owner: Any, name: str, value: Any) -> None:
        if isinstance(owner, dict):
            monkeypatch.delitem(owner, name) if value is GONE else monkeypatch.setitem(owner, name, value)
        elif value is GONE:
            monkeypatch.delattr(owner, name)
        else:
            monkeypatch.setattr(owner, name, value)

    return change


@pytest.mark.parametrize("name", CASES)
def test_without_it(webui, put, name, capsys):
    case, mine = CASES[name], webui.host.read_identity
    put(webui.host, "read_identity", lambda model: replace(mine(model), family="emoji32", fingerprint=""))
    if webui.webui.kind not in case.on:
        pytest.skip(f"{webui.webui.kind} has none")
    before, _ = sampled(webui)
    if case.was is not None:
        assert case.feature(webui) == case.was
    case.take(webui, put)
    capsys.readouterr()
    after, p = sampled(webui)
    now = case.feature(webui)
    assert case.now in now if isinstance(case.now, str) and case.now else now == case.now
    lines = [line for line in capsys.readouterr().out.splitlines() if "AMED" in line]
    assert len(lines) == bool(case.said) and all(case.said in line for line in lines)
    assert after.isfinite().all() and torch.equal(before, after) == case.same
    assert p.extra_generation_params["AMED evaluations"] == 5
