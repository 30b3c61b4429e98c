"""Calibrate AMED in a real ComfyUI: fit, save, find by auto, sample."""

import itertools
import json

import numpy as np
import pytest
from comfyui.page_messages import PageMessages

from amed import Fitted, Solver, load, save, schedules
from amed.constants import as_multistep
from amed.fingerprint import fingerprint
from demo.comfyui import ROOT, RunError
from demo.model import SIGMA_MAX, SIGMA_MIN, load_unet


def add_calibrate(g, nfe="6", **other):
    inputs = {
        "nfe": nfe, "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom", "evaluations": 3000,
        "seed": 0, "name": "mine",
    }  # fmt: skip
    return g.add("AMEDCalibrate", **g.around() | inputs | other)


def folder(server):
    return server.base / "models" / "amed_predictors"


def test_the_example_runs_unchanged(server):
    result = server.run_workflow(ROOT / "example_workflows" / "03 Calibrate a model.json")
    assert "of the best plain solver" in result.text() and "note:" not in result.text()
    pictures = result.images()
    (report,) = [i for i in pictures if i.shape != (256, 256, 3)]
    assert len(pictures) == 10 and np.stack([i for i in pictures if i is not report]).std() > 10
    assert report.shape[0] > report.shape[1] > 700 and report.std() > 10
    assert "demo-nfe6-cfg4" in result.text()
    fitted = load(folder(server) / "demo-nfe6-cfg4.safetensors")
    assert fitted.nfe == 6 and fitted.spec.metrics["error"] < fitted.spec.metrics["plain_error"]
    assert 0.95 * 2500 < fitted.spec.metrics["evaluations"] <= 1.05 * 2500


def test_a_calibration_is_found_and_beats_plain_solvers(server, graph):
    """On other seeds it comes nearer to a converged run than a good plain setting of the same evaluations."""
    g = graph(width=16, height=16)
    add_calibrate(g, "5", evaluations=2500, name="demo")
    server.run(g.nodes)
    g = graph(width=16, height=16, batch=24)
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


def test_progress_previews_and_remaining_time_are_sent(server, graph):
    """Progress never decreases; each stage sends a readable picture and a text with the remaining time."""
    g = graph(width=16, height=16)
    node = add_calibrate(g, "4", evaluations=2500, name="seen")
    messages = PageMessages(node)
    server.run(g.nodes, messages)
    assert len(messages.bar) >= 4 and messages.bar == sorted(messages.bar) and messages.bar[-1] > 0.9
    assert len(messages.pictures) >= 4 and all(p.width >= 800 for p in messages.pictures)
    assert np.asarray(messages.pictures[-1]).std() > 10
    assert messages.pictures[-1].height > messages.pictures[0].height  # previews of samples have arrived
    assert any(" left: " in text for text in messages.texts) and "saved as seen-nfe4" in messages.texts[-1]


def test_progress_messages_are_limited(server):
    """A progress bar updated every 10 ms sends at most five messages per second, and its last value."""
    sent = json.loads(server.run({"1": {"class_type": "TestBar", "inputs": {}}}).text("1"))
    values = [value for _, value in sent]
    assert values[0] == 1 and values[-1] == 1000
    assert all(b - a in (20, 21) for a, b in itertools.pairwise(values[:-1]))
    assert values[-1] - values[-2] <= 21


def stopped_at(g, evaluation):
    """Return the graph's MODEL, patched so that the run is interrupted at this evaluation."""
    g.model = [g.add("TestStops", model=g.model, at=evaluation, wait=False), 0]
    return g


def test_a_fit_interrupted_too_early_reports_that_nothing_was_saved(server, graph):
    g = stopped_at(graph(width=16, height=16), 50)
    messages = PageMessages(add_calibrate(g, "4", evaluations=2500, name="early"))
    with pytest.raises(RunError, match="interrupted"):
        server.run(g.nodes, messages)
    assert "nothing was saved" in messages.texts[-1] and messages.bar[-1] < 0.1
    assert not list(folder(server).glob("early*"))


def test_several_nfe_and_several_prompts_in_one_run(server, graph):
    g = graph(batch=2, width=16, height=16)
    other = g.add("AMEDDemoModel", category="Food & Drink", width=16, height=16, batch_size=1)
    calibrate = add_calibrate(
        g, "2, 3", guidance=1.5, evaluations=1600, name="two", positive_2=[other, 1], sampler="amed_multistep"
    )
    shown = g.add("PreviewImage", images=[calibrate, 1])
    result = server.run(g.nodes)
    assert len(result.images(shown)) == 2
    for nfe in (2, 3):
        spec = load(folder(server) / f"two-nfe{nfe}-cfg1.5.safetensors").spec
        assert (
            spec.nfe == nfe and spec.guidance == 1.5 and spec.metrics["error"] <= spec.metrics["plain_error"]
        )


def test_calibrate_now_saves_a_predictor_that_the_next_run_finds(server, graph):
    def run():
        g = graph(batch=5, width=16, height=16)
        latent = g.amed(12, "auto", guidance=1.0, if_missing="calibrate now (quick)", seed=8)
        shown = g.show(latent)
        result = server.run(g.nodes)
        return result.text(latent[0]), np.stack(result.images(shown))

    (first, report), (second, two) = run(), run()
    assert "calibrated now" in first and "calibrated now" not in second
    assert np.array_equal(report, two) and len(report) == 5


def test_a_calibrated_predictor_runs_img2img_and_reports_it(server, graph):
    g = graph(batch=1, width=16, height=16)
    calibrate = add_calibrate(g, "4", evaluations=1800, name="img")
    start = g.ksampler("euler", steps=8)
    again = g.add("AMEDKSampler", nfe=4, sampler="amed_multistep", guidance=1.0, seed=5, denoise=0.5,
                  predictor="auto", if_missing="error",
                  **g.around() | {"latent_image": start})  # fmt: skip
    shown = g.show([again, 0])
    first = {k: v for k, v in g.nodes.items() if k in (g.demo, calibrate)}
    server.run(first)
    result = server.run({k: v for k, v in g.nodes.items() if k != calibrate})
    text = result.text(again)
    assert "img-nfe4" in text and "interpolated between the fitted noise levels" in text
    assert np.stack(result.images(shown)).std() > 10


def test_apply_finds_a_predictor_or_says_what_it_needs(server, graph):
    g = graph()
    applied = g.add("AMEDApplyPredictor", model=g.model, nfe=14, guidance=1.0, sampler="amed_multistep",
                    if_missing="calibrate now (quick)")  # fmt: skip
    g.show(g.ksampler("amed_multistep", "amed", steps=14, model=[applied, 0]))
    with pytest.raises(RunError, match="link positive, negative and latent_image"):
        server.run(g.nodes)
    g.nodes[applied]["inputs"] |= {"if_missing": "untrained"}
    result = server.run(g.nodes)
    assert "untrained" in result.text(applied)


def test_predictor_info_and_save_predictor(server, graph):
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
def write_finished_fit(server, demo_spec):
    """`keep_there(name, error)` writes a finished fit for the demo model at 2 evaluations with this error;
    returns its bytes."""

    def keep(name, error):
        times = schedules.make("time_uniform", 3, SIGMA_MIN, SIGMA_MAX)
        metrics = {"error": error, "finished": True}
        demo_fingerprint = fingerprint(load_unet().named_parameters())
        spec = demo_spec(solver="multistep", num_steps=3, metrics=metrics, model_fingerprint=demo_fingerprint)
        path = folder(server) / f"{name}.safetensors"
        return save(path, Fitted(spec, as_multistep(Solver("euler"), times), times)).read_bytes()

    return keep


def test_a_worse_fit_does_not_replace_a_better_one(server, graph, write_finished_fit):
    before = write_finished_fit("dear-nfe2-cfg1", error=1e-6)
    g = graph(width=16, height=16)
    calibrate = add_calibrate(g, "2", evaluations=1400, name="dear")
    text = server.run(g.nodes).text(calibrate)
    assert (folder(server) / "dear-nfe2-cfg1.safetensors").read_bytes() == before
    assert "dear-nfe2-cfg1.safetensors stays" in text
    assert f"saved as dear-nfe2-cfg1-2.safetensors in {folder(server)}" in text
    assert load(folder(server) / "dear-nfe2-cfg1-2.safetensors").spec.metrics["finished"]


def test_a_better_fit_replaces_a_worse_one(server, graph, write_finished_fit):
    write_finished_fit("poor-nfe2-cfg1", error=1e6)
    g = graph(width=16, height=16)
    calibrate = add_calibrate(g, "2", evaluations=1400, name="poor")
    assert f"saved as poor-nfe2-cfg1.safetensors in {folder(server)}" in server.run(g.nodes).text(calibrate)
    assert load(folder(server) / "poor-nfe2-cfg1.safetensors").spec.metrics["error"] < 1e6
    assert not (folder(server) / "poor-nfe2-cfg1-2.safetensors").exists()


def test_an_interrupted_fit_does_not_replace_a_finished_one(server, graph, write_finished_fit):
    """An interrupted fit never replaces a finished one, however bad that is."""
    before = write_finished_fit("whole-nfe2-cfg1", error=1e6)
    g = stopped_at(graph(width=16, height=16), 1500)
    messages = PageMessages(add_calibrate(g, "2", evaluations=2500, name="whole"))
    with pytest.raises(RunError, match="interrupted"):
        server.run(g.nodes, messages)
    assert "best so far is kept" in messages.texts[-1] and "(unfinished)" in messages.texts[-1]
    assert (folder(server) / "whole-nfe2-cfg1.safetensors").read_bytes() == before
    assert not load(folder(server) / "whole-nfe2-cfg1-2.safetensors").spec.metrics["finished"]
    assert "Interrupted: the best so far is kept" in server.log()


@pytest.mark.parametrize("node", ["AMEDCalibrate", "AMEDTrainPredictor"])
def test_a_seed_control_read_as_the_name_is_reported(server, graph, node):
    """Its "randomize" is read as the value of `name`."""
    g = graph()
    train = {"nfe": 4, "images": 4, "batch": 2, "teacher_points": 1, "learning_rate": 5e-3, "sampler": "amed"}
    calibrate = add_calibrate(g, **{"nfe": "4"} | {"name": "randomize"})
    if node != "AMEDCalibrate":
        g.nodes[calibrate] = {
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
