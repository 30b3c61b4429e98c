"""The nodes for comparing: plain solvers at exactly nfe evaluations, and the count of any sampler's."""

import numpy as np
import pytest

from demo.comfyui import RunError


def counted(server, g, build):
    """Run what `build(model)` gives on a counting MODEL: (text of the count, images)."""
    model = [g.add("AMEDCountEvaluations", model=g.model), 0]
    used = g.add("AMEDEvaluationsUsed", model=model, samples=build(model))
    shown = g.show([used, 0])
    result = server.run(g.nodes)
    return result.text(used), np.stack(result.images(shown))


@pytest.mark.parametrize(
    ("sampler", "steps", "evaluations"),
    [("euler", 5, 5), ("heun", 5, 9), ("dpmpp_2m", 5, 5), ("uni_pc", 5, 5)],
)
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_any_sampler_is_counted(server, graph, sampler, steps, evaluations, cfg):
    g = graph(batch=2)
    text, _ = counted(server, g, lambda model: g.ksampler(sampler, steps=steps, cfg=cfg, model=model))
    rows = evaluations * 2 * int(cfg)
    assert text == f"{evaluations} evaluations, {rows} rows through the network"


def plain(g, model, nfe=5, solver="iPNDM-3", schedule="time_uniform", rho=1.0, afs=False, cfg=1.0):
    made = g.add("AMEDPlainSolver", model=model, solver=solver, nfe=nfe, schedule=schedule, rho=rho, afs=afs)
    out = g.add("SamplerCustom", add_noise=True, noise_seed=3, cfg=cfg, sampler=[made, 0], sigmas=[made, 1],
                **g.around() | {"model": model})  # fmt: skip
    return [out, 0]


@pytest.mark.parametrize(
    ("solver", "nfe", "afs"),
    [("Euler", 4, False), ("iPNDM-3", 5, True), ("DPM++ 2M", 6, False), ("Heun", 5, True)],
)
def test_plain_solver_takes_what_it_says(server, graph, solver, nfe, afs):
    g = graph(batch=2)
    text, images = counted(server, g, lambda model: plain(g, model, nfe, solver, afs=afs))
    assert text == f"{nfe} evaluations, {2 * nfe} rows through the network"
    assert images.std() > 10


def test_plain_euler_is_the_hosts_euler(images, graph):
    """On the host's karras schedule; ours stops at sigma_min, theirs goes on to 0."""
    g = graph(batch=2)
    one, two = images(
        g, plain(g, g.model, 29, "Euler", "polynomial", 7.0), g.ksampler("euler", "karras", 30, seed=3)
    )
    assert np.abs(one.astype(int) - two).max() <= 2


def test_impossible_numbers_and_other_models_are_refused(server, graph):
    g = graph()
    g.show(plain(g, g.model, 5, "Heun"))
    with pytest.raises(RunError, match="Heun without the analytic first step cannot take 5 evaluations"):
        server.run(g.nodes)
    g = graph()
    used = g.add("AMEDEvaluationsUsed", model=g.model, samples=g.latent)
    g.show([used, 0])
    with pytest.raises(RunError, match="connect the output of AMED Count Evaluations"):
        server.run(g.nodes)
