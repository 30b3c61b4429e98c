"""Train AMED Predictor in a real ComfyUI: it needs gradients, where the host runs nodes in inference mode."""

from dataclasses import replace

import numpy as np
import pytest

from amed import Fitted, load, save, schedules
from demo.comfyui import RunError
from demo.model import SIGMA_MAX, SIGMA_MIN


def add_train(g, **other):
    inputs = {"sampler": "amed", "nfe": 4, "guidance": 1.0, "images": 48, "batch": 8, "teacher_points": 1,
              "learning_rate": 5e-3, "seed": 0, "name": "trained"}  # fmt: skip
    return g.add("AMEDTrainPredictor", **g.around() | inputs | other)


def file(server, name):
    return server.base / "models" / "amed_predictors" / f"{name}.safetensors"


def test_a_predictor_of_the_demo_model_improves_and_the_model_is_unchanged(server, graph, images):
    g = graph(batch=2)
    before = images(g, g.ksampler("euler", seed=5))
    g = graph(batch=2)
    train = add_train(g)
    shown = g.add("PreviewImage", images=[train, 1])
    result = server.run(g.nodes)
    assert "held-out error to the teacher" in result.text(train)
    assert f"saved as trained-nfe4-cfg1.safetensors in {file(server, 'x').parent}" in result.text(train)
    assert result.images(shown)[0].std() > 10
    spec = load(file(server, "trained-nfe4-cfg1")).spec
    assert spec.features == "bottleneck" and spec.nfe == 4 and spec.model_family == "emoji32"
    assert spec.metrics["error"] < spec.metrics["untrained_error"]

    g = graph(batch=2)
    sampled = g.amed(4, "amed", predictor="trained-nfe4-cfg1.safetensors")
    shown = g.show(sampled)
    result = server.run(g.nodes)
    assert "note:" not in result.text(sampled[0]) and np.stack(result.images(shown)).std() > 10

    g = graph(batch=2)
    g.add(
        "AMEDLoadPredictor", name="test_amed.safetensors"
    )  # other node ids, so that nothing comes from the cache
    assert np.array_equal(before, images(g, g.ksampler("euler", seed=5)))


def test_a_stable_diffusion_unet_with_a_plugin_and_guidance(server, graph):
    g = graph()
    model = [g.add("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"), 0]
    positive, negative = ([g.add("TestPrompt", seed=seed, repeats=1), 0] for seed in (1, 2))
    latent = [g.add("EmptyLatentImage", width=32, height=32, batch_size=1), 0]
    around = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    train = add_train(g, **around, sampler="amed_ipndm", nfe=5, guidance=2.0, images=4, batch=2, name="sd")
    result = server.run(g.nodes)
    assert "Algorithm 1: 4 images" in result.text(train)
    spec = load(file(server, "sd-nfe5-cfg2")).spec
    assert spec.afs and spec.guidance == 2.0 and spec.model_family == "sd15" and spec.model_fingerprint


def test_an_interrupted_training_keeps_the_best_so_far(server, graph):
    g = graph()
    node = add_train(g, images=100_000, batch=4, name="stopped")
    texts = []

    def on_event(kind, data):
        if kind == "progress" and str(data.get("node")) == node and data["value"] >= 8:
            server.interrupt()
        if kind == "binary" and data["bytes"][:4] == b"\0\0\0\x03":  # text on a node
            texts.append(data["bytes"].decode(errors="replace"))

    with pytest.raises(RunError, match="interrupted"):
        server.run(g.nodes, on_event)
    assert "stopped-nfe4-cfg1.safetensors (unfinished)" in texts[-1]
    assert "images, batch 4" in load(file(server, "stopped-nfe4-cfg1")).spec.how


@pytest.mark.parametrize(("error", "stopped"), [(1e-9, False), (1e6, True)], ids=["worse", "stopped"])
def test_a_training_does_not_replace_a_better_file(server, graph, error, stopped):
    """Neither a worse nor an interrupted training replaces a finished file of the same name."""
    mine = load(file(server, "test_mlp"))
    spec = replace(mine.spec, num_steps=3, guidance=1.0, metrics={"error": error, "finished": True})
    times = schedules.make("time_uniform", 3, SIGMA_MIN, SIGMA_MAX)
    before = save(file(server, "dear-nfe4-cfg1"), Fitted(spec, mine.predictor, times)).read_bytes()
    g = graph()
    node = add_train(g, images=100_000 if stopped else 8, batch=4, name="dear")

    def on_event(kind, data):
        if stopped and kind == "progress" and str(data.get("node")) == node and data["value"] >= 8:
            server.interrupt()

    if stopped:
        with pytest.raises(RunError, match="interrupted"):
            server.run(g.nodes, on_event)
    else:
        text = server.run(g.nodes).text(node)
        assert "dear-nfe4-cfg1.safetensors stays" in text and "saved as dear-nfe4-cfg1-2.safetensors" in text
    assert file(server, "dear-nfe4-cfg1").read_bytes() == before
    assert load(file(server, "dear-nfe4-cfg1-2")).spec.metrics["finished"] is not stopped


def test_untrainable_settings_are_named(server, graph):
    g = graph()
    flow = [g.add("ModelSamplingSD3", model=g.model, shift=3.0), 0]
    add_train(g, model=flow, nfe=5)
    with pytest.raises(RunError, match="an even number"):
        server.run(g.nodes)
