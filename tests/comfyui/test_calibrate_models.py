"""Calibrate AMED on other kinds of model: calibrate, save, find by auto, sample.

Random weights test that it works; quality is judged on the demo model."""

import pytest
from comfyui.page_messages import PageMessages
from safetensors.torch import load

from amed import load as load_predictor
from demo.comfyui import RunError


def calibrated(server, g, around, nfe, name, **other):
    """Calibrate a graph's MODEL, then sample with the predictor that auto finds; return (spec, latents,
    report)."""
    inputs = {"nfe": str(nfe), "sampler": "amed_multistep", "guidance": 2.0, "budget": "custom",
              "evaluations": 900 + 220 * nfe,
              "seed": 0, "name": name} | other  # fmt: skip
    g.add("AMEDCalibrate", **around | inputs)
    server.run(g.nodes)
    g.nodes.popitem()
    sampled = g.amed(nfe, "auto", inputs["guidance"], **around)
    g.add("SaveLatent", samples=sampled, filename_prefix=name)
    result = server.run(g.nodes)
    latents = load(server.view(result.files("latents")[0]))["latent_tensor"]
    file = (
        server.base / "models" / "amed_predictors" / f"{name}-nfe{nfe}-cfg{inputs['guidance']:g}.safetensors"
    )
    assert latents.isfinite().all() and latents.std() > 0.05
    assert file.name in result.text(sampled[0]) and f"evaluations counted: {nfe}" in result.text(sampled[0])
    return load_predictor(file).spec, latents, result.text(sampled[0])


@pytest.mark.parametrize(("checkpoint", "sampling", "family", "guidance"), [
    ("tiny_sd15", "v_prediction", "sd15", 2.0),
    ("tiny_sdxl", None, "segmind_vega", 1.0),
])  # fmt: skip
def test_stable_diffusion_models_can_be_calibrated(server, graph, checkpoint, sampling, family, guidance):
    g = graph()
    model = [g.add("CheckpointLoaderSimple", ckpt_name=f"{checkpoint}.safetensors"), 0]
    if sampling:
        model = [g.add("ModelSamplingDiscrete", model=model, sampling=sampling, zsnr=False), 0]
    width = 2048 if checkpoint == "tiny_sdxl" else 768
    positive, negative = ([g.add("TestPrompt", seed=seed, repeats=1, width=width), 0] for seed in (1, 2))
    latent = [g.add("EmptyLatentImage", width=32, height=32, batch_size=1), 0]
    around = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    kind = "v" if sampling else "eps"
    spec, latents, _ = calibrated(server, g, around, 2, f"{checkpoint}_{kind}", guidance=guidance)
    assert latents.shape == (1, 4, 4, 4)
    assert (spec.prediction_type, spec.model_family, spec.nfe) == (kind, family, 2)
    assert spec.model_fingerprint and abs(spec.sigma_max - 14.6146) < 0.01


def test_flow_models_can_be_calibrated(server, graph):
    """The demo network as a flow model, with noise levels from 1 to 0.

    No plain solver has an analytic first step there, but a table with its offset may."""
    g = graph(width=16, height=16)
    model = [g.add("ModelSamplingSD3", model=g.model, shift=3.0), 0]
    spec, _, text = calibrated(server, g, g.around() | {"model": model}, 2, "flow")
    assert (
        spec.prediction_type == "flow"
        and (spec.learned or not spec.afs)
        and spec.sigma_max == pytest.approx(1.0)
    )


def test_a_model_that_gives_nan_stops_the_fit_and_names_the_sigma(server, graph):
    g = graph(width=16, height=16)
    broken = [g.add("TestModel", model=g.model, which="broken"), 0]
    inputs = {"nfe": "4", "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom",
              "evaluations": 2000,
              "seed": 0, "name": "broken"}  # fmt: skip
    g.add("AMEDCalibrate", **g.around() | inputs | {"model": broken})
    with pytest.raises(RunError, match=r"NaN or infinity at sigma="):
        server.run(g.nodes)
    assert not list((server.base / "models" / "amed_predictors").glob("broken*"))


def test_an_interrupted_fit_keeps_the_best_so_far(server, graph):
    g = graph(width=16, height=16)
    g.model = [g.add("TestStops", model=g.model, at=1500, wait=False), 0]
    inputs = {"nfe": "2", "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom",
              "evaluations": 2500,
              "seed": 0, "name": "stopped"}  # fmt: skip
    node = g.add("AMEDCalibrate", **g.around() | inputs)
    messages = PageMessages(node)
    with pytest.raises(RunError, match="interrupted"):
        server.run(g.nodes, messages)
    assert messages.bar == sorted(messages.bar) and messages.bar[-1] < 0.7
    file = server.base / "models" / "amed_predictors" / "stopped-nfe2-cfg1.safetensors"
    assert load_predictor(file).spec.metrics["evaluations"] <= 1500
    assert load_predictor(file).sigmas().isfinite().all()
