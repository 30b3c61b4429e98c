"""Calibrate AMED in a real ComfyUI: fit, save, found by auto, sampled with."""

import itertools
import json

import numpy as np
import pytest
from comfyui.heard import Heard

from amed import Fitted, Solver, load, save, schedules
from amed.constants import as_multistep
from amed.fingerprint import fingerprint
from demo.comfyui import ROOT, RunError
from demo.model import SIGMA_MAX, SIGMA_MIN, load_unet


def add_calibrate(g, nfe="6", **other):
    asked = {
        "nfe": nfe, "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom", "evaluations": 3000,
        "seed": 0, "name": "mine",
    }  # fmt: skip
    return g.add("AMEDCalibrate", **g.around() | asked | other)


def folder(server):
    return server.base / "models" / "amed_predictors"


def test_the_demo_model_calibrates_is_found_and_wins(server, graph):
    """The example workflow as it is; then, found by auto and on a batch of seeds of the sampler's own,
    nearer to a converged run than a good plain setting of the same evaluations."""
    result = server.run_workflow(ROOT / "example_workflows" / "03 Calibrate a model.json")
    assert "of the best plain solver" in result.text() and "note:" not in result.text()
    pictures = result.images()
    (report,) = [i for i in pictures if i.shape != (256, 256, 3)]
    assert len(pictures) == 10 and np.stack([i for i in pictures if i is not report]).std() > 10
    assert report.shape[0] > report.shape[1] > 700 and report.std() > 10
    fitted = load(folder(server) / "demo-nfe5-cfg1.safetensors")
    assert fitted.nfe == 5 and fitted.spec.metrics["error"] < fitted.spec.metrics["plain_error"]
    assert 0.95 * 2500 < fitted.spec.metrics["evaluations"] <= 1.05 * 2500

    g = graph(batch=24)
    sampled = g.amed(5, "auto")
    plain = g.add(
        "AMEDPlainSolver", model=g.model, solver="iPNDM-3", nfe=5, schedule="time_uniform", rho=1.0, afs=True
    )
    fine = g.add(
        "AMEDPlainSolver", model=g.model, solver="iPNDM-4", nfe=48, schedule="polynomial", rho=7.0, afs=False
    )
    latents = [sampled]
    for setting in (plain, fine):
        node = g.add("SamplerCustom", add_noise=True, noise_seed=3, cfg=1.0, sampler=[setting, 0],
                     sigmas=[setting, 1],
                     **g.around())  # fmt: skip
        latents.append([node, 0])
    shown = [g.show(latent) for latent in latents]
    result = server.run(g.nodes)
    assert "demo-nfe5-cfg1" in result.text(sampled[0]) and "note:" not in result.text(sampled[0])
    assert "evaluations counted: 5, 5 network passes" in result.text(sampled[0])
    ours, rival, truth = (np.stack(result.images(node)).astype(float) for node in shown)
    assert np.median(np.square(ours - truth).mean((1, 2, 3))) < np.median(
        np.square(rival - truth).mean((1, 2, 3))
    )


def test_it_shows_itself_while_it_works(server, graph):
    """The bar never goes back; each stage is a picture that can be read, and a text that says how long it
    takes yet."""
    g = graph(width=16, height=16)
    node = add_calibrate(g, "4", evaluations=2500, name="seen")
    heard = Heard(node)
    server.run(g.nodes, heard)
    assert len(heard.bar) >= 4 and heard.bar == sorted(heard.bar) and heard.bar[-1] > 0.9
    assert len(heard.pictures) >= 4 and all(p.width >= 800 for p in heard.pictures)
    assert np.asarray(heard.pictures[-1]).std() > 10
    assert heard.pictures[-1].height > heard.pictures[0].height  # samples have come
    assert any(" left: " in text for text in heard.texts) and "saved as seen-nfe4" in heard.texts[-1]


def test_the_page_is_sent_no_more_than_it_can_show(server):
    """A bar that is told everything moves five times a second, and to its end."""
    sent = json.loads(server.run({"1": {"class_type": "TestBar", "inputs": {}}}).text("1"))
    values = [value for _, value in sent]
    assert values[0] == 1 and values[-1] == 1000
    assert all(b - a in (20, 21) for a, b in itertools.pairwise(values[:-1]))
    assert values[-1] - values[-2] <= 21


def stopped_at(g, evaluation):
    """The graph's MODEL, whose run the user stops at this evaluation."""
    g.model = [g.add("TestStops", model=g.model, at=evaluation, wait=False), 0]
    return g


def test_stopped_too_early_the_node_says_that_nothing_was_saved(server, graph):
    g = stopped_at(graph(width=16, height=16), 50)
    heard = Heard(add_calibrate(g, "4", evaluations=2500, name="early"))
    with pytest.raises(RunError, match="interrupted"):
        server.run(g.nodes, heard)
    assert "nothing was saved" in heard.texts[-1] and heard.bar[-1] < 0.1
    assert not list(folder(server).glob("early*"))


def test_several_numbers_in_one_run_and_several_prompts(server, graph):
    g = graph(batch=2, width=16, height=16)
    other = g.add("AMEDDemoModel", category="Food & Drink", width=16, height=16, batch_size=1)
    made = add_calibrate(
        g, "2, 3", guidance=1.5, evaluations=1600, name="two", positive_2=[other, 1], sampler="amed_multistep"
    )
    shown = g.add("PreviewImage", images=[made, 1])
    result = server.run(g.nodes)
    assert len(result.images(shown)) == 2
    for nfe in (2, 3):
        spec = load(folder(server) / f"two-nfe{nfe}-cfg1.5.safetensors").spec
        assert (
            spec.nfe == nfe and spec.guidance == 1.5 and spec.metrics["error"] <= spec.metrics["plain_error"]
        )


def test_missing_is_calibrated_now_and_found_the_next_time(server, graph):
    def run():
        g = graph(batch=5, width=16, height=16)
        latent = g.amed(12, "auto", guidance=1.0, if_missing="calibrate now (quick)", seed=8)
        shown = g.show(latent)
        result = server.run(g.nodes)
        return result.text(latent[0]), np.stack(result.images(shown))

    (first, one), (second, two) = run(), run()
    assert "calibrated now" in first and "calibrated now" not in second
    assert np.array_equal(one, two) and len(one) == 5


def test_a_calibrated_predictor_does_img2img_and_says_so(server, graph):
    g = graph(batch=1, width=16, height=16)
    made = add_calibrate(g, "4", evaluations=1800, name="img")
    start = g.ksampler("euler", steps=8)
    again = g.add("AMEDKSampler", nfe=4, sampler="amed_multistep", guidance=1.0, seed=5, denoise=0.5,
                  predictor="auto", if_missing="error",
                  **g.around() | {"latent_image": start})  # fmt: skip
    shown = g.show([again, 0])
    first = {k: v for k, v in g.nodes.items() if k in (g.demo, made)}
    server.run(first)
    result = server.run({k: v for k, v in g.nodes.items() if k != made})
    text = result.text(again)
    assert "img-nfe4" in text and "interpolated between the fitted noise levels" in text
    assert np.stack(result.images(shown)).std() > 10


def test_apply_finds_or_says_what_it_needs(server, graph):
    g = graph()
    applied = g.add("AMEDApplyPredictor", model=g.model, nfe=14, guidance=1.0, sampler="amed_multistep",
                    if_missing="calibrate now (quick)")  # fmt: skip
    g.show(g.ksampler("amed_multistep", "amed", steps=14, model=[applied, 0]))
    with pytest.raises(RunError, match="link positive, negative and latent_image"):
        server.run(g.nodes)
    g.nodes[applied]["inputs"] |= {"if_missing": "untrained"}
    result = server.run(g.nodes)
    assert "untrained" in result.text(applied)


def test_info_and_save(server, graph):
    g = graph()
    loaded = g.add("AMEDLoadPredictor", name="test_amed_multistep.safetensors")
    info = g.add("AMEDPredictorInfo", predictor=[loaded, 0])
    shown = g.add("PreviewImage", images=[info, 1])
    saved = g.add("AMEDSavePredictor", predictor=[loaded, 0], name="a copy")
    result = server.run(g.nodes)
    assert "weights" in result.text(info) and 'solver: "multistep"' in result.text(info)
    assert result.images(shown)[0].std() > 5
    copy, source = (load(folder(server) / f"{n}.safetensors") for n in ("a copy", "test_amed_multistep"))
    assert (copy.predictor.weights == source.predictor.weights).all()
    g.nodes[saved]["inputs"]["name"] = "../../elsewhere"
    with pytest.raises(RunError, match="not a valid file name"):
        server.run(g.nodes)


@pytest.fixture
def keep_there(server, demo_spec):
    """`keep_there(name, error)`: a finished file of a fit for the demo model at 2 evaluations, that states
    this error; its bytes."""

    def keep(name, error):
        times = schedules.make("time_uniform", 3, SIGMA_MIN, SIGMA_MAX)
        metrics = {"error": error, "finished": True}
        who = fingerprint(load_unet().named_parameters())
        spec = demo_spec(solver="multistep", num_steps=3, metrics=metrics, model_fingerprint=who)
        path = folder(server) / f"{name}.safetensors"
        return save(path, Fitted(spec, as_multistep(Solver("euler"), times), times)).read_bytes()

    return keep


def test_a_worse_fit_does_not_take_a_better_ones_place(server, graph, keep_there):
    before = keep_there("dear-nfe2-cfg1", error=1e-6)
    g = graph(width=16, height=16)
    made = add_calibrate(g, "2", evaluations=1400, name="dear")
    text = server.run(g.nodes).text(made)
    assert (folder(server) / "dear-nfe2-cfg1.safetensors").read_bytes() == before
    assert "dear-nfe2-cfg1.safetensors stays" in text
    assert f"saved as dear-nfe2-cfg1-2.safetensors in {folder(server)}" in text
    assert load(folder(server) / "dear-nfe2-cfg1-2.safetensors").spec.metrics["finished"]


def test_a_better_fit_takes_a_worse_ones_place(server, graph, keep_there):
    keep_there("poor-nfe2-cfg1", error=1e6)
    g = graph(width=16, height=16)
    made = add_calibrate(g, "2", evaluations=1400, name="poor")
    assert f"saved as poor-nfe2-cfg1.safetensors in {folder(server)}" in server.run(g.nodes).text(made)
    assert load(folder(server) / "poor-nfe2-cfg1.safetensors").spec.metrics["error"] < 1e6
    assert not (folder(server) / "poor-nfe2-cfg1-2.safetensors").exists()


def test_a_stopped_fit_does_not_take_a_finished_ones_place(server, graph, keep_there):
    """However bad that one is."""
    before = keep_there("whole-nfe2-cfg1", error=1e6)
    g = stopped_at(graph(width=16, height=16), 1500)
    heard = Heard(add_calibrate(g, "2", evaluations=2500, name="whole"))
    with pytest.raises(RunError, match="interrupted"):
        server.run(g.nodes, heard)
    assert "best so far is kept" in heard.texts[-1] and "(unfinished)" in heard.texts[-1]
    assert (folder(server) / "whole-nfe2-cfg1.safetensors").read_bytes() == before
    assert not load(folder(server) / "whole-nfe2-cfg1-2.safetensors").spec.metrics["finished"]
    assert "Interrupted: the best so far is kept" in server.log()


@pytest.mark.parametrize("node", ["AMEDCalibrate", "AMEDTrainPredictor"])
def test_a_workflow_saved_with_a_control_beside_the_seed_is_named(server, graph, node):
    """Its "randomize" comes to stand in `name`."""
    g = graph()
    train = {"nfe": 4, "images": 4, "batch": 2, "teacher_points": 1, "learning_rate": 5e-3, "sampler": "amed"}
    made = add_calibrate(g, **{"nfe": "4"} | {"name": "randomize"})
    if node != "AMEDCalibrate":
        g.nodes[made] = {
            "class_type": node,
            "inputs": g.around() | train | {"seed": 0, "guidance": 1.0, "name": "fixed"},
        }
    with pytest.raises(RunError, match="type the name again"):
        server.run(g.nodes)


@pytest.mark.parametrize(("field", "value", "named"), [("nfe", "five", "five"), ("name", "a/b", "a/b"),
                                                       ("evaluations", 1000, "at least")])  # fmt: skip
def test_bad_input_is_named(server, graph, field, value, named):
    g = graph()
    add_calibrate(g, **{field: value})
    with pytest.raises(RunError, match=named):
        server.run(g.nodes)
