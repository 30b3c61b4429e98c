"""Calibrating inside the restated hosts: what the AMED tab and its API do."""

from types import SimpleNamespace

import pytest
import torch

from amed import load
from amed.calibration import smallest

QUICK = {"prompts": "3\n5", "width": 64, "height": 64, "guidance": 2.0, "nfe": "3", "budget": smallest(3)}


@pytest.fixture
def small(webui, monkeypatch):
    """Samples of 8 x 8, as 64 pixels' latents are (in the restated host pixels are latents)."""
    make = webui.generate.__globals__["torch"].randn

    def latents(count, channels, *size, generator):
        return make(count, channels, *(s // 8 if s == 64 else s for s in size), generator=generator)

    monkeypatch.setattr(webui.restated, "torch", SimpleNamespace(**{**vars(torch), "randn": latents}))
    return webui, QUICK


def test_it_is_saved_and_found(small):
    webui, told = small
    seen = []
    state = webui.webui.shared.state
    webui.webui.before_evaluation = lambda cfg: seen.append((state.job, state.sampling_step, state.textinfo))
    outcome = webui.calibrate.started(webui.calibrate.Request.of(told))
    webui.webui.before_evaluation = None
    assert outcome.saved == ["emoji-multistep-nfe3-cfg2.safetensors"] and not outcome.interrupted
    fitted = load(webui.host.user_folder() / outcome.saved[0])
    spec = fitted.spec
    assert (fitted.nfe, spec.guidance, spec.solver) == (3, 2.0, "multistep")
    assert spec.model_fingerprint == webui.host.identity(webui.checkpoint).fingerprint
    assert spec.model_name == "emoji" and spec.prediction_type == "eps"
    assert spec.sigma_max == pytest.approx(14.6146, rel=1e-4)
    result = outcome.results[0]
    assert result.rows[0].error <= result.rows[1].error and result.evaluations <= QUICK["budget"]
    assert "of the best plain solver" in outcome.text or "is kept" in outcome.text
    assert outcome.pictures[0].width > 400
    steps = [step for _, step, _ in seen]
    assert seen[1][0] == "AMED calibration" and steps == sorted(steps) and steps[-1] > 0.9 * QUICK["budget"]
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
        ask = webui.calibrate.Prompted(model, extra_args)
        told["mixed"] = ask(x[[0, 0, 0]], sigmas[:1].expand(3), torch.tensor([1, 0, 1]))
        told["alone"] = [ask(x[:1], sigmas[:1], torch.tensor([i])) for i in (1, 0)]
        told["steps"] = model.step
        return x

    p.amed = webui.run.Job(calibrate=keep)
    webui.generate(p, None)
    assert torch.allclose(told["mixed"][:1], told["alone"][0], atol=1e-4)
    assert torch.allclose(told["mixed"][1:2], told["alone"][1], atol=1e-4)
    assert torch.equal(told["mixed"][0], told["mixed"][2]) and told["steps"] == 1
    assert not torch.allclose(told["alone"][0], told["alone"][1], atol=1e-2)


@pytest.mark.parametrize("after, saved", [(20, 0), (400, 1)])
def test_interruption_keeps_what_there_is(small, after, saved):
    webui, told = small
    seen = []

    def interrupt(cfg):
        seen.append(1)
        if len(seen) == after:
            webui.webui.shared.state.interrupt()

    webui.webui.before_evaluation = interrupt
    outcome = webui.calibrate.started(webui.calibrate.Request.of({**told, "name": "mine"}))
    assert len(seen) == after and outcome.interrupted and len(outcome.saved) == saved
    assert "Interrupted" in outcome.text
    assert [path.name for path in webui.host.user_folder().glob("*")] == outcome.saved
    assert not webui.webui.shared.state.interrupted  # the next generation runs


@pytest.mark.parametrize("change, words", [
    ({"prompts": " \n"}, "1 to 8"), ({"prompts": "a\n" * 9}, "1 to 8"), ({"nfe": "five"}, "nfe is 'five'"),
    ({"nfe": "1"}, "nfe is"), ({"width": 100}, "by eights"), ({"height": 8}, "64 to 4096"),
    ({"sampler": "Euler"}, "choose one of AMED"), ({"budget": "big"}, "quick"), ({"guidance": -1}, "above 0"),
    ({"colour": "red"}, "no such field: colour"), ({"batch": "x"}, "not a calibration"),
])  # fmt: skip
def test_what_cannot_be(webui, change, words):
    with pytest.raises(ValueError, match=words):
        webui.calibrate.Request.of({**QUICK, **change})


def test_a_bad_name_costs_nothing(webui):
    request = webui.calibrate.Request.of({**QUICK, "name": "../mine"})
    with pytest.raises(ValueError, match="is no file name"):
        webui.calibrate.started(request)
    assert webui.checkpoint.network.calls == []


def test_the_tab_says_what_went_wrong(webui):
    assert list(webui.ui.followed({"prompts": ""}))[0][0].startswith("prompts:")
    told = list(webui.ui.followed({**QUICK, "name": "a/b"}))
    assert "is no file name" in told[-1][0] and told[-1][1] == []
