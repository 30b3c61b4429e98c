"""The quick form of `make soak`: fifty generations of ten kinds in one ComfyUI, with predictors swapped,
fitted and deleted in between, and nothing left behind."""

from trust import soak


def test_nothing_is_left_behind(server, graph):
    soak_run = soak.run(server, graph, 50, at=(10, 50), round_=50)  # the same file is swapped in at both
    assert len(soak_run.each) == 50 and len({kind for kind, *_ in soak_run.each}) == len(soak.KINDS)
    assert soak_run.between == {"swapped": 5, "refitted": 2, "failed on purpose": 1, "deleted": 1}
    first, last = soak_run.looks
    for look in (first, last):
        assert not look.inside["hooks"] and not look.inside["patches"] and not look.inside["replaced"]
    assert soak.growth_between(first, last) == {}


def test_anything_left_behind_would_be_detected(server, graph):
    """A hook on the network, a patch on the MODEL, a replaced function, a tensor and a list entry are all
    detected."""
    before = soak.look(server, graph, 0)
    g = graph()
    leaving = g.add("TestLeaves", model=g.model)
    node = g.add("TestLeft", model=[leaving, 0])
    state = soak.read(server, g, node)
    grown = soak.growth_between(before, soak.Look(0, {}, state))
    growth = {name: last - first for name, (first, last) in grown.items() if not name.startswith("ours: ")}
    assert growth == {"tensors: Tensor torch.float32 [3, 1, 4, 1, 5]": 1, "lengths: SAMPLER_NAMES": 1}
    assert state["hooks"] and state["patches"] and state["replaced"] == ["comfy.samplers.sampling_function"]
    soak.look(server, graph, 0)
    assert not any(soak.look(server, graph, 0).inside[kind] for kind in ("hooks", "patches", "replaced"))
