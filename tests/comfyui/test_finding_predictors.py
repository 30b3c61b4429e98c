"""A saved predictor is found, and a node runs again only if it would choose another one."""

import os
import time
from dataclasses import replace

import pytest
import torch

from amed import Fitted, load, save, schedules
from amed.constants import as_multistep
from amed.fingerprint import fingerprint
from amed.outside import Outside
from amed.recipes import Solver
from demo.comfyui import RunError
from demo.model import SIGMA_MAX, SIGMA_MIN, load_unet

NFE = 13  # a number of evaluations that no other file takes
CALIBRATE = "calibrate now (quick)"


@pytest.fixture(scope="module")
def demo():
    return fingerprint(load_unet().named_parameters())


@pytest.fixture
def write_predictor(server, demo_spec):
    """`put(name, error=, family=...)` writes a table of NFE evaluations into the user's folder, for this
    test."""
    folder, written = server.base / "models" / "amed_predictors", []

    def write(name, error=0.5, count=NFE + 1, order=2, guidance=1.0, **changes):
        times = schedules.make("time_uniform", count, SIGMA_MIN, SIGMA_MAX)
        spec = demo_spec(
            solver="multistep", num_steps=count, guidance=guidance, metrics={"rmse_ref": error}, **changes
        )
        path = save(
            folder / f"{name}.safetensors", Fitted(spec, as_multistep(Solver("ipndm", order), times), times)
        )
        written.append(path)
        return path

    yield write
    for path in written:
        path.unlink(missing_ok=True)


def run_graph(server, graph, **options):
    """Run the graph; return (nodes that ran, result)."""
    node_classes = set()

    def on_event(kind, data):
        if kind == "executing" and data.get("node"):
            node_classes.add(data["node"])

    result = server.run(graph.nodes, on_event, **options)
    return node_classes, result


def ksampler(g):
    node = g.amed(NFE, "auto", if_missing="plain")
    g.show(node)
    return node[0], node[0]


def applied(g):
    node = g.add(
        "AMEDApplyPredictor", model=g.model, nfe=NFE, guidance=1.0, sampler="auto", if_missing="plain"
    )
    g.show(g.ksampler("amed_multistep", "amed", steps=NFE, model=[node, 0]))
    return node, node


def custom(g):
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="plain")
    sigmas = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=NFE, denoise=1.0)
    node = g.custom(sampler, sigmas)
    g.show(node)
    return sigmas, node[0]


def custom_alone(g):
    """AMED Sampler on the host's noise levels; it asks the library while the host's sampling node runs."""
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="plain")
    sigmas = g.add("KarrasScheduler", steps=NFE + 1, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN, rho=7.0)
    node = g.custom(sampler, sigmas)
    g.show(node)
    return sampler, node[0]


def compare_inputs(samplers, nfe):
    """Return the widgets of Compare AMED."""
    return {"samplers": samplers, "nfe": str(nfe), "guidance": 1.0, "seed": 0, "seeds": 1, "reference": 0}


def compare(g):
    node = g.add("AMEDCompare", **g.around(), **compare_inputs("amed\nplain", NFE))
    return node, node


def trajectory(g):
    node = g.add("AMEDTrajectoryPlot", **g.around(), seed=0, nfe=NFE, guidance=1.0, reference=30)
    return node, node


NODES = [ksampler, applied, custom, custom_alone, compare, trajectory]


@pytest.mark.parametrize("build", NODES, ids=lambda build: build.__name__)
def test_a_node_runs_again_only_if_its_choice_changes(server, graph, write_predictor, demo, build):
    fields = {"model_fingerprint": demo}
    used = write_predictor("used", **fields)
    g = graph(width=16, height=16)
    asks, samples = build(g)
    assert samples in run_graph(server, g)[0]
    unchanged = {
        "the same": lambda: None,
        "touched": lambda: os.utime(used),
        "written again": lambda: save(used, load(used)),
        "another family": lambda: write_predictor("elsewhere", 0.01, model_family="sdxl"),
        "another checkpoint": lambda: write_predictor("other", 0.01, model_fingerprint="0" * 16),
        "worse": lambda: write_predictor("worse", 0.9, **fields),
        "other evaluations": lambda: write_predictor("fewer", 0.01, count=NFE, **fields),
        "deleted": lambda: (used.parent / "worse.safetensors").unlink(),
    }
    for case, change in unchanged.items():
        change()
        assert not {asks, samples} & run_graph(server, g)[0], case
    better = write_predictor("better", 0.1, order=3, **fields)
    nodes, result = run_graph(server, g)
    assert {asks, samples} <= nodes
    shown = result.text(asks) + result.text(samples)
    assert "better" in shown or build not in (ksampler, applied)
    assert not {asks, samples} & run_graph(server, g)[0]
    better.unlink()
    assert {asks, samples} <= run_graph(server, g)[0]
    assert not {asks, samples} & run_graph(server, g)[0]


def test_a_linked_or_named_predictor_depends_only_on_its_file(server, graph, write_predictor, demo):
    path = write_predictor("named", model_fingerprint=demo)
    g = graph(width=16, height=16)
    loaded = g.add("AMEDLoadPredictor", name=path.name)
    apply = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
    ordinary = g.ksampler("amed_multistep", "amed", steps=NFE, model=[apply, 0])[0]
    named = g.amed(NFE, "auto", predictor=path.name)[0]
    carried = g.amed(NFE, "auto", model=[apply, 0])[0]
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="plain", predictor=[loaded, 0])
    sigmas = g.add(
        "AMEDScheduler", model=g.model, sampler="auto", nfe=NFE, denoise=1.0, predictor=[loaded, 0]
    )
    ours = {loaded, apply, ordinary, named, carried, sampler, sigmas, g.custom(sampler, sigmas)[0]}
    for node in (ordinary, named, carried, str(len(g.nodes))):
        g.show([node, 0])
    assert ours <= run_graph(server, g)[0]
    write_predictor("better", 0.01, order=3, model_fingerprint=demo)
    os.utime(path)
    assert not ours & run_graph(server, g)[0]
    time.sleep(0.01)
    write_predictor("named", order=3, model_fingerprint=demo)
    assert ours <= run_graph(server, g)[0]


@pytest.mark.parametrize("sampler", ["amed", "amed_ipndm"])
def test_a_saved_plain_solver_is_found_under_the_requested_sampler(
    server, graph, write_predictor, demo, sampler
):
    """Every node uses a plain solver that was saved by a fit for another sampler."""
    path = write_predictor("kept", model_fingerprint=demo)
    table = load(path)
    spec = replace(table.spec, solver="ipndm", max_order=2, features="plain", fitted_for=sampler)
    save(path, Fitted(spec, None, table.base))
    assert load(path).spec.sampler == "amed_multistep"
    around = {"nfe": NFE, "guidance": 1.0, "sampler": sampler, "if_missing": CALIBRATE}
    g = graph(width=16, height=16)
    calibrating = g.amed(NFE, sampler, if_missing=CALIBRATE)
    apply = g.add("AMEDApplyPredictor", **around, **g.around())
    attached = g.ksampler(sampler, "amed", steps=NFE, model=[apply, 0])
    schedule = g.add("AMEDScheduler", model=g.model, sampler=sampler, nfe=NFE, denoise=1.0)
    node = g.add("AMEDSampler", sampler=sampler, if_missing="error")
    last = g.custom(node, schedule)
    for latent in (calibrating, attached, last):
        g.show(latent)
    begin = time.monotonic()
    result = server.run(g.nodes)
    assert time.monotonic() - begin < 60
    assert "predictor: kept.safetensors" in result.text(
        calibrating[0]
    ) and "calibrated now" not in result.text(calibrating[0])
    assert "kept.safetensors" in result.text(apply) and "kept.safetensors" in result.text(schedule)


def test_calibrate_now_finds_its_own_result(server, graph):
    """On a small image: whatever the fit saves, it runs once and not again in Apply."""
    g = graph(batch=1, width=16, height=16)
    sampled = g.amed(3, "amed_dpm_2", guidance=1.0, if_missing=CALIBRATE)
    g.show(sampled)
    _, first = run_graph(server, g)
    again, _ = run_graph(server, g)
    assert "calibrated now" in first.text(sampled[0]) and sampled[0] not in again
    g.nodes[sampled[0]]["inputs"]["seed"] = 4
    apply = g.add("AMEDApplyPredictor", nfe=3, guidance=1.0, sampler="amed_dpm_2", if_missing=CALIBRATE,
                  **g.around())  # fmt: skip
    g.show(g.ksampler("amed_dpm_2", "amed", steps=2, model=[apply, 0]))
    _, second = run_graph(server, g)
    assert "calibrated now" not in second.text(sampled[0]) + second.text(apply)


def test_the_scheduler_uses_the_cfg_of_the_sampling_node(server, graph, write_predictor, demo):
    """Of two files on different noise levels the one for this cfg runs, on its own schedule."""
    write_predictor("at one", guidance=1.0, model_fingerprint=demo)
    times = schedules.make("polynomial", NFE + 1, SIGMA_MIN, SIGMA_MAX)
    five = write_predictor("at five", guidance=5.0, model_fingerprint=demo)
    spec = replace(load(five).spec, schedule="polynomial", rho=7.0)
    save(five, Fitted(spec, as_multistep(Solver("ipndm", 2), times), times))

    def text(cfg, **guidance):
        g = graph(width=16, height=16)
        sampler = g.add("AMEDSampler", sampler="auto", if_missing="error")
        sigmas = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=NFE, denoise=1.0, **guidance)
        value = cfg
        if cfg == "linked":
            value = [g.add("PrimitiveFloat", value=5.0), 0]
        if cfg == "guider":
            guider = g.add("CFGGuider", model=g.model, positive=g.positive, negative=g.negative, cfg=5.0)
            noise = g.add("RandomNoise", noise_seed=3)
            parts = g.add("SplitSigmas", sigmas=[sigmas, 0], step=5)
            node = [g.add("SamplerCustomAdvanced", noise=[noise, 0], guider=[guider, 0], sampler=[sampler, 0],
                          sigmas=[parts, 0], latent_image=g.latent), 0]  # fmt: skip
        else:
            node = g.custom(sampler, sigmas, cfg=value)
        g.show(node)
        return server.run(g.nodes).text(sigmas)

    assert "at one" in text(1.0) and "at five" in text(5.0)
    assert "at one" in text(1.0)  # the schedule for 5 is in the host's cache
    assert "at five" in text("linked")
    assert "at one" in text(1.0) and "at five" in text("guider")
    assert "at one" in text(5.0, guidance=1.0)


def around_host(write_predictor):
    """Return a file for a sampler of the host, of 15 evaluations."""
    path = write_predictor("host", count=16)
    times = load(path).base
    spec = replace(load(path).spec, solver="outside", of="dpmpp_2m", calls=15, features="none")
    return save(path, Fitted(spec, Outside(times, times[:-1].clone(), torch.ones(15), torch.ones(15)), times))


def test_compare_names_only_usable_predictors(server, graph, write_predictor, demo):
    path = around_host(write_predictor)
    g = graph(width=16, height=16)
    node = g.add("AMEDCompare", **g.around(), **compare_inputs("amed\nplain", 15))
    table = g.add("PreviewAny", source=[node, 1])
    table_text = server.run(g.nodes).text(table)
    assert "no predictor for this model at 15 evaluations" in table_text
    assert "15" not in table_text.partition("There are some for")[2].partition(".")[0]
    loaded = g.add("AMEDLoadPredictor", name=path.name)
    apply = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
    write_predictor("usable", count=16, model_fingerprint=demo)
    g.nodes[node]["inputs"]["model"] = [apply, 0]
    assert "usable" in server.run(g.nodes).text(table)


def test_a_host_samplers_predictor_with_our_sampler_is_reported(server, graph, write_predictor):
    """The ordinary KSampler with another sampler of ours says what to choose."""
    path = around_host(write_predictor)
    g = graph(width=16, height=16)
    loaded = g.add("AMEDLoadPredictor", name=path.name)
    apply = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
    g.show(g.ksampler("amed_ipndm", "amed", steps=4, model=[apply, 0]))
    with pytest.raises(RunError, match="fitted for the host's sampler dpmpp_2m.*you can choose dpmpp_2m"):
        server.run(g.nodes)
