"""Random graphs around every node (graphs/) in a real ComfyUI: a fixed number of seeds, and proof that each
invariant can fail. `make graphs` runs an hour of them."""

import math
import random
from dataclasses import replace

import pytest
import torch
from comfyui.graphs import files, invariants
from comfyui.graphs.ingredients import INGREDIENTS
from comfyui.graphs.invariants import Broken, Invalid
from comfyui.graphs.recipe import BASES, Recipe, common, draw, from_json, to_json
from comfyui.graphs.runner import FAILED, INVALID, RUNS, Runner, Running, text_of
from comfyui.graphs.ways import WAYS
from comfyui.predictor_kinds import times_of

from amed import Fitted, Solver, Spec, load, save
from amed.constants import as_multistep

SEEDS = [seed for seed in range(100) if not WAYS[draw(seed).way].slow][:40]
FIT = next(seed for seed in range(1000) if draw(seed).way == "Calibrate AMED" and draw(seed)["noise"] == 3)
"""Of graphs without fits, and of one that calibrates, from the usual seed."""


@pytest.fixture(scope="module")
def runner(server):
    written = files.write(server.base)
    yield Runner(server)
    for file in written:
        file.unlink(missing_ok=True)


# --- the graphs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [*SEEDS, FIT])
def test_random_graph(runner, seed):
    outcome = runner.check(draw(seed))
    assert outcome.state != FAILED, "\n\n".join(map(text_of, outcome.failures))


# --- what is drawn -----------------------------------------------------------------------------------------


def test_a_seed_is_a_recipe():
    for seed in range(200):
        recipe = draw(seed)
        assert from_json(to_json(recipe)) == recipe == draw(seed)


def test_everything_is_drawn():
    recipes = [draw(seed) for seed in range(3000)]
    assert {recipe.way for recipe in recipes} == {name for name, own in WAYS.items() if own.often}
    assert {recipe.base for recipe in recipes} == set(BASES)
    assert {name for recipe in recipes for name, _ in recipe.ingredients} == set(INGREDIENTS)


# --- each invariant can fail -------------------------------------------------------------------------------


def usual(way: str = "AMED KSampler", **settings) -> Recipe:
    """A recipe without ingredients, on the small U-Net."""
    own = common(random.Random(0), "sd15") | {
        "width": 64,
        "height": 64,
        "batch": 2,
        "dtype": "fp32",
        "cfg": 2.0,
    }
    own |= {"sampler": "auto", "nfe": 4, "file": "small-sd15-amed.safetensors", "if_missing": "error",
            "denoise": 1.0, "noise": 3, "workflow": False}  # fmt: skip
    return Recipe(-1, "sd15", way, own | settings)


@pytest.fixture
def case(runner):
    """`case(recipe)`: a Case that was run, and is as it should be so far."""

    def made(recipe: Recipe) -> Running:
        own = Running(runner, recipe, runner.files())
        assert own.whole.error is None, own.whole.error
        return own

    return made


@pytest.fixture(scope="module")
def sound(runner):
    """One run that every test of this part may look at, and copy."""
    own = Running(runner, usual(), runner.files())
    for invariant in invariants.INVARIANTS:
        invariant(own)
    return own


def broken(invariant, case, said: str) -> None:
    with pytest.raises(Broken, match=said):
        invariant(case)


def altered(case: Running, recipe: Recipe | None = None, **run) -> Running:
    """The same run with something else in it, or of another recipe."""
    return replace(case, recipe=recipe or case.recipe, done={"whole": replace(case.whole, **run)})


def test_an_error_of_internals_is_found(runner):
    outcome = runner.check(usual(fault="raises"))
    assert outcome.state == FAILED and "TypeError" in outcome.failures[0].text


def test_a_dead_server_is_found_and_started_again(runner):
    outcome = runner.check(usual(fault="dies"))
    assert outcome.state == FAILED and "exit code 3" in outcome.failures[0].text
    assert runner.check(usual(), invariants.INVARIANTS[:1]).state == RUNS


def test_a_hang_is_found(runner, monkeypatch):
    monkeypatch.setattr("comfyui.graphs.runner.TIMEOUT", 0.0)
    monkeypatch.setattr(runner.server, "stop", lambda: None)  # it does not hang
    monkeypatch.setattr(runner.server, "start", lambda timeout: None)
    outcome = runner.check(usual(nfe=4, noise=99))
    assert outcome.state == FAILED and "took longer" in outcome.failures[0].text


def test_a_graph_that_the_host_cannot_run_is_no_failure(runner):
    assert runner.check(usual(fault="", dtype="none")).state == INVALID


@pytest.mark.parametrize(("said", "why"), [
    ("unsupported operand type(s) for *: 'Tensor' and 'NoneType'", "internals"),
    ("The size of tensor a (2) must match the size of tensor b (8)", "internals"),
    ("'function' object has no attribute 'latent_image'", "internals"),
    ("KeyError: 'outside'", "too little"),
    ("it failed", "too little"),
    ("Value 5 bigger than max of 3: seed is refused", "internals"),
    ("this is one line too many\n" * 6, "too long"),
])  # fmt: skip
def test_a_line_that_is_not_clear(said, why):
    assert why in invariants.unclear(said)


def test_a_line_that_is_clear():
    line = "denoise 0.01 starts at the noise level 0.03, below this schedule's last one (0.04): raise denoise"
    assert invariants.unclear(line) is None


def test_an_image_that_is_not_finite_or_blank_is_found(sound):
    for value, said in ((math.nan, "not finite"), (0.0, "blank")):
        latents = [torch.full_like(v, value) for v in sound.whole.latents]
        broken(invariants.images_are_whole, altered(sound, latents=latents), said)


def test_a_wrong_count_is_found(sound):
    seen = sound.whole.seen
    more = altered(sound, seen=seen | {"evaluations": seen["evaluations"] + 1})
    broken(invariants.counts_are_true, more, "4 evaluations reported, 5 counted")
    broken(
        invariants.counts_are_true, altered(sound, seen=seen | {"rows": 2 * seen["rows"]}), "passes an image"
    )
    broken(invariants.counts_are_true, altered(sound, said={}), "no report")


def test_a_wrong_count_of_evaluations_used_is_found(case):
    own = case(usual("counted"))
    invariants.counts_are_true(own)
    used = {node: ["5 evaluations, 16 rows through the network"] for node in own.whole.sampled.used}
    broken(invariants.counts_are_true, altered(own, said=own.whole.said | used), "Evaluations Used")


def test_other_evaluations_than_asked_for_are_found(sound):
    other = altered(sound, sound.recipe.set(nfe=5))
    broken(invariants.takes_the_evaluations_asked_for, other, "nfe 5 was asked for, 4")


@pytest.mark.parametrize(("text", "said"), [
    ("predictor: small-sd15-amed.safetensors, from the workflow (amed)", "carried nothing"),
    ("predictor: small-sd15-other.safetensors (amed)", "there is no"),
    ("predictor: small-sd15-bands.safetensors (multistep)", "was chosen"),
    ("note: 'NoneType' object is not callable", "internals"),
    ("note: set nfe to 4", "followed already"),
    ("note: set sampler to auto", "followed already"),
])  # fmt: skip
def test_an_untrue_report_is_found(sound, text, said):
    planted = {node: [text] for node in sound.whole.sampled.runs}
    broken(invariants.report_is_true, altered(sound, said=planted), said)


def test_internals_in_a_text_are_found(case):
    own = case(usual("files"))
    invariants.no_text_speaks_of_internals(own)
    planted = {
        node: ["AttributeError: 'int' object has no attribute 'x'"] for node in own.whole.sampled.texts
    }
    broken(invariants.no_text_speaks_of_internals, altered(own, said=planted), "has no attribute")


@pytest.mark.parametrize(("fault", "said"), [("leaves", "model_options"), ("bends", "network")])
def test_what_is_left_is_found(case, fault, said):
    broken(invariants.nothing_is_left, case(usual(fault=fault, weights=7)), said)


def test_another_image_afterwards_is_found(sound):
    other = altered(sound, after={"changed": [], "away": 0.1})
    broken(invariants.nothing_is_left, other, "another image afterwards")


def test_running_again_is_found(case):
    broken(invariants.again_is_cached, case(usual(fault="changes")), "run again: AMEDKSampler")


def test_another_image_in_a_batch_is_found(sound):
    other = sound.whole.latents[0].clone()
    other[-1] *= 1.05
    broken(invariants.same_alone_and_in_lists, altered(sound, latents=[other]), "number 1 alone")


def test_a_batch_that_the_host_mixes_is_no_failure(case):
    invariants.same_alone_and_in_lists(case(usual(fault="mixes")))


def test_another_plain_solver_is_found(case, monkeypatch):
    own = case(usual("AMED Plain Solver", solver="Heun", schedule="polynomial", rho=7.0, zero=False))
    invariants.plain_is_the_hosts(own)
    monkeypatch.setitem(invariants.HOST, "Heun", "euler")
    broken(invariants.plain_is_the_hosts, own, "not the host's euler")


def test_a_mask_that_keeps_nothing_is_found(case):
    own = case(replace(usual(), ingredients=[("from an image", {}), ("noise mask", {"kind": "hard"})]))
    invariants.masks_keep(own)
    latents = [v * 1.5 for v in own.whole.latents]
    broken(invariants.masks_keep, altered(own, latents=latents), "away from the start")


def test_a_fit_that_runs_on_a_merge_is_found(runner, sound, monkeypatch):
    """As if the file, which names no checkpoint, had been fitted to this one."""
    fitted = replace(load(runner.folder / "small-sd15-amed.safetensors"), name="small-sd15-")
    monkeypatch.setattr(Running, "fits", [fitted])
    fit = altered(sound, replace(sound.recipe.set(wrapped=""), way="Calibrate AMED"))
    broken(invariants.fits_are_for_their_checkpoint, fit, "runs on a merge")


def test_a_list_of_checkpoints_in_which_one_is_the_other_is_found(case):
    own = case(usual("list of checkpoints", batch=1))
    invariants.list_of_checkpoints_is_each(own)
    other = altered(own, latents=own.whole.latents[::-1])
    broken(invariants.list_of_checkpoints_is_each, other, "the first checkpoint in a list")


@pytest.mark.parametrize(("metrics", "said"), [
    ({"error": math.inf}, "states the error inf"),
    ({"error": math.nan}, "states the error nan"),
    ({}, "states the error None"),
    ({"error": 0.4, "plain_error": 0.3}, "its best plain solver 0.3"),
    ({"error": 112.0, "plain_error": 112.0}, "auto takes"),
])  # fmt: skip
def test_a_fit_that_is_worth_nothing_is_found(runner, sound, monkeypatch, metrics, said):
    """The file is there, and auto takes it: what it states is right, only not in what is looked at here."""
    times = times_of("sd15", 8)  # 7 evaluations: no other file of this family has them
    spec = Spec(solver="multistep", num_steps=8, schedule="custom", sigma_min=float(times[-1]), guidance=2.0,
                sigma_max=float(times[0]), model_family="sd15", metrics={"error": 0.1})  # fmt: skip
    fitted = Fitted(spec, as_multistep(Solver("ipndm", 2), times), times)
    path = save(runner.folder / "worthless.safetensors", fitted)
    stated = replace(fitted, spec=replace(spec, metrics=metrics), name=path.name)
    monkeypatch.setattr(Running, "fits", [stated])
    try:
        fit = altered(sound, replace(sound.recipe, way="Calibrate AMED"))
        broken(invariants.fits_are_sound, fit, said)
    finally:
        path.unlink()


def test_a_fit_that_a_cache_answered_is_found(sound):
    recipe = replace(sound.recipe, way="Calibrate AMED", ingredients=[("LazyCache", {})])
    few = altered(sound, recipe, seen=sound.whole.seen | {"forwards": 0})
    broken(invariants.fits_are_sound, few, "answered by a cache")


def test_a_comparison_of_other_evaluations_is_found(case):
    own = case(usual("Compare AMED", samplers="plain\neuler / karras", seeds=1, reference=8))
    invariants.pictures_are_sound(own)
    broken(
        invariants.pictures_are_sound, altered(own, own.recipe.set(nfe=3)), "plain took 4 evaluations of 3"
    )


def test_a_failure_is_shrunk(runner):
    ingredients = [("CFGZeroStar", {}), ("RescaleCFG", {"multiplier": 0.7}), ("ConditioningCombine", {})]
    recipe = replace(usual(fault="raises"), ingredients=ingredients)
    failure = runner.check(recipe, invariants.INVARIANTS[:1]).failures[0]
    smallest = runner.shrink(failure).recipe
    assert smallest.ingredients == [] and smallest["batch"] == 1
    assert from_json(to_json(smallest)) == smallest


def test_invalid_is_no_failure_of_ours():
    assert not issubclass(Invalid, Broken)
