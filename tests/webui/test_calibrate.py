"""Calibrating inside the restated hosts: what the AMED tab and its API do."""

from dataclasses import replace

import pytest
import torch

from amed import load, save
from amed.fit import smallest_budget

QUICK = {
    "prompts": "3\n5",
    "width": 64,
    "height": 64,
    "guidance": 2.0,
    "nfe": "3",
    "budget": smallest_budget(3),
}


@pytest.fixture
def small(webui, small_latents):
    return webui, QUICK


def test_it_is_saved_and_found(small):
    webui, told = small
    budget = 2500
    told = {**told, "budget": budget}
    seen = []
    state = webui.webui.shared.state
    webui.webui.before_evaluation = lambda cfg: seen.append((state.job, state.sampling_step, state.textinfo))
    outcome = webui.calibrate.started(webui.calibrate.Form.of(told))
    webui.webui.before_evaluation = None
    assert outcome.saved == ["emoji-multistep-nfe3-cfg2.safetensors"] and not outcome.interrupted
    fitted = load(webui.host.user_folder() / outcome.saved[0])
    spec = fitted.spec
    assert (fitted.nfe, spec.guidance, spec.solver) == (3, 2.0, "multistep")
    assert spec.model_fingerprint == webui.host.identity(webui.checkpoint).fingerprint
    assert spec.model_name == "emoji" and spec.prediction_type == "eps"
    assert spec.sigma_max == pytest.approx(14.6146, rel=1e-4)
    result = outcome.fits[0].result
    assert result.rows[0].error <= result.rows[1].error and result.evaluations <= budget
    assert "of the best plain solver" in outcome.text or "is kept" in outcome.text
    assert f"saved as {outcome.saved[0]} in {webui.host.user_folder()}" in outcome.text
    assert outcome.pictures[0].width > 400
    steps = [step for _, step, _ in seen]
    assert seen[1][0] == "AMED calibration" and steps == sorted(steps) and steps[-1] > 0.9 * budget
    assert "references" in seen[60][2] and state.job == ""

    p = webui.Processing(sampler_name="AMED Multistep", cfg_scale=2.0, prompt="3")
    webui.generate(p, webui.script, ("auto", 3))
    assert p.extra_generation_params["AMED predictor"] == outcome.saved[0]
    assert p.extra_generation_params["AMED evaluations"] == 3 and "AMED note" not in p.extra_generation_params


def test_each_sample_is_guided_by_its_own_prompt(small):
    """A batch of several prompts is what each alone would be."""
    webui, _ = small
    p = webui.Processing(prompt=["3", "5"], cfg_scale=2.0, batch_size=2, height=64, width=64, steps=2)
    told = {}

    def keep(model, x, sigmas, extra_args, callback):
        ask = webui.calibrate.OfPrompts(model, extra_args)
        told["mixed"] = ask(x[[0, 0, 0]], sigmas[:1].expand(3), torch.tensor([1, 0, 1]))
        told["alone"] = [ask(x[:1], sigmas[:1], torch.tensor([i])) for i in (1, 0)]
        told["steps"] = model.step
        prompt = {"prompt": torch.tensor([1, 0])}
        wants = frozenset({"bottleneck", "halves"})
        told["seen"] = ask.evaluate(ask, x[[0, 0]], sigmas[:1].expand(2), prompt, wants)
        return x

    p.amed = webui.run.Wish(calibrate=keep)
    webui.generate(p, None)
    assert torch.allclose(told["mixed"][:1], told["alone"][0], atol=1e-4)
    assert torch.allclose(told["mixed"][1:2], told["alone"][1], atol=1e-4)
    assert torch.equal(told["mixed"][0], told["mixed"][2]) and told["steps"] == 1
    assert not torch.allclose(told["alone"][0], told["alone"][1], atol=1e-2)
    seen = told["seen"]  # and what a fit may ask of it besides
    assert torch.allclose(seen.denoised, seen.uncond + 2 * (seen.cond - seen.uncond), atol=1e-4)
    assert torch.allclose(seen.denoised, told["mixed"][:2], atol=1e-4) and len(seen.bottleneck) == 2


def interrupted(webui, filled, when):
    """A calibration that is interrupted as soon as `when(number of evaluations, the progress's text)`."""
    seen, state = [], webui.webui.shared.state

    def interrupt(cfg):
        seen.append(state.sampling_step)
        if when(len(seen), state.textinfo or ""):
            state.interrupt()

    webui.webui.before_evaluation = interrupt
    outcome = webui.calibrate.started(webui.calibrate.Form.of(filled))
    webui.webui.before_evaluation = None
    assert when(len(seen), state.textinfo) and outcome.interrupted and "Interrupted" in outcome.text
    assert not state.interrupted  # the next generation runs
    return outcome, seen


@pytest.mark.parametrize("after, saved", [(20, 0), (400, 1)])
def test_interruption_keeps_what_there_is(small, after, saved):
    webui, filled = small
    outcome, seen = interrupted(webui, {**filled, "name": "mine"}, lambda count, text: count == after)
    assert len(seen) == after and len(outcome.saved) == saved
    assert [path.name for path in webui.host.user_folder().glob("*")] == outcome.saved


# hosts do not differ in these, which take long
in_one = pytest.mark.parametrize("webui", ["a1111"], indirect=True)


@in_one
def test_what_is_finished_is_not_lost(small):
    """An interrupted calibration, and one that came out worse, leave a finished file of the same name alone,
    and say so."""
    webui, filled = small
    first = webui.calibrate.started(webui.calibrate.Form.of(filled))
    file = webui.host.user_folder() / first.saved[0]
    fitted = load(file)
    better = {**fitted.spec.metrics, "error": 1e-6}
    save(file, replace(fitted, spec=replace(fitted.spec, metrics=better)))
    best = file.read_bytes()

    stopped, _ = interrupted(webui, {**filled, "seed": 1}, lambda count, text: count == 400)
    assert file.read_bytes() == best and stopped.saved == ["emoji-multistep-nfe3-cfg2-2.safetensors"]
    assert f"{file.name} stays, it is finished" in stopped.text and "(unfinished)" in stopped.text

    worse = webui.calibrate.started(webui.calibrate.Form.of(filled))
    assert not worse.interrupted and file.read_bytes() == best and worse.saved == stopped.saved
    assert f"{file.name} stays, its error is less" in worse.text
    assert load(worse.fits[0].path).spec.metrics["finished"]  # in place of the unfinished one


@in_one
def test_several_numbers_of_evaluations(small):
    """One job: its progress goes on from one to the next, and an interruption keeps what was finished
    before."""
    webui, filled = small
    filled = {**filled, "nfe": "2, 3", "budget": smallest_budget(3)}

    def fitting(count, text):
        return text.startswith("AMED, 3 evaluations:") and "held-out error" in text

    outcome, steps = interrupted(webui, filled, fitting)
    assert outcome.saved == [f"emoji-multistep-nfe{nfe}-cfg2.safetensors" for nfe in (2, 3)]
    assert [load(kept.path).spec.metrics["finished"] for kept in outcome.fits] == [True, False]
    total = webui.webui.shared.state.sampling_steps
    assert steps == sorted(steps) and total == 2 * smallest_budget(3) > steps[-1] > smallest_budget(3)
    assert len(outcome.pictures) == 2 and outcome.text.count("saved as") == 2


@in_one
@pytest.mark.parametrize("sampler, solver", [("AMED Plugin UniPC", "unipc"), ("AMED Plugin DEIS", "deis")])
def test_the_new_samplers(small, sampler, solver):
    """Calibrated, and found."""
    webui, filled = small
    filled = {**filled, "sampler": sampler, "nfe": "2", "budget": smallest_budget(2)}
    outcome = webui.calibrate.started(webui.calibrate.Form.of(filled))
    fitted = load(outcome.fits[0].path)
    if outcome.fits[0].result.improved:
        assert (fitted.nfe, fitted.spec.solver) == (2, solver)
        p = webui.Processing(sampler_name=sampler, cfg_scale=2.0)
        webui.generate(p, webui.script, ("auto", 2))
        assert p.extra_generation_params["AMED predictor"] == outcome.saved[0]
        assert p.extra_generation_params["AMED evaluations"] == 2
    else:
        assert "is kept" in outcome.text and fitted.spec.sampler == "amed_multistep"


@pytest.mark.parametrize("change, words", [
    ({"prompts": " \n"}, "1 to 8"), ({"prompts": "a\n" * 9}, "1 to 8"), ({"nfe": "five"}, "nfe is 'five'"),
    ({"nfe": "1"}, "nfe is"), ({"width": 100}, "by eights"), ({"height": 8}, "64 to 4096"),
    ({"sampler": "Euler a"}, "choose one of AMED"), ({"budget": "big"}, "quick"),
    ({"guidance": -1}, "above 0"),
    ({"colour": "red"}, "no such field: colour"), ({"batch": "x"}, "not a calibration"),
])  # fmt: skip
def test_what_cannot_be(webui, change, words):
    with pytest.raises(ValueError, match=words):
        webui.calibrate.Form.of({**QUICK, **change})


def test_a_bad_name_costs_nothing(webui):
    form = webui.calibrate.Form.of({**QUICK, "name": "../mine"})
    with pytest.raises(ValueError, match="is no file name"):
        webui.calibrate.started(form)
    assert webui.checkpoint.network.calls == []


def test_the_tab_says_what_went_wrong(webui):
    assert list(webui.ui.followed({"prompts": ""}))[0][0].startswith("prompts:")
    told = list(webui.ui.followed({**QUICK, "name": "a/b"}))
    assert "is no file name" in told[-1][0] and told[-1][1] == []
