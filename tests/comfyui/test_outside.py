"""The host's own samplers with a predictor around them, in a real ComfyUI: fitted, applied, and as a
SAMPLER."""

import numpy as np
import pytest
from comfyui.page_messages import PageMessages

from amed import load
from demo.comfyui import ROOT, RunError


def fitted_around(g, sampler, nfe, **more):
    """Add the node that calibrates for a sampler of the host."""
    chosen = g.add("KSamplerSelect", sampler_name=sampler)
    inputs = {"nfe": nfe, "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom",
              "evaluations": 3500, "seed": 0, "name": f"mine-{sampler}", "wrapped": [chosen, 0]}  # fmt: skip
    return g.add("AMEDCalibrate", **g.around() | inputs | more)


def test_the_example_runs_unchanged(server):
    result = server.run_workflow(ROOT / "example_workflows" / "14 Make any sampler better.json")
    pictures = result.images()
    (report,) = [i for i in pictures if i.shape != (256, 256, 3)]
    assert len(pictures) == 10 and report.shape[0] > report.shape[1] > 700
    assert "uni_pc + AMED-Plugin" in result.text() and "uni_pc, amed, 6 steps, cfg 4" in result.text()
    fitted = load(server.base / "models" / "amed_predictors" / "demo-uni_pc-nfe6-cfg4.safetensors")
    assert fitted.spec.metrics["error"] < fitted.spec.metrics["plain_error"]


@pytest.mark.parametrize(("sampler", "nfe"), [("uni_pc", 4), ("heun", 5)])
def test_a_host_sampler_is_fitted_and_run_in_three_ways(server, graph, sampler, nfe):
    """The ordinary KSampler, and SAMPLER with SIGMAS, give one image, nearer to a converged run's."""
    g = graph(batch=16, width=16, height=16)
    fit = fitted_around(g, sampler, str(nfe))
    applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[fit, 0])
    steps = {"heun": 3}.get(sampler, nfe)
    by_ksampler = g.ksampler(sampler, "amed", steps, model=[applied, 0])
    amed_sampler = g.add("AMEDSampler", sampler="auto", if_missing="error", predictor=[fit, 0])
    times = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=8, denoise=1.0, predictor=[fit, 0])
    by_nodes = g.custom(amed_sampler, times)
    plain = g.ksampler(sampler, "karras", steps)
    fine = g.ksampler("ipndm", "karras", 48)
    shown = [g.show(latent) for latent in (by_ksampler, by_nodes, plain, fine)]
    messages = PageMessages(fit)
    result = server.run(g.nodes, messages)
    by_sampler, other, before, truth = (np.stack(result.images(node)).astype(float) for node in shown)
    assert np.array_equal(by_sampler, other) and by_sampler.std() > 10
    assert np.median(np.square(by_sampler - truth).mean((1, 2, 3))) < np.median(
        np.square(before - truth).mean((1, 2, 3))
    )
    text = result.text(applied)
    assert f"In the KSampler: {sampler}, amed, {steps} steps, cfg 1" in text and f"{nfe} evaluations" in text
    assert f"AMED: {nfe} evaluations, {nfe} passes" in "".join(messages.texts)
    file = load(server.base / "models" / "amed_predictors" / f"mine-{sampler}-nfe{nfe}-cfg1.safetensors")
    assert file.spec.of == sampler and file.nfe == nfe
    assert file.spec.metrics["error"] < file.spec.metrics["plain_error"]
    assert file.spec.metrics["evaluations"] <= 3500


def test_another_sampler_runs_unchanged_with_a_remark(server, graph):
    g = graph(width=16, height=16)
    fit = fitted_around(g, "euler", "4")
    applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[fit, 0])
    with_it, without = (g.ksampler("dpmpp_2m", "karras", 4, model=m) for m in ([applied, 0], g.model))
    shown = [g.show(latent) for latent in (with_it, without)]
    messages = PageMessages(fit)
    result = server.run(g.nodes, messages)
    assert np.array_equal(*(result.images(node)[0] for node in shown))
    assert "is not for dpmpp_2m, which ran without it" in "".join(messages.texts)


def test_impossible_combinations_are_errors(server, graph):
    for sampler, expected in (("euler_ancestral", "draws noise"), ("dpmpp_2m_sde", "draws noise")):
        g = graph(width=16, height=16)
        fitted_around(g, sampler, "5")
        with pytest.raises(RunError, match=expected):
            server.run(g.nodes)
    g = graph(width=16, height=16)
    fit = fitted_around(g, "euler", "4")
    other = g.add("KSamplerSelect", sampler_name="heun")
    amed_sampler = g.add(
        "AMEDSampler", sampler="auto", if_missing="error", predictor=[fit, 0], wrapped=[other, 0]
    )
    times = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=8, denoise=1.0, predictor=[fit, 0])
    g.show(g.custom(amed_sampler, times))
    with pytest.raises(RunError, match="is not for the sampler heun: use the sampler euler"):
        server.run(g.nodes)
    g = graph(width=16, height=16)
    applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[fitted_around(g, "euler", "4"), 0])
    g.show(g.amed(4, "auto", model=[applied, 0]))
    with pytest.raises(RunError, match="fitted for the host's sampler euler"):
        server.run(g.nodes)
