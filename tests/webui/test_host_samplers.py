"""Predictors for the WebUI's own samplers, in the fake WebUIs."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from amed import load

TOLD = {"prompts": "3\n5", "width": 64, "height": 64, "guidance": 2.0, "nfe": "4", "budget": 2000}

pytestmark = pytest.mark.usefixtures("small_latents")


def fitted_around(webui, sampler, **more):
    outcome = webui.calibrate.calibrate_in_queue(webui.calibrate.Form.of(TOLD | {"sampler": sampler} | more))
    return outcome, load(webui.host.user_folder() / outcome.saved[0])


def test_the_tab_offers_those_that_draw_no_noise(webui):
    choices = webui.calibrate.choices()
    assert {"AMED Multistep", "DPM++ 2M", "Heun", "Euler"} <= set(choices)
    assert not {"Euler a", "DPM fast"} & set(choices)
    with pytest.raises(ValueError, match="sampler is 'Euler a': choose one of .*Heun"):
        webui.calibrate.Form.of(TOLD | {"sampler": "Euler a"})


def test_where_the_host_names_only_the_functions(webui, monkeypatch):
    """reForge has no `k_diffusion` in that module; it imports `sampling` itself."""
    listing = importlib.import_module("modules.sd_samplers_kdiffusion")
    before = webui.host.sampler_functions()
    monkeypatch.setattr(listing, "sampling", listing.k_diffusion.sampling, raising=False)
    monkeypatch.delattr(listing, "k_diffusion")
    assert webui.host.sampler_functions() == before and len(before) >= 3


@pytest.mark.parametrize(("sampler", "name", "steps", "evaluations"), [("DPM++ 2M", "dpmpp_2m", 4, 4),
                                                                       ("Heun", "heun", 2, 3)])  # fmt: skip
def test_fitted_and_run_when_that_very_sampler_is_chosen(webui, sampler, name, steps, evaluations):
    outcome, fitted = fitted_around(webui, sampler)
    assert (fitted.spec.of, fitted.nfe, len(fitted.base)) == (name, evaluations, steps)
    assert fitted.spec.metrics["error"] <= fitted.spec.metrics["plain_error"]
    assert f"{name} + AMED-Plugin" in outcome.text and outcome.pictures[0].width > 400
    file = outcome.saved[0]

    def run(predictor, sampler=sampler, steps=20, **more):
        p = webui.Processing(sampler_name=sampler, cfg_scale=2.0, prompt="3", steps=steps, **more)
        return webui.generate(p, webui.script, (predictor, 0)), p

    images, p = run(file)
    assert p.steps == steps and len(webui.webui.callbacks) == steps
    said = p.extra_generation_params
    assert (said["AMED predictor"], said["AMED evaluations"]) == (file, evaluations)
    assert said["Schedule type"] == "AMED" and "AMED note" not in said
    outside = importlib.import_module("amed_webui.host_samplers")
    assert f"**{evaluations}** evaluations ({steps} steps), {file}" in outside_status(webui, sampler, file)

    plain, p = run("auto", steps=steps)
    assert "AMED predictor" not in p.extra_generation_params and not torch.equal(plain, images)
    other, p = run(file, sampler="Euler", steps=steps)  # runs as it is, and that is said
    assert f"was fitted for {sampler}, not for Euler" in "".join(p.comments)
    assert torch.equal(other, run("auto", sampler="Euler", steps=steps)[0])
    _, p = run(file, scheduler="karras")
    assert "choose the AMED schedule" in p.extra_generation_params["AMED note"]
    assert outside.labels() and run("auto", steps=steps)[0].equal(plain)  # nothing is left behind


def test_the_hosts_own_schedules_are_tried(webui):
    """The host's schedules are tried by label, except AMED's and those that fail for the model."""
    listed = importlib.import_module("modules.sd_schedulers")
    wrap = SimpleNamespace(sigmas=torch.linspace(0.03, 14.6, 1000))

    def fails(n, sigma_min, sigma_max, inner_model, device):
        assert inner_model is wrap
        raise ValueError("for other models")

    listed.schedulers.append(listed.Scheduler("fails", "Fails", fails, need_inner_model=True))
    try:
        found = webui.host.host_schedules(wrap, 5)
    finally:
        listed.schedulers.pop()
    assert set(found) == {"Karras"} and len(found["Karras"]) == 6


def outside_status(webui, sampler, file):
    return webui.ui.status(sampler, 20, 2.0, file, 0)


def test_a_predictor_of_a_hosts_sampler_is_refused_by_ours(webui):
    outcome, _ = fitted_around(webui, "Euler")
    p = webui.Processing(sampler_name="AMED", cfg_scale=2.0, prompt="3")
    with pytest.raises(ValueError, match="was fitted for euler, not for AMED"):
        webui.generate(p, webui.script, (outcome.saved[0], 0))


def test_img2img_runs_its_lower_part(webui):
    outcome, fitted = fitted_around(webui, "DPM++ 2M")
    image = torch.zeros(1, 3, 32, 32)
    p = webui.Processing(sampler_name="DPM++ 2M", cfg_scale=2.0, prompt="3", image=image)
    end = webui.generate(p, webui.script, (outcome.saved[0], 0))
    assert end.isfinite().all() and p.extra_generation_params["AMED evaluations"] < fitted.nfe
