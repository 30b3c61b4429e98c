"""The avatar model: prompts, the data recipe, and its network in the flow form."""

import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import kdiffusion
import pytest
import torch
from safetensors.torch import load_file, save_file

import amed
from amed import Solver, load, schedules
from amed.evaluate import Guided
from amed.fit.measures import Counter, run
from demo import train
from demo.avatars import data, drawing, recipe, target
from demo.avatars.attributes import ATTRIBUTES, INDEX, SIZE, STYLES, VALUES, encode, parse
from demo.avatars.model import MULTIPLE, Denoiser, SigmaForm, load_denoiser, network
from demo.recipe import MODULES

PREDICTORS = sorted((Path(amed.__file__).parents[1] / "predictors").glob("avatars32-*.safetensors"))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("pixel art, red hair, glasses, blue background",) * 2,
        ("Blue background, GLASSES, red hair; pixel-art", "pixel art, red hair, glasses, blue background"),
        ("a toon head with long hair and a beard", "toon head, long hair, beard"),
        ("thumbs", "thumbs"),
        ("a person without glasses, happy, blonde hair", "no glasses, smiling, blond hair"),
        ("", ""),
        (" ,, \n", ""),
    ],
)
def test_a_text_names_attributes_in_any_order(text, values):
    prompt = parse(text)
    assert set(prompt.values) == set(filter(None, values.split(", "))) and prompt.warning() == ""


def test_the_order_of_a_text_does_not_matter():
    words = ["lorelei", "green hair", "dark skin", "pink background", "no beard"]
    shuffled = random.Random(3).sample(words, len(words))
    assert parse(", ".join(words)).values == parse(", ".join(shuffled)).values


def test_each_value_names_itself():
    assert [parse(value).values for value in VALUES] == [(value,) for value in VALUES]


@pytest.mark.parametrize("text", ["红头发，眼镜", "cat riding a bicycle", "masterpiece, best quality"])
def test_unknown_words_are_in_the_warning(text):
    prompt = parse(text)
    assert prompt.values == () and prompt.unknown
    assert prompt.warning() == f"unknown to the avatar model: {', '.join(prompt.unknown)}"


def test_a_long_text_has_a_short_warning():
    prompt = parse(" ".join(f"word{i}" for i in range(5000)) + " pixel art")
    assert prompt.values == ("pixel art",) and len(prompt.warning()) < 200
    assert prompt.warning().endswith("and 4992 more")


def test_the_last_of_two_values_is_used():
    prompt = parse("red hair, glasses, blue hair")
    assert prompt.values == ("blue hair", "glasses") and prompt.replaced == ("red hair",)
    assert prompt.warning() == "replaced by a later value: red hair"


@pytest.mark.parametrize(
    ("text", "values", "hidden"),
    [
        ("smiling toon head, long hair", ("toon head", "long hair"), ("smiling",)),
        ("thumbs with a beard, blue background", ("thumbs", "blue background"), ("beard",)),
        ("smiling, glasses", ("glasses", "smiling"), ()),
    ],
)
def test_what_a_style_does_not_show_is_named_and_not_used(text, values, hidden):
    """The model has not seen both together, and would draw another style."""
    prompt = parse(text)
    assert (prompt.values, prompt.hidden) == (values, hidden)
    assert prompt.warning() == (f"not shown in this style: {', '.join(hidden)}" if hidden else "")


@pytest.mark.parametrize("style", STYLES)
def test_the_recipe_can_draw_each_attribute_that_a_style_shows(style):
    tables = {
        "hair colour": drawing.HAIR_COLOUR_OPTION,
        "hair length": {*drawing.HAIR, "toon head"},
        "glasses": drawing.GLASSES,
        "beard": drawing.BEARD,
        "mood": drawing.MOOD,
        "skin": drawing.SKIN_OPTION,
    }
    for attribute, styles in tables.items():
        assert drawing.has(style, attribute) == (style in styles)


def test_a_vector_has_one_at_each_value():
    vector = encode(("pixel art", "sad"))
    assert vector.shape == (SIZE,) and vector.sum() == 2 and vector[INDEX["sad"]] == 1
    assert encode(()).abs().sum() == 0
    with pytest.raises(KeyError):
        encode(("moustache",))


@pytest.mark.parametrize("style", STYLES)
def test_drawn_values_decide_the_options(style):
    """Two avatars of other values have other options, and only attributes that the style shows are drawn."""
    draw = random.Random(1)
    drawn = [drawing.drawn(draw, style) for _ in range(40)]
    assert all(set(values) == {a for a in ATTRIBUTES if drawing.has(style, a)} for values in drawn)
    assert all(value in ATTRIBUTES[a] for values in drawn for a, value in values.items())
    options = {str(drawing.options(values, "x")) for values in drawn}
    assert len(options) == len({str(values) for values in drawn}) > 5


def test_without_npm_the_recipe_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="install Node.js 18 or newer"):
        data.build(8)


def test_a_failed_drawing_is_reported(tmp_path, monkeypatch):
    (tmp_path / "node").write_text("#!/bin/sh\necho cannot find module >&2\nexit 1\n")
    (tmp_path / "node").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(RuntimeError, match="could not draw the avatars: cannot find module"):
        list(drawing.draw([("thumbs", {"seed": "a"})], tmp_path))


def test_attributes_are_dropped_together_and_one_by_one():
    full = torch.zeros(4000, SIZE)
    for values in ATTRIBUTES.values():
        full[:, INDEX[values[0]]] = 1
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(4000, 1)
    kept = recipe.augment(images, full, generator)[1]
    asked = kept.sum(dim=1)
    alone = recipe.EACH_DROPPED ** len(ATTRIBUTES)
    assert (asked == 0).float().mean() == pytest.approx(recipe.ALL_DROPPED + alone, abs=0.02)
    share = (1 - recipe.ALL_DROPPED) * (1 - recipe.EACH_DROPPED)
    assert kept[:, INDEX["beard"] - 1].mean() == pytest.approx(share, abs=0.03)
    assert set(kept.unique().tolist()) == {0.0, 1.0}


def test_the_loss_is_that_of_the_velocity():
    """A network that knows image and noise has loss 0, one that answers 0 has that of noise minus image."""
    x = torch.rand(512, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def exact(state, t, attributes):
        along = t.view(-1, 1, 1, 1)
        return (state - x) / along  # state = x + t (noise - x)

    labels = torch.zeros(512, SIZE)
    assert recipe.flow_loss(exact, x, labels, torch.Generator().manual_seed(2)) < 1e-6
    zero = recipe.flow_loss(lambda s, t, a: torch.zeros_like(s), x, labels, torch.Generator().manual_seed(2))
    assert zero == pytest.approx(1 + 1 / 3, rel=0.05)


def test_the_denoiser_is_the_state_minus_sigma_times_the_velocity():
    net = SimpleNamespace(input=torch.nn.Conv2d(1, 1, 1))

    class Velocity(torch.nn.Module):
        input = net.input

        def forward(self, x, t, attributes):
            return x * 0 + 2 * t.view(-1, 1, 1, 1) + attributes.sum()

    x, sigma = torch.ones(2, 3, 8, 8), torch.tensor([0.5, 1.0])
    denoised = Denoiser(Velocity())(x, sigma)
    assert denoised[0].unique().tolist() == [0.5] and denoised[1].unique().tolist() == [-1.0]


def test_the_network_takes_any_sides_that_are_multiples():
    net = network()
    assert 2e6 < sum(p.numel() for p in net.parameters()) < 4.2e6
    x = torch.zeros(1, 3, MULTIPLE, 5 * MULTIPLE)
    assert net(x, torch.ones(1), torch.zeros(1, SIZE)).shape == x.shape


@pytest.mark.parametrize("model", list(MODULES))
def test_a_training_resumes_where_it_stopped(tmp_path, monkeypatch, model):
    """A training interrupted after its checkpoint at step 2 ends with the same weights as one that is not."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(8) if model == "emoji32" else torch.eye(8, SIZE, dtype=torch.uint8)
    save_file({"images": images, "labels": labels}, tmp_path / "data.safetensors")
    usual = train.recipe(model)

    def trained(name, stop=None):
        calls = []

        def loss(*args):
            calls.append(1)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return usual.loss(*args)

        monkeypatch.setattr(train, "recipe", lambda _: replace(usual, loss=loss))
        files = {"data": "data.safetensors", "checkpoint": f"{name}.pt", "out": f"{name}.safetensors"}
        paths = [word for option, file in files.items() for word in (f"--{option}", str(tmp_path / file))]
        with suppress(KeyboardInterrupt):
            train.main([model, "--fp32", "--dropout=0", "--batch=2", "--every=2", "--decay=4", *paths])
        return load_file(tmp_path / files["out"]), len(calls)

    whole, steps = trained("whole")
    _, first = trained("parts", stop=4)
    resumed, rest = trained("parts")
    assert (steps, first, rest) == (4, 4, 2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all(v.isfinite().all() and v.dtype == torch.float16 for v in whole.values())


@torch.no_grad()
def test_the_form_for_k_diffusion_gives_the_same_image():
    """iPNDM in the flow form, and k-diffusion's DPM++ 2M in the other, from the same noise."""
    flow = load_denoiser()
    form, args = SigmaForm(flow), {"attributes": encode(("thumbs", "blue background"))[None]}
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    times = schedules.make("polynomial", 60, flow.sigma_min, flow.sigma_max, 1.0)
    by_flow, _ = run(flow, noise, times, Solver("ipndm", 3), args)
    levels = schedules.make("polynomial", 60, form.sigma_min, form.sigma_max, 7.0).float()
    by_sigma = kdiffusion.sampling().sample_dpmpp_2m(form, noise * levels[0], levels, args, disable=True)
    assert by_flow.std() > 0.3 and (by_flow - by_sigma).square().mean().sqrt() < 0.03


@pytest.fixture(scope="module")
def fingerprint():
    return target(1.0).fingerprint


@pytest.mark.parametrize("file", PREDICTORS, ids=lambda file: file.stem)
def test_a_bundled_predictor_belongs_to_the_model_and_takes_its_evaluations(file, fingerprint):
    fitted = load(file)
    spec = fitted.spec
    assert (spec.model_family, spec.model_fingerprint) == ("avatars32", fingerprint)
    assert file.stem == f"avatars32-multistep-nfe{spec.nfe}-cfg{spec.guidance:g}" and spec.learned
    assert spec.metrics["error"] < spec.metrics["plain_error"]
    counter = Counter(Guided(load_denoiser(), spec.guidance))
    noise, args = target(spec.guidance).draw(torch.Generator().manual_seed(1), 1)
    end, nfe = run(counter, noise, fitted.sigmas(), spec.student, args, predictor=fitted.predictor)
    assert nfe == counter.evaluations == spec.nfe and end.isfinite().all() and end.std() > 0.2


def test_there_is_a_predictor_for_each_number_of_evaluations():
    wanted = {f"avatars32-multistep-nfe{n}-cfg{g}" for n in (4, 5, 6, 8, 10) for g in (1, 4)}
    assert {file.stem for file in PREDICTORS} == wanted
