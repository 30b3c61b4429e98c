"""Calibrate AMED in a real ComfyUI: fit, save, found by auto, sampled with."""

import numpy as np
import pytest

from amed import load
from demo.comfyui import RunError


def add_calibrate(g, nfe="6", **other):
    asked = {
        "nfe": nfe, "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom", "evaluations": 3000,
        "seed": 0, "name": "mine",
    }  # fmt: skip
    return g.add("AMEDCalibrate", **g.around() | asked | other)


def folder(server):
    return server.base / "models" / "amed_predictors"


def test_the_demo_model_calibrates_is_found_and_wins(server, graph):
    """Calibrated on other noise, it is nearer to a converged run than the best plain setting of the same
    evaluations, on a batch of seeds of the sampler's own."""
    g = graph(batch=1)
    made = add_calibrate(g)
    shown = g.add("PreviewImage", images=[made, 1])
    result = server.run(g.nodes)
    assert "of the best plain solver" in result.text(made)
    picture = result.images(shown)[0]
    assert picture.shape[0] > 500 and picture.shape[1] > 1000 and picture.std() > 10
    fitted = load(folder(server) / "mine-nfe6-cfg1.safetensors")
    assert fitted.nfe == 6 and fitted.spec.metrics["error"] < fitted.spec.metrics["plain_error"]
    assert 0.95 * 3000 < fitted.spec.metrics["evaluations"] <= 1.05 * 3000

    g = graph(batch=24)
    sampled = g.amed(6, "auto")
    plain = g.add("AMEDPlainSolver", model=g.model, solver="iPNDM-3", nfe=6, schedule="time_uniform", rho=1.0, afs=True)
    fine = g.add("AMEDPlainSolver", model=g.model, solver="iPNDM-4", nfe=48, schedule="polynomial", rho=7.0, afs=False)
    latents = [sampled]
    for setting in (plain, fine):
        node = g.add("SamplerCustom", add_noise=True, noise_seed=3, cfg=1.0, sampler=[setting, 0], sigmas=[setting, 1],
                     **g.around())  # fmt: skip
        latents.append([node, 0])
    shown = [g.show(latent) for latent in latents]
    result = server.run(g.nodes)
    assert "mine-nfe6-cfg1" in result.text(sampled[0]) and "note:" not in result.text(sampled[0])
    assert "evaluations counted: 6, 6 network passes" in result.text(sampled[0])
    ours, rival, truth = (np.stack(result.images(node)).astype(float) for node in shown)
    assert np.median(np.square(ours - truth).mean((1, 2, 3))) < np.median(np.square(rival - truth).mean((1, 2, 3)))
