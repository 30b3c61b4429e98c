"""Train AMED Predictor in a real ComfyUI: gradients where the host knows inference mode only."""

import numpy as np
import pytest

from amed import load
from demo.comfyui import RunError


def add_train(g, **other):
    asked = {"sampler": "amed", "nfe": 4, "guidance": 1.0, "images": 48, "batch": 8, "teacher_points": 1,
             "learning_rate": 5e-3, "seed": 0, "name": "trained"}  # fmt: skip
    return g.add("AMEDTrainPredictor", **g.around() | asked | other)


def file(server, name):
    return server.base / "models" / "amed_predictors" / f"{name}.safetensors"


def test_the_demo_model_learns_and_is_left_as_it_was(server, graph, images):
    g = graph(batch=2)
    before = images(g, g.ksampler("euler", seed=5))
    g = graph(batch=2)
    made = add_train(g)
    shown = g.add("PreviewImage", images=[made, 1])
    result = server.run(g.nodes)
    assert "held-out error to the teacher" in result.text(made)
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
    g.add("AMEDLoadPredictor", name="test_amed.safetensors")  # other node ids: nothing comes from the cache
    assert np.array_equal(before, images(g, g.ksampler("euler", seed=5)))


def test_a_stable_diffusion_unet_with_a_plugin_and_guidance(server, graph):
    g = graph()
    model = [g.add("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"), 0]
    positive, negative = ([g.add("TestPrompt", seed=seed, repeats=1), 0] for seed in (1, 2))
    latent = [g.add("EmptyLatentImage", width=32, height=32, batch_size=1), 0]
    around = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    made = add_train(g, **around, sampler="amed_ipndm", nfe=5, guidance=2.0, images=4, batch=2, name="sd")
    result = server.run(g.nodes)
    assert "Algorithm 1: 4 images" in result.text(made)
    spec = load(file(server, "sd-nfe5-cfg2")).spec
    assert spec.afs and spec.guidance == 2.0 and spec.model_family == "sd15" and spec.model_fingerprint


def test_interrupted_it_keeps_the_best_so_far(server, graph):
    g = graph()
    node = add_train(g, images=100_000, batch=4, name="stopped")

    def on_event(kind, data):
        if kind == "progress" and str(data.get("node")) == node and data["value"] >= 8:
            server.interrupt()

    with pytest.raises(RunError, match="interrupted"):
        server.run(g.nodes, on_event)
    assert "images, batch 4" in load(file(server, "stopped-nfe4-cfg1")).spec.how


def test_what_cannot_be_trained_is_named(server, graph):
    g = graph()
    flow = [g.add("ModelSamplingSD3", model=g.model, shift=3.0), 0]
    add_train(g, model=flow, nfe=5)
    with pytest.raises(RunError, match="an even number"):
        server.run(g.nodes)
