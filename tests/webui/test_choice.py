"""Which predictor runs in the fake WebUIs: by NFE, name, steps, schedule and pass, and what the infotext
says."""

import re

import pytest
import torch
from generations import MLP, PREDICTORS, images, noise, wrapped

from amed import Fitted, Solver, Spec, sample, save, schedules

# --- NFE, predictor, fallback ------------------------------------------------------------------------------


def test_a_named_predictor_sets_the_steps(webui):
    _, p = images(webui, (MLP,))
    assert p.steps == 3 and p.extra_generation_params["AMED predictor"] == MLP
    assert "emoji32" in p.extra_generation_params["AMED note"]  # this is sd15


def test_a_plain_solvers_file_runs_as_multistep(webui):
    """A calibration saves a plain solver if no fit beat it. Heun takes two evaluations per step."""
    times = schedules.make("polynomial", 4, *webui.host.sigma_range(wrapped(webui)))
    spec = Spec.on(Solver("heun"), times, features="plain", model_family="sd15")
    save(webui.host.user_folder() / "heun.safetensors", Fitted(spec, None, times))
    out, p = images(webui, ("heun.safetensors",), sampler_name="AMED Multistep")
    assert p.steps == 3 and p.extra_generation_params["AMED evaluations"] == 6
    sigmas = times.float()
    label = {"context": torch.tensor([3])}
    expected = sample(wrapped(webui), noise() * sigmas[0], sigmas, Solver("heun"), label, None, True)
    assert torch.allclose(out, expected, atol=1e-4)
    with pytest.raises(ValueError, match="was fitted for AMED Multistep, not for AMED Plugin DPM2"):
        images(webui, ("heun.safetensors",), sampler_name="AMED Plugin DPM2")


@pytest.mark.parametrize("nfe, steps", [(3, 20), (0, 3)], ids=["by NFE", "by Steps"])
def test_a_plain_solver_that_a_fit_saved_is_found(webui, nfe, steps):
    """The calibrated sampler takes two evaluations per step, the file that is found takes one."""
    times = schedules.make("polynomial", 4, *webui.host.sigma_range(wrapped(webui)))
    spec = Spec.on(Solver("ipndm", 2), times, features="plain", model_family="sd15", fitted_for="amed")
    save(webui.host.user_folder() / "saved.safetensors", Fitted(spec, None, times))
    out, p = images(webui, ("auto", nfe), sampler_name="AMED", steps=steps)
    told = p.extra_generation_params
    assert (told["AMED predictor"], told["AMED evaluations"], p.steps) == ("saved.safetensors", 3, 3)
    assert "AMED note" not in told and out.isfinite().all()
    shown = webui.ui.status("AMED", steps, 1.0, "auto", nfe)
    assert "**3** evaluations (3 steps)" in shown and "saved.safetensors" in shown


def test_one_step_of_another_schedule(emoji):
    """With one noise level and 0 the result is the denoised image, whatever predictor is named."""
    for name in ("auto", MLP):
        out, p = images(emoji, (name,), scheduler="Karras", image=torch.zeros(1, 3, 32, 32), steps=3,
                        denoising_strength=0.1)  # fmt: skip
        told = p.extra_generation_params
        assert told["AMED evaluations"] == 1 and "AMED note" not in told and out.isfinite().all()


@pytest.mark.parametrize("args, label, words", [
    ((MLP,), "AMED Plugin iPNDM", "choose the sampler AMED"),
    ((MLP, 7), "AMED", "takes 5 evaluations, not 7"),
    (("nothing.safetensors",), "AMED", "no predictor named 'nothing.safetensors'"),
    (("auto", "many"), "AMED", "whole number"),
    (("auto", 2.5), "AMED", "whole number"),
    (("auto", -3), "AMED", "whole number"),
    (("auto", 0, "guess"), "AMED", "fallback is 'guess'"),
    (("auto", 6, "error"), "AMED", "no predictor for"),
    (("auto", 0, "error"), "AMED", "no predictor for"),
])  # fmt: skip
def test_what_is_wrong_is_said_when_sampling_begins(webui, args, label, words):
    """Errors are not raised in `process`, whose exceptions the hosts only print."""
    p = webui.Processing(sampler_name=label)
    webui.script.process(p, *args)
    with pytest.raises(ValueError, match=words):
        webui.generate(p, None)


def test_settings_and_plots(emoji):
    emoji.webui.shared.opts.data.update(amed_nfe=7, amed_fallback="error")
    assert images(emoji)[1].extra_generation_params["AMED evaluations"] == 7
    assert images(emoji, ("auto", 3))[1].extra_generation_params["AMED evaluations"] == 3
    p = emoji.Processing()
    p.amed_nfe = 9
    emoji.generate(p, emoji.script, ("auto", 3))
    assert p.extra_generation_params["AMED evaluations"] == 9
    p = emoji.Processing()
    p.amed_predictor = MLP
    p.amed_nfe = 5
    emoji.generate(p, emoji.script, ())
    assert p.extra_generation_params["AMED predictor"] == MLP
    with pytest.raises(ValueError, match="no predictor"):
        images(emoji, ("auto", 11))


def test_untrained_on_demand(emoji):
    for nfe, label in ((5, "AMED"), (6, "AMED"), (5, "AMED Multistep")):
        _, p = images(emoji, ("untrained", nfe), sampler_name=label)
        told = p.extra_generation_params
        assert told["AMED evaluations"] == nfe and told["AMED predictor"] == "untrained"
        assert "AMED note" not in told


def test_other_samplers_are_left_alone(webui):
    p = webui.Processing(sampler_name="Euler")
    webui.script.process(p, "auto", 5)
    assert p.steps == 20 and not p.extra_generation_params


def test_without_the_script(emoji):
    """A generation that another extension starts follows the settings page."""
    p = emoji.Processing(steps=3)
    emoji.generate(p, None)
    assert p.extra_generation_params["AMED evaluations"] == 5


# --- schedules and passes ----------------------------------------------------------------------------------


def test_another_schedule(emoji):
    """No table is interpolated: the plain solver runs, and following the advice runs the predictor."""
    out, p = images(emoji, scheduler="Karras", steps=4)
    told = p.extra_generation_params
    advised = re.search(r"Choose the schedule type AMED or Automatic to run (\S+)\.$", told["AMED note"])
    assert "the plain solver ipndm-3 ran" in told["AMED note"] and out.isfinite().all()
    assert told["AMED predictor"] == "plain" and told["AMED evaluations"] == 4
    _, p = images(emoji, scheduler="AMED", steps=4)
    assert p.extra_generation_params["AMED predictor"] == advised[1]
    assert "AMED note" not in p.extra_generation_params


def test_a_named_predictor_on_another_schedule(emoji):
    name = "emoji32-amed-nfe5-cfg1.safetensors"
    _, p = images(emoji, (name,), scheduler="Karras", steps=4)
    told = p.extra_generation_params
    assert "choose the AMED schedule" in told["AMED note"] and told["AMED predictor"] == name


def test_our_schedule_for_other_samplers(webui):
    wrap = wrapped(webui)
    for n in (1, 2, 7):
        sigmas = webui.host.schedule_sigmas(n, float(wrap.sigmas[0]), float(wrap.sigmas[-1]), wrap, "cpu")
        assert len(sigmas) == n + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert float(sigmas[0]) == pytest.approx(float(wrap.sigmas[-1]))


def test_img2img(emoji):
    """img2img runs the lower part of the predictor's schedule, without the analytic first step."""
    image = torch.zeros(1, 3, 32, 32)
    _, p = images(emoji, image=image, steps=3, denoising_strength=0.5)
    assert p.extra_generation_params["AMED evaluations"] == 4
    assert "AMED note" not in p.extra_generation_params
    fitted = PREDICTORS.load(p.extra_generation_params["AMED predictor"])
    assert [c["sigma"] for c in emoji.webui.callbacks] == fitted.sigmas()[1:3].float().tolist()


def test_the_nearest_predictor_is_for_lower_parts_alone(emoji):
    """With unfitted numbers of steps, img2img takes the nearest predictor, txt2img the plain solver."""
    steps = {"steps": 7, "sampler_name": "AMED"}
    _, p = images(emoji, image=torch.zeros(1, 3, 32, 32), **steps)
    told = p.extra_generation_params
    assert told["AMED predictor"] == "emoji32-amed-nfe9-cfg1.safetensors"
    assert "fitted for 5 steps, running 7" in told["AMED note"]
    _, p = images(emoji, **steps)
    assert p.extra_generation_params["AMED predictor"] == "plain"
    _, p = images(emoji, image=torch.zeros(1, 3, 32, 32), **{**steps, "steps": 30})
    assert p.extra_generation_params["AMED predictor"] == "plain"
    _, p = images(emoji, ("auto", 0, "untrained"), **steps)
    assert p.extra_generation_params["AMED predictor"] == "untrained"


def test_inpainting(emoji):
    """The unmasked part stays unchanged: there is no analytic first step, which would ignore the mask."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    image = torch.full((1, 3, 32, 32), 0.7)
    out, p = images(emoji, ("auto", 5), image=image, mask=mask, denoising_strength=1.0)
    assert p.extra_generation_params["AMED evaluations"] == 6
    assert (out[..., :16] - 0.7).abs().max() < 1e-6 and (out[..., 16:] - 0.7).abs().max() > 0.2


def test_hires_fix(emoji):
    """The second pass has its own predictor and infotext keys; it runs fewer steps than it is given."""
    out, p = images(emoji, ("auto", 5), enable_hr=True, denoising_strength=0.7)
    told = p.extra_generation_params
    assert told["AMED evaluations"] == 5 and told["AMED hires evaluations"] == 6
    assert told["AMED hires predictor"] == "emoji32-amed-nfe7-cfg1.safetensors"  # 4 steps, 3 of them run
    assert out.isfinite().all()
    _, p = images(emoji, (MLP,), enable_hr=True, hr_sampler_name="AMED Multistep", denoising_strength=0.7)
    assert "multistep" in p.extra_generation_params["AMED hires predictor"]
    _, p = images(emoji, ("auto", 5), enable_hr=True, hr_second_pass_steps=20)
    assert p.extra_generation_params["AMED hires predictor"] == "plain"


def test_batches_and_odd_sizes(emoji):
    for batch in (1, 5):
        out, _ = images(emoji, (MLP,), batch_size=batch, cfg_scale=2.0, height=40, width=36)
        assert out.shape == (batch, 3, 40, 36) and out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(emoji, dtype):
    """A host that samples in half precision gives nearly the same image."""
    full, _ = images(emoji, (MLP,), cfg_scale=2.0)
    made = emoji.sampler_base.launch

    def launch(self, p, steps, x, sigmas, prompts, negative):
        return made(self, p, steps, x.to(dtype), sigmas, prompts, negative)

    emoji.sampler_base.launch = launch
    try:
        out, _ = images(emoji, (MLP,), cfg_scale=2.0)
    finally:
        emoji.sampler_base.launch = made
    assert out.dtype == dtype and (out.float() - full).pow(2).mean().sqrt() < 0.05


def test_nan_is_named(webui):
    def poison(x, t, context=None, transformer_options=None):
        return torch.full_like(x, float("nan"))

    webui.checkpoint.network.forward = poison
    with pytest.raises(ValueError, match="sigma"):
        images(webui, steps=2)
