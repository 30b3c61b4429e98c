"""Generations in the fake WebUIs, with the demo model: images, guidance, hooks, interruptions."""

import pytest
import torch
from fake_types import Network
from generations import MLP, PREDICTORS, direct, images, no_hooks, noise, wrapped

from amed import Fitted, Multistep, PredictorError, Solver, Spec, sample_amed, save, schedules
from amed.constants import as_multistep
from amed.evaluate import FromModule, Guided
from demo.avatars.attributes import SIZE, STYLES, encode
from demo.avatars.model import SigmaForm, load_denoiser


def test_every_sampler_without_a_predictor_is_the_plain_solver(webui):
    """All samplers take as many evaluations as steps, give the same image, and say so in one line."""
    outs = []
    for line in webui.samplers.ENTRIES:
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
    """The best solver of the bench has an analytic first step: one step more than evaluations."""
    _, p = images(emoji, ("plain", 6), sampler_name="AMED")
    told = p.extra_generation_params
    assert (told["AMED evaluations"], told["AMED predictor"], p.steps) == (6, "plain", 7)
    assert "AMED note" not in told  # it was asked for


class StyleNumbers(SigmaForm):
    """The avatar model, whose prompt is the number of a style; UNCONDITIONAL: none."""

    def forward(self, x, sigma, context):
        table = torch.cat([torch.stack([encode((style,)) for style in STYLES]), torch.zeros(3, SIZE)])
        return super().forward(x, sigma, table[context])


def test_every_sampler_on_the_avatar_model(webui):
    """With guidance, each comes near to a run of many steps."""
    network = Network(StyleNumbers(load_denoiser()))
    webui.checkpoint.network = network
    for holder in (webui.checkpoint,) if webui.kind == "a1111" else (webui.checkpoint.forge_objects.unet,):
        holder.model.diffusion_model = network
    told = {"prompt": "2", "cfg_scale": 3.0}
    fine, _ = images(webui, sampler_name="DPM++ 2M", steps=30, scheduler="Karras", **told)
    rough, _ = images(webui, sampler_name="Euler", steps=3, scheduler="Karras", **told)
    for line in webui.samplers.ENTRIES:
        out, p = images(webui, ("auto", 8), sampler_name=line.label, **told)
        assert p.extra_generation_params["AMED evaluations"] == 8
        assert (out - fine).square().mean() < 0.5 * (rough - fine).square().mean()


def test_every_sampler_untrained(webui):
    for line in webui.samplers.ENTRIES:
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
    """A generation equals the engine's result at the requested NFE: exactly in Forge, nearly in A1111, which
    also runs the negative prompt."""
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
    """The network predictor gets the first prompt's rows, in whatever order and calls the host runs them."""
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
    with pytest.raises(PredictorError, match="spared.safetensors .* unconditional result separately"):
        images(spared, ("spared.safetensors",), sampler_name="AMED Multistep", cfg_scale=2.0)


def test_without_guidance_the_halves_are_one(by_halves):
    settings = {"sampler_name": "AMED Multistep", "cfg_scale": 1.0}
    out, _ = images(by_halves, ("halves.safetensors",), **settings)
    expected, _ = images(by_halves, ("whole.safetensors",), **settings)
    assert torch.allclose(out, expected, atol=1e-4)


def test_hooks_are_gone(emoji):
    images(emoji, (MLP,), cfg_scale=2.0)
    assert no_hooks(emoji.checkpoint.network)


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_interruption(emoji, button):
    """The run ends at the next evaluation; the host gets its last latent, and no hook remains."""
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
    """s_min_uncond skips the negative rows of some evaluations; the prompt's rows are still found."""
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
    """A refiner replaces the network during a run: rows are counted and captured in the new one."""
    import fake_webui

    other = fake_webui.Network(denoiser)

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
