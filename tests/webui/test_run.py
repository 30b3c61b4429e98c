"""Generations in the restated hosts, with the demo model: what comes out, and what is said of it."""

import re
from pathlib import Path

import pytest
import torch

from amed import (
    SAMPLERS,
    Fitted,
    Library,
    Multistep,
    PredictorError,
    Solver,
    Spec,
    sample,
    sample_amed,
    save,
    schedules,
)
from amed.constants import as_multistep
from amed.evaluate import FromModule, Guided

PREDICTORS = Library([Path(__file__).parents[2] / "predictors"])
MLP = "emoji32-amed-nfe5-cfg2.safetensors"


@pytest.fixture
def emoji(webui):
    """The host's checkpoint is known for the demo model, which the bundled predictors are for."""
    webui.host.read_identity = webui.read_identity
    webui.host.FAMILIES["is_sd1"] = "emoji32"
    return webui


def images(host, args=("auto", 0, "as in settings"), **settings):
    p = host.Processing(**settings)
    return host.generate(p, host.script, args), p


def direct(host, name, x, sigmas, **settings):
    """The engine itself, on the host's own denoiser for category 3 without guidance."""
    label = {"context": torch.full((len(x),), 3)}
    return SAMPLERS[name](wrapped(host), x, sigmas, label, None, True, **settings)


def wrapped(host):
    """The host's denoiser without guidance."""
    return host.webui.sd_samplers.all_samplers_map["AMED"].constructor(host.checkpoint).model_wrap


def noise(count=1, size=32, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_every_sampler_without_a_predictor_is_the_plain_solver(webui):
    """As many evaluations as steps, the same image from all of them, and one line that says so."""
    outs = []
    for line in webui.samplers.LINES:
        out, p = images(webui, sampler_name=line.label, steps=4)
        told = p.extra_generation_params
        assert out.isfinite().all() and out.std() > 0.05
        assert told["AMED predictor"] == "plain" and told["Schedule type"] == "AMED"
        assert told["AMED evaluations"] == 4 == len(webui.checkpoint.network.calls)
        assert [c["i"] for c in webui.webui.callbacks] == [0, 1, 2, 3]
        assert any("the plain solver ipndm-2 ran" in text for text in p.comments)
        webui.checkpoint.network.calls.clear()
        outs.append(out)
    assert all(torch.equal(outs[0], out) for out in outs)


@pytest.mark.parametrize("nfe", [2, 3, 8])
def test_any_nfe_without_a_predictor(webui, nfe):
    _, p = images(webui, ("auto", nfe), sampler_name="AMED")
    told = p.extra_generation_params
    assert (told["AMED evaluations"], told["AMED predictor"], p.steps) == (nfe, "plain", nfe)


def test_the_demo_models_best_plain_solver(emoji):
    """What the bench found, its analytic first step with it, in one step more."""
    _, p = images(emoji, ("plain", 6), sampler_name="AMED")
    told = p.extra_generation_params
    assert (told["AMED evaluations"], told["AMED predictor"], p.steps) == (6, "plain", 7)
    assert "AMED note" not in told  # it was asked for


def test_every_sampler_untrained(webui):
    for line in webui.samplers.LINES:
        out, p = images(webui, ("auto", 0, "untrained"), sampler_name=line.label, steps=3)
        told = p.extra_generation_params
        assert out.isfinite().all() and out.std() > 0.05
        assert told["AMED predictor"] == "untrained" and told["Schedule type"] == "AMED"
        assert told["AMED evaluations"] == 3 * line.evaluations == len(webui.checkpoint.network.calls)
        assert [c["i"] for c in webui.webui.callbacks] == [0, 1, 2]
        assert any("no predictor" in text for text in p.comments)
        webui.checkpoint.network.calls.clear()


@pytest.mark.parametrize("label, name, nfe", [
    ("AMED", "amed", 5), ("AMED Plugin DPM++ 2M", "amed_dpmpp_2m", 7), ("AMED Plugin iPNDM", "amed_ipndm", 3),
    ("AMED Multistep", "amed_multistep", 5),
])  # fmt: skip
def test_the_host_changes_nothing(emoji, label, name, nfe):
    """A generation is the engine's own result, at the evaluations that were asked for: bit for bit in Forge,
    while A1111 runs the negative prompt along even where nothing is made of it."""
    out, p = images(emoji, ("auto", nfe), sampler_name=label)
    chosen = p.extra_generation_params["AMED predictor"]
    fitted = PREDICTORS.load(chosen)
    assert fitted.nfe == nfe == p.extra_generation_params["AMED evaluations"]
    assert p.extra_generation_params["AMED NFE"] == nfe and p.steps == fitted.spec.num_steps - 1
    sigmas = fitted.sigmas().float()
    evaluate = FromModule(emoji.checkpoint.network.middle_block[-1])
    expected = direct(emoji, name, noise() * sigmas[0], sigmas, predictor=fitted, evaluate=evaluate)
    assert torch.equal(out, expected) if emoji.kind == "forge" else torch.allclose(out, expected, atol=1e-4)


def test_without_nfe_the_steps_decide(emoji):
    _, p = images(emoji, steps=3)
    assert p.extra_generation_params["AMED predictor"] == "emoji32-amed-nfe5-cfg1.safetensors"
    assert "AMED NFE" not in p.extra_generation_params


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("prompt", ["3", "3 AND 5"])
def test_guidance_and_the_conditional_bottleneck(emoji, batched, prompt):
    """The MLP is fed the first prompt's rows, whatever order and calls the host runs them in."""
    emoji.webui.batched = batched
    out, p = images(emoji, (MLP,), prompt=prompt, cfg_scale=2.0, batch_size=2)
    prompts = prompt.count("AND") + 1
    assert p.extra_generation_params["AMED evaluations"] == 5
    assert p.extra_generation_params["AMED network passes"] == 5 * (prompts + 1)
    assert "AMED note" not in p.extra_generation_params
    if prompts == 1:  # which rows of several prompts is test_evaluate's
        fitted = PREDICTORS.load(MLP)
        sigmas = fitted.sigmas().float()
        args = {"cond": {"context": torch.tensor([3, 3])}, "uncond": {"context": torch.tensor([10, 10])}}
        evaluate = FromModule(emoji.checkpoint.network.middle_block[-1])
        guided = Guided(wrapped(emoji), 2.0)
        settings = {"predictor": fitted, "evaluate": evaluate}
        expected = sample_amed(guided, noise(2) * sigmas[0], sigmas, args, None, True, **settings)
        assert torch.allclose(out, expected, atol=2e-4)


@pytest.fixture
def by_halves(webui):
    """Saves iPNDM-2 over 4 steps as two predictors: whole.safetensors, and halves.safetensors whose weights
    on what guidance adds are 1.5 times those on the unconditional slope: at CFG scale 2 it does what the
    other does at 3."""
    times = schedules.make("discrete", 5, *webui.host.sigma_range(wrapped(webui)))
    whole = as_multistep(Solver("ipndm", 2), times)
    weights = torch.cat([whole.weights, 1.5 * whole.weights], dim=-1)
    for name, table in (("whole", whole), ("halves", Multistep(times, weights, parts="guidance"))):
        spec = Spec.on(Solver("multistep"), times, parts=table.parts, guidance=2.0, model_family="sd15")
        save(webui.host.user_folder() / f"{name}.safetensors", Fitted(spec, table, times))
    return webui


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("settings", [
    {}, {"prompt": "3 AND 5", "batch_size": 2}, {"s_min_uncond": 3.0},
    {"image": torch.full((1, 3, 32, 32), 0.7)},
])  # fmt: skip
def test_the_halves_of_guidance_have_weights_of_their_own(by_halves, batched, settings):
    by_halves.webui.batched = batched
    settings = {"sampler_name": "AMED Multistep", "denoising_strength": 0.8, **settings}
    if "image" in settings:
        settings["mask"] = torch.zeros(1, 1, 32, 32)
        settings["mask"][..., :16] = 1
    out, p = images(by_halves, ("halves.safetensors",), cfg_scale=2.0, **settings)
    told = dict(p.extra_generation_params)
    expected, p = images(by_halves, ("whole.safetensors",), cfg_scale=3.0, **settings)
    assert torch.allclose(out, expected, atol=2e-3)
    plain, _ = images(by_halves, ("whole.safetensors",), cfg_scale=2.0, **settings)
    assert not torch.allclose(plain, expected, atol=5e-2)
    costs = [told[f"AMED {what}"] for what in ("evaluations", "network passes")]
    assert costs == [p.extra_generation_params[f"AMED {what}"] for what in ("evaluations", "network passes")]
    assert no_hooks(by_halves.checkpoint.network) and no_hooks(wrapped(by_halves))
    objects = getattr(by_halves.checkpoint, "forge_objects", None)
    assert objects is None or objects.unet.model_options == {}


@pytest.fixture
def spared(webui):
    """Saves a table of 4 evaluations that takes what guidance adds from the second one on from there
    (spared.safetensors), and the same without leaving a pass out (unspared.safetensors)."""
    times = schedules.make("discrete", 5, *webui.host.sigma_range(wrapped(webui)))
    weights = torch.zeros(4, 3, 2)
    weights[..., :2, 0] = as_multistep(Solver("ipndm", 2), times).weights[..., 0]
    for step, lag in enumerate((0, 0, 1, 2)):
        weights[step, lag, 1] = 1
    for name, alone in (("spared", (2, 3)), ("unspared", ())):
        table = Multistep(times, weights, parts="halves", alone=alone)
        spec = Spec.on(Solver("multistep"), times, parts=table.parts, guidance=2.0, model_family="sd15")
        save(webui.host.user_folder() / f"{name}.safetensors", Fitted(spec, table, times))
    return webui


def test_a_pass_can_be_spared(spared):
    settings = {"sampler_name": "AMED Multistep", "cfg_scale": 2.0, "batch_size": 2}
    out, p = images(spared, ("spared.safetensors",), **settings)
    expected, full = images(spared, ("unspared.safetensors",), **settings)
    assert torch.allclose(out, expected, atol=1e-4)
    told, all_of_them = p.extra_generation_params, full.extra_generation_params
    assert told["AMED evaluations"] == all_of_them["AMED evaluations"] == 4
    assert all_of_them["AMED network passes"] == 8
    assert told["AMED network passes"] == (6 if spared.kind == "forge" else 8)  # A1111 runs it in vain
    assert "AMED note" not in told


def test_where_guidance_stays_whole_it_is_not_taken_apart(spared):
    objects = getattr(spared.checkpoint, "forge_objects", None)
    if objects is None:
        return  # A1111 has no such patches
    objects.unet.model_options["sampler_post_cfg_function"] = [lambda args: args["denoised"]]
    with pytest.raises(PredictorError, match="spared.safetensors .* takes the halves of guidance apart"):
        images(spared, ("spared.safetensors",), sampler_name="AMED Multistep", cfg_scale=2.0)


def test_without_guidance_the_halves_are_one(by_halves):
    settings = {"sampler_name": "AMED Multistep", "cfg_scale": 1.0}
    out, _ = images(by_halves, ("halves.safetensors",), **settings)
    expected, _ = images(by_halves, ("whole.safetensors",), **settings)
    assert torch.allclose(out, expected, atol=1e-4)


def test_hooks_are_gone(emoji):
    images(emoji, (MLP,), cfg_scale=2.0)
    assert no_hooks(emoji.checkpoint.network)


def no_hooks(network):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_interruption(emoji, button):
    """It stops at the next evaluation; the host has its last latent, the model no hook."""
    seen = []

    def interrupt(denoiser):
        seen.append(denoiser.step)
        if len(seen) == 3:
            setattr(emoji.webui.shared.state, button, True)

    emoji.webui.before_evaluation = interrupt
    out, p = images(emoji, (MLP,), cfg_scale=2.0)
    assert len(seen) == 3 and out.isfinite().all() and no_hooks(emoji.checkpoint.network)
    assert p.extra_generation_params["AMED evaluations"] == 4  # the fourth was asked for and refused


def test_skipped_negative_rows(emoji):
    """s_min_uncond leaves the negative rows of some evaluations out: the capture still finds the prompt's."""
    _, p = images(emoji, (MLP,), cfg_scale=2.0, s_min_uncond=100.0)
    told = p.extra_generation_params
    assert told["AMED network passes"] == 5 + 3 and "AMED note" not in told


def test_a_model_without_a_middle_block(emoji):
    emoji.checkpoint.network.middle_block = None
    emoji.checkpoint.network._modules.pop("middle_block")
    _, p = images(emoji, (MLP,), cfg_scale=2.0)
    assert "zeros in its place" in p.extra_generation_params["AMED note"]
    assert any("zeros" in text for text in p.comments)


def test_refiner(emoji, denoiser):
    """The network is another one from some evaluation on: rows are counted and captured there."""
    import restated

    other = restated.Network(denoiser)

    def swap(cfg):
        if cfg.step == 2:
            objects = getattr(emoji.checkpoint, "forge_objects", None)
            (objects.unet.model if objects else emoji.checkpoint.model).diffusion_model = other
            emoji.checkpoint.network = other

    first = emoji.checkpoint.network
    emoji.webui.before_evaluation = swap
    out, p = images(emoji, (MLP,), cfg_scale=2.0)
    assert len(first.calls) == 2 and len(other.calls) == 3 and out.isfinite().all()
    assert no_hooks(first) and no_hooks(other)


# --- NFE, predictor, fallback ------------------------------------------------------------------------------


def test_a_named_predictor_sets_the_steps(webui):
    _, p = images(webui, (MLP,))
    assert p.steps == 3 and p.extra_generation_params["AMED predictor"] == MLP
    assert "emoji32" in p.extra_generation_params["AMED note"]  # this is sd15


def test_a_plain_solvers_file_runs_as_multistep(webui):
    """What a calibration keeps where no fit won; Heun takes two evaluations a step."""
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
    """Under the sampler that was calibrated, which takes two evaluations per step; it takes one itself."""
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
    """One noise level and 0: the denoised image, whatever was named."""
    for name in ("auto", MLP):
        out, p = images(emoji, (name,), scheduler="Karras", image=torch.zeros(1, 3, 32, 32), steps=3,
                        denoising_strength=0.1)  # fmt: skip
        told = p.extra_generation_params
        assert told["AMED evaluations"] == 1 and "AMED note" not in told and out.isfinite().all()


@pytest.mark.parametrize("args, label, words", [
    ((MLP,), "AMED Plugin iPNDM", "choose that sampler"),
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
    """Never in `process`, whose exceptions the hosts only print."""
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
    """A generation another extension started: the settings count."""
    p = emoji.Processing(steps=3)
    emoji.generate(p, None)
    assert p.extra_generation_params["AMED evaluations"] == 5


# --- schedules and passes ----------------------------------------------------------------------------------


def test_another_schedule(emoji):
    """No table is stretched onto it: the plain solver runs, and following the advice runs the predictor."""
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
        sigmas = webui.host.schedule(n, float(wrap.sigmas[0]), float(wrap.sigmas[-1]), wrap, "cpu")
        assert len(sigmas) == n + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert float(sigmas[0]) == pytest.approx(float(wrap.sigmas[-1]))


def test_img2img(emoji):
    """The lower part of the predictor's own schedule, without the analytic first step."""
    image = torch.zeros(1, 3, 32, 32)
    _, p = images(emoji, image=image, steps=3, denoising_strength=0.5)
    assert p.extra_generation_params["AMED evaluations"] == 4
    assert "AMED note" not in p.extra_generation_params
    fitted = PREDICTORS.load(p.extra_generation_params["AMED predictor"])
    assert [c["sigma"] for c in emoji.webui.callbacks] == fitted.sigmas()[1:3].float().tolist()


def test_the_nearest_predictor_is_for_lower_parts_alone(emoji):
    """Steps that nobody fitted: img2img takes the nearest predictor, a whole generation the plain solver."""
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
    """The kept part stays as the host wants it: no analytic first step, which knows no mask."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    image = torch.full((1, 3, 32, 32), 0.7)
    out, p = images(emoji, ("auto", 5), image=image, mask=mask, denoising_strength=1.0)
    assert p.extra_generation_params["AMED evaluations"] == 6
    assert (out[..., :16] - 0.7).abs().max() < 1e-6 and (out[..., 16:] - 0.7).abs().max() > 0.2


def test_hires_fix(emoji):
    """The second pass has its own predictor and its own words; its steps are more than it runs."""
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
    """A host that samples in half precision: near what it gives in full."""
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
