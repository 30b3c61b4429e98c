"""Random graphs around every node (graphs/) in a real ComfyUI: a fixed number of seeds, and a proof that each
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


# --- the recipes that are drawn ----------------------------------------------------------------------------


def test_a_seed_always_gives_the_same_recipe():
    for seed in range(200):
        recipe = draw(seed)
        assert from_json(to_json(recipe)) == recipe == draw(seed)


def test_every_way_and_ingredient_is_drawn():
    recipes = [draw(seed) for seed in range(3000)]
    assert {recipe.way for recipe in recipes} == {name for name, way in WAYS.items() if way.often}
    assert {recipe.base for recipe in recipes} == set(BASES)
    assert {name for recipe in recipes for name, _ in recipe.ingredients} == set(INGREDIENTS)


# --- each invariant can fail -------------------------------------------------------------------------------


def usual(way: str = "AMED KSampler", **settings) -> Recipe:
    """Return a recipe without ingredients, on the small U-Net."""
    recipe_settings = common(random.Random(0), "sd15") | {
        "width": 64,
        "height": 64,
        "batch": 2,
        "dtype": "fp32",
        "cfg": 2.0,
    }
    recipe_settings |= {"sampler": "auto", "nfe": 4, "file": "small-sd15-amed.safetensors",
                        "if_missing": "error", "denoise": 1.0, "noise": 3, "workflow": False}  # fmt: skip
    return Recipe(-1, "sd15", way, recipe_settings | settings)


@pytest.fixture
def case(runner):
    """`case(recipe)` returns a Case that has run and has no failure so far."""

    def run_case(recipe: Recipe) -> Running:
        running = Running(runner, recipe, runner.files())
        assert running.batch_run.error is None, running.batch_run.error
        return running

    return run_case


@pytest.fixture(scope="module")
def sound(runner):
    """One correct run that every test of this part may read and copy."""
    running = Running(runner, usual(), runner.files())
    for invariant in invariants.INVARIANTS:
        invariant(running)
    return running


def broken(invariant, case, expected: str) -> None:
    with pytest.raises(Broken, match=expected):
        invariant(case)


def altered(case: Running, recipe: Recipe | None = None, **run) -> Running:
    """Return a copy of a run with changed results, or with another recipe."""
    return replace(case, recipe=recipe or case.recipe, runs={"whole": replace(case.batch_run, **run)})


def test_an_internal_error_is_found(runner):
    outcome = runner.check(usual(fault="raises"))
    assert outcome.state == FAILED and "TypeError" in outcome.failures[0].text


def test_a_dead_server_is_found_and_started_again(runner):
    outcome = runner.check(usual(fault="dies"))
    assert outcome.state == FAILED and "exit code 3" in outcome.failures[0].text
    assert runner.check(usual(), invariants.INVARIANTS[:1]).state == RUNS


def test_a_hang_is_found(runner, monkeypatch):
    monkeypatch.setattr("comfyui.graphs.runner.TIMEOUT", 0.0)
    monkeypatch.setattr(runner.server, "stop", lambda: None)  # the server does not hang
    monkeypatch.setattr(runner.server, "start", lambda timeout: None)
    outcome = runner.check(usual(nfe=4, noise=99))
    assert outcome.state == FAILED and "took longer" in outcome.failures[0].text


def test_a_graph_that_the_host_cannot_run_is_no_failure(runner):
    assert runner.check(usual(fault="", dtype="none")).state == INVALID


@pytest.mark.parametrize(("message", "why"), [
    ("unsupported operand type(s) for *: 'Tensor' and 'NoneType'", "internals"),
    ("The size of tensor a (2) must match the size of tensor b (8)", "internals"),
    ("'function' object has no attribute 'latent_image'", "internals"),
    ("KeyError: 'outside'", "too little"),
    ("it failed", "too little"),
    ("Value 5 bigger than max of 3: seed is refused", "internals"),
    ("this is one line too many\n" * 6, "too long"),
])  # fmt: skip
def test_an_unclear_message_is_recognised(message, why):
    assert why in invariants.unclear(message)


def test_a_clear_message_is_recognised():
    line = "denoise 0.01 starts at the noise level 0.03, below this schedule's last one (0.04): raise denoise"
    assert invariants.unclear(line) is None


def test_an_image_that_is_not_finite_or_blank_is_found(sound):
    for value, expected in ((math.nan, "not finite"), (0.0, "blank")):
        latents = [torch.full_like(v, value) for v in sound.batch_run.latents]
        broken(invariants.images_are_whole, altered(sound, latents=latents), expected)


def test_a_wrong_count_is_found(sound):
    network_counts = sound.batch_run.network_counts
    more = altered(sound, network_counts=network_counts | {"evaluations": network_counts["evaluations"] + 1})
    broken(invariants.counts_are_true, more, "4 evaluations reported, 5 counted")
    broken(
        invariants.counts_are_true,
        altered(sound, network_counts=network_counts | {"rows": 2 * network_counts["rows"]}),
        "passes per image",
    )
    broken(invariants.counts_are_true, altered(sound, node_texts={}), "no report")


def test_a_wrong_count_of_evaluations_used_is_found(case):
    running = case(usual("counted"))
    invariants.counts_are_true(running)
    used = {node: ["5 evaluations, 16 rows through the network"] for node in running.batch_run.sampled.used}
    broken(
        invariants.counts_are_true,
        altered(running, node_texts=running.batch_run.node_texts | used),
        "Evaluations Used",
    )


def test_a_wrong_number_of_evaluations_is_found(sound):
    other = altered(sound, sound.recipe.set(nfe=5))
    broken(invariants.takes_the_evaluations_asked_for, other, "nfe 5 was asked for, 4")


@pytest.mark.parametrize(("text", "expected"), [
    ("predictor: small-sd15-amed.safetensors, from the workflow (amed)", "carried nothing"),
    ("predictor: small-sd15-other.safetensors (amed)", "there is no"),
    ("predictor: small-sd15-bands.safetensors (multistep)", "was chosen"),
    ("note: 'NoneType' object is not callable", "internals"),
    ("note: set nfe to 4", "followed already"),
    ("note: set sampler to auto", "followed already"),
])  # fmt: skip
def test_an_untrue_report_is_found(sound, text, expected):
    planted = {node: [text] for node in sound.batch_run.sampled.runs}
    broken(invariants.report_is_true, altered(sound, node_texts=planted), expected)


def test_internals_in_a_text_are_found(case):
    running = case(usual("files"))
    invariants.no_text_speaks_of_internals(running)
    planted = {
        node: ["AttributeError: 'int' object has no attribute 'x'"]
        for node in running.batch_run.sampled.texts
    }
    broken(invariants.no_text_speaks_of_internals, altered(running, node_texts=planted), "has no attribute")


@pytest.mark.parametrize(("fault", "expected"), [("leaves", "model_options"), ("bends", "network")])
def test_changes_left_on_the_model_are_found(case, fault, expected):
    broken(invariants.nothing_is_left, case(usual(fault=fault, weights=7)), expected)


def test_a_changed_image_afterwards_is_found(sound):
    other = altered(sound, after={"changed": [], "away": 0.1})
    broken(invariants.nothing_is_left, other, "another image afterwards")


def test_a_missing_cache_hit_is_found(case):
    broken(invariants.again_is_cached, case(usual(fault="changes")), "run again: AMEDKSampler")


def test_a_differing_image_in_a_batch_is_found(sound):
    other = sound.batch_run.latents[0].clone()
    other[-1] *= 1.05
    broken(invariants.same_alone_and_in_lists, altered(sound, latents=[other]), "number 1 alone")


def test_a_batch_that_the_host_mixes_is_no_failure(case):
    invariants.same_alone_and_in_lists(case(usual(fault="mixes")))


def test_a_differing_plain_solver_is_found(case, monkeypatch):
    running = case(usual("AMED Plain Solver", solver="Heun", schedule="polynomial", rho=7.0, zero=False))
    invariants.plain_is_the_hosts(running)
    monkeypatch.setitem(invariants.HOST, "Heun", "euler")
    broken(invariants.plain_is_the_hosts, running, "not the host's euler")


def test_a_mask_that_keeps_nothing_is_found(case):
    running = case(replace(usual(), ingredients=[("from an image", {}), ("noise mask", {"kind": "hard"})]))
    invariants.masks_keep(running)
    latents = [v * 1.5 for v in running.batch_run.latents]
    broken(invariants.masks_keep, altered(running, latents=latents), "away from the start")


def test_a_fit_that_runs_on_a_merge_is_found(runner, sound, monkeypatch):
    """The file names no checkpoint, as if it had been fitted to this one."""
    fitted = replace(load(runner.folder / "small-sd15-amed.safetensors"), name="small-sd15-")
    monkeypatch.setattr(Running, "fits", [fitted])
    fit = altered(sound, replace(sound.recipe.set(wrapped=""), way="Calibrate AMED"))
    broken(invariants.fits_are_for_their_checkpoint, fit, "runs on a merge")


def test_a_list_with_swapped_checkpoints_is_found(case):
    running = case(usual("list of checkpoints", batch=1))
    invariants.list_of_checkpoints_is_each(running)
    other = altered(running, latents=running.batch_run.latents[::-1])
    broken(invariants.list_of_checkpoints_is_each, other, "the first checkpoint in a list")


@pytest.mark.parametrize(("metrics", "expected"), [
    ({"error": math.inf}, "states the error inf"),
    ({"error": math.nan}, "states the error nan"),
    ({}, "states the error None"),
    ({"error": 0.4, "plain_error": 0.3}, "its best plain solver 0.3"),
    ({"error": 112.0, "plain_error": 112.0}, "auto takes"),
])  # fmt: skip
def test_a_worthless_fit_is_found(runner, sound, monkeypatch, metrics, expected):
    """The file exists and auto chooses it; only the stated error is looked at here."""
    times = times_of("sd15", 8)  # 7 evaluations, which no other file of this family takes
    spec = Spec(solver="multistep", num_steps=8, schedule="custom", sigma_min=float(times[-1]), guidance=2.0,
                sigma_max=float(times[0]), model_family="sd15", metrics={"error": 0.1})  # fmt: skip
    fitted = Fitted(spec, as_multistep(Solver("ipndm", 2), times), times)
    path = save(runner.folder / "worthless.safetensors", fitted)
    stated = replace(fitted, spec=replace(spec, metrics=metrics), name=path.name)
    monkeypatch.setattr(Running, "fits", [stated])
    try:
        fit = altered(sound, replace(sound.recipe, way="Calibrate AMED"))
        broken(invariants.fits_are_sound, fit, expected)
    finally:
        path.unlink()


def test_a_fit_answered_by_a_cache_is_found(sound):
    recipe = replace(sound.recipe, way="Calibrate AMED", ingredients=[("LazyCache", {})])
    few = altered(sound, recipe, network_counts=sound.batch_run.network_counts | {"forwards": 0})
    broken(invariants.fits_are_sound, few, "answered by a cache")


def test_a_comparison_with_wrong_evaluations_is_found(case):
    running = case(usual("Compare AMED", samplers="plain\neuler / karras", seeds=1, reference=8))
    invariants.pictures_are_sound(running)
    broken(
        invariants.pictures_are_sound,
        altered(running, running.recipe.set(nfe=3)),
        "plain took 4 evaluations of 3",
    )


def test_a_failure_is_shrunk(runner):
    ingredients = [("CFGZeroStar", {}), ("RescaleCFG", {"multiplier": 0.7}), ("ConditioningCombine", {})]
    recipe = replace(usual(fault="raises"), ingredients=ingredients)
    failure = runner.check(recipe, invariants.INVARIANTS[:1]).failures[0]
    smallest = runner.shrink(failure).recipe
    assert smallest.ingredients == [] and smallest["batch"] == 1
    assert from_json(to_json(smallest)) == smallest


def test_an_invalid_graph_is_not_our_failure():
    assert not issubclass(Invalid, Broken)
