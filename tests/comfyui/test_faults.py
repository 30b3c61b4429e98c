"""Out of memory in the real host: its own message, nothing of ours left behind, and a working next run."""

import json

import numpy as np
import pytest

from amed import load
from demo.comfyui import RunError

TIP = r"CUDA out of memory[\s\S]*you ran out of memory on your GPU"  # the second half is the host's


def with_memory(g, at, name):
    """Return the graph's MODEL, patched to run out of memory at an evaluation."""
    return [g.add("TestMemory", model=g.model, at=at, name=name), 0]


def left_behind(server, g, model, again):
    """Return what a run left on a MODEL."""
    node = g.add("TestKept", model=model, again=again)
    names = {node, model[0], g.demo}
    state = json.loads(server.run({k: v for k, v in g.nodes.items() if k in names}).text(node))
    return state, state.pop("seen"), state.pop("calls")


def by_ksampler(g, model):
    return g.ksampler("amed_ipndm", model=model)


def by_node(g, model):
    return g.amed(nfe=5, sampler="amed_multistep", if_missing="plain", model=model)


def by_network(g, model):
    return g.amed(nfe=6, guidance=2.0, predictor="test_mlp.safetensors", model=model)


@pytest.mark.parametrize(("sample", "at"), [(by_ksampler, 1), (by_node, 3), (by_network, 4)])
def test_out_of_memory_while_sampling(server, graph, sample, at):
    reference_graph, g = graph(), graph()
    shown = reference_graph.show(sample(reference_graph, with_memory(reference_graph, 0, sample.__name__)))
    before = server.run(reference_graph.nodes).images(shown)

    model = with_memory(g, at, sample.__name__)
    clean, left_tensors, _ = left_behind(server, g, model, 0)
    shown = g.show(sample(g, model))
    with pytest.raises(RunError, match=TIP):
        server.run(g.nodes)
    after, more, _ = left_behind(server, g, model, 1)
    assert more == left_tensors + 2 * (at - 1) and after["held"] == 0 and after == clean
    assert np.array_equal(server.run(g.nodes).images(shown), before)  # the same MODEL


def test_out_of_memory_while_calibrating(server, graph):
    """Early in a fit nothing is saved; later the best so far is saved as unfinished."""
    inputs = {"nfe": "2", "sampler": "amed_multistep", "guidance": 1.0, "budget": "custom",
              "evaluations": 1340, "seed": 0}  # fmt: skip
    folder = server.base / "models" / "amed_predictors"

    def calibrating(at, name):
        g = graph(width=16, height=16)
        model = with_memory(g, at, name)
        return g, model, g.add("AMEDCalibrate", **g.around() | inputs | {"model": model, "name": name})

    g, model, calibrate = calibrating(0, "whole")
    server.run(g.nodes)
    complete = load(folder / "whole-nfe2-cfg1.safetensors")
    calls = left_behind(server, g, model, 2)[2]["whole"]
    for number, (at, is_saved) in enumerate([(calls // 4, False), (calls - 3, True)]):
        g, model, calibrate = calibrating(at, f"short-{number}")
        clean, left_tensors, _ = left_behind(server, g, model, 3)
        with pytest.raises(RunError, match=TIP):
            server.run(g.nodes)
        after, more, _ = left_behind(server, g, model, 4)
        assert more == left_tensors + 2 * (at - 1) and after["held"] == 0 and after == clean
        place = folder / f"short-{number}-nfe2-cfg1.safetensors"
        assert place.exists() == is_saved and (not is_saved or load(place).spec.metrics["finished"] is False)
        assert not list(folder.glob(".*"))
    server.run(g.nodes)  # the same MODEL: the same fit, finished
    assert load(place).spec.metrics == complete.spec.metrics
