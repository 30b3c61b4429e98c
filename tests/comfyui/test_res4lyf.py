"""Samplers of another pack (RES4LYF) with a predictor around them, in a real ComfyUI.

    RES4LYF_PATH=/where/RES4LYF .venv/bin/python -m pytest -s tests/comfyui/test_res4lyf.py

The pack needs opencv-python-headless, PyWavelets and matplotlib beside ComfyUI's own packages, and a commit
whose nodes this ComfyUI accepts (for 0.3.75: 119679d). Without the variable the tests are skipped, with a
warning."""

import os
import re
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
from comfyui.page_messages import PageMessages

from amed import load
from demo import comfyui
from demo.comfyui import RunError

NFE = 5


@pytest.fixture(scope="module", name="pack")
def _pack(tmp_path_factory):
    """A separate ComfyUI with the other pack beside ours."""
    path = os.environ.get("RES4LYF_PATH")
    if not path:
        warning = (
            "RES4LYF_PATH is not set: samplers of another pack were NOT tested (test_res4lyf.py says how)"
        )
        warnings.warn(warning, stacklevel=1)
        pytest.skip(warning)
    if comfyui.find() is None:
        pytest.skip("no ComfyUI: run `make test`, or set COMFYUI_PATH")
    base = tmp_path_factory.mktemp("res4lyf")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "RES4LYF").symlink_to(Path(path).resolve(), target_is_directory=True)
    with comfyui.Server(base) as running:
        offered = running.get("/object_info/KSampler")["KSampler"]["input"]["required"]["sampler_name"][0]
        assert {"res_2m_ode", "res_3m_ode"} <= set(offered), f"RES4LYF did not load:\n{running.log()}"
        yield running


@pytest.fixture(autouse=True)
def remove_new_predictors(pack):
    """Replaces conftest's fixture, whose server does not have the other pack."""
    folder = pack.base / "models" / "amed_predictors"
    before = set(folder.iterdir()) if folder.is_dir() else set()
    yield
    for file in set(folder.iterdir()) - before:
        file.unlink()


def small(graph, batch=8):
    return graph(batch=batch, width=16, height=16)


def calibrate(g, sampler, name, nfe=NFE):
    inputs = {"nfe": str(nfe), "sampler": "amed_multistep", "guidance": 1.0, "budget": "quick",
              "evaluations": 2500, "seed": 0, "name": name, "wrapped": [sampler, 0]}  # fmt: skip
    return g.add("AMEDCalibrate", **g.around() | inputs)


def unwrapped(pack, graph, sampler, steps):
    """Return the sampler's own images on karras at as many evaluations; it does not evaluate its last
    level."""
    g = small(graph)
    shown = g.show(g.ksampler(sampler, "karras", steps + 1))
    return np.stack(pack.run(g.nodes).images(shown)).astype(float)


def errors(text):
    """Return {row of the report: its error}."""
    rows = re.findall(r"^  (.+): ([\d.]+)$", text, re.MULTILINE)
    return {name: float(error) for name, error in rows}


@pytest.mark.parametrize(("sampler", "settings"), [("res_2m_ode", 5), ("res_3m_ode", 7)])
def test_another_packs_sampler_improves(pack, graph, sampler, settings):
    """On unseen noise the report and the KSampler's images improve; nothing is left behind.

    These samplers begin with steps of several evaluations, which differ between the pack's versions: res_3m
    takes no 5."""
    g = small(graph)
    chosen = g.add("KSamplerSelect", sampler_name=sampler)
    fit = calibrate(g, chosen, f"res-{sampler}", settings)
    applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[fit, 0])
    before = {steps: unwrapped(pack, graph, sampler, steps) for steps in range(2, 6)}

    file = f"res-{sampler}-nfe{settings}-cfg1.safetensors"
    text = pack.run(g.nodes).text(fit)
    fitted = load(pack.base / "models" / "amed_predictors" / file)
    nfe, steps = fitted.nfe, len(fitted.base)
    assert fitted.spec.of == sampler and settings / 2 <= nfe <= settings and f"saved as {file}" in text
    rows = errors(text)
    print(f"\n{sampler}, NFE {nfe} on {steps} levels: {rows}")
    metrics = fitted.spec.metrics
    assert metrics["error"] <= metrics["plain_error"] and metrics["evaluations"] <= 2500
    assert rows[f"{sampler} + AMED-Plugin, its own"] == pytest.approx(metrics["error"], abs=1e-3)
    karras = rows[f"{sampler}, karras, as usually set"]
    assert metrics["plain_error"] <= karras + 1e-4

    with_it = g.ksampler(sampler, "amed", steps, model=[applied, 0])
    truth = g.ksampler("ipndm", "karras", 48)
    shown = [g.show(latent) for latent in (with_it, truth)]
    messages = PageMessages(fit)
    result = pack.run(g.nodes, messages)
    ours, true = (np.stack(result.images(node)).astype(float) for node in shown)
    assert f"AMED: {nfe} evaluations, {nfe} passes" in "".join(messages.texts) and ours.std() > 10

    near = [np.median(np.square(images - true).mean((1, 2, 3))) for images in (ours, before[steps])]
    print(f"median squared distance of its images to a converged run's: {near[0]:.1f}, karras {near[1]:.1f}")
    assert near[0] < near[1]
    pack.post(
        "/free", {"unload_models": True, "free_memory": True}
    )  # otherwise the host would not run it again
    assert np.array_equal(unwrapped(pack, graph, sampler, steps), before[steps])


def test_the_packs_own_sampler_node(pack, graph):
    """ClownSampler with eta 0 gives a SAMPLER that no dropdown has."""
    try:
        pack.get("/object_info/ClownSampler_Beta")
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI is older than this RES4LYF's ClownSampler wants")
    g = small(graph)
    node = {"sampler_name": "multistep/res_2m", "seed": -1, "bongmath": False}
    chosen = g.add("ClownSampler_Beta", eta=0.0, **node)
    fit = calibrate(g, chosen, "res-node")
    sampler = g.add(
        "AMEDSampler", sampler="auto", if_missing="error", predictor=[fit, 0], wrapped=[chosen, 0]
    )
    times = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=8, denoise=1.0, predictor=[fit, 0])
    shown = g.show(g.custom(sampler, times))
    messages = PageMessages(fit)
    result = pack.run(g.nodes, messages)
    fitted = load(pack.base / "models" / "amed_predictors" / f"res-node-nfe{NFE}-cfg1.safetensors")
    print(f"\n{fitted.spec.of}: {errors(result.text(fit))}")
    assert fitted.spec.metrics["error"] <= fitted.spec.metrics["plain_error"]
    assert len(result.images(shown)) == 8 and f"AMED: {NFE} evaluations" in "".join(messages.texts)


@pytest.mark.parametrize("sampler", ["res_2m", "res_3m"])
def test_samplers_that_draw_noise_are_refused_with_advice(pack, graph, sampler):
    g = small(graph, 1)
    calibrate(g, g.add("KSamplerSelect", sampler_name=sampler), "res-sde")
    with pytest.raises(RunError, match=f"{sampler} draws noise.* eta 0.* _ode"):
        pack.run(g.nodes)


def test_an_impossible_number_of_evaluations_is_an_error(pack, graph):
    g = small(graph, 1)
    calibrate(g, g.add("KSamplerSelect", sampler_name="res_3m_ode"), "res-few", 2)
    with pytest.raises(
        RunError, match=r"res_3m_ode cannot run with 2 evaluations or a few less \(but with \d"
    ):
        pack.run(g.nodes)
