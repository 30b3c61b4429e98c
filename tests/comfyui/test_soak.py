"""The quick form of `make soak`: fifty generations of ten kinds in one ComfyUI, with predictors swapped,
fitted and deleted between, and nothing of them left."""

from trust import soak


def test_nothing_is_left(server, graph):
    made = soak.run(server, graph, 50, at=(10, 50), round_=50)  # the same file swapped in at both
    assert len(made.each) == 50 and len({kind for kind, *_ in made.each}) == len(soak.KINDS)
    assert made.between == {"swapped": 5, "refitted": 2, "failed on purpose": 1, "deleted": 1}
    first, last = made.looks
    for seen in (first, last):
        assert not seen.inside["hooks"] and not seen.inside["patches"] and not seen.inside["replaced"]
    assert last.inside["tensors"] <= first.inside["tensors"]
    assert sum(last.inside["ours"].values()) <= sum(first.inside["ours"].values())
    assert last.memory["Uss"] < 1.02 * first.memory["Uss"]


def test_what_is_left_would_be_seen(server, graph):
    """A hook on the network, a patch on the MODEL and a function put in another's place."""
    soak.look(server, graph, 0)
    g = graph()
    leaving = g.add("TestLeaves", model=g.model)
    node = g.add("TestLeft", model=[leaving, 0])
    seen = soak.read(server, g, node)
    assert seen["hooks"] and seen["patches"] and seen["replaced"] == ["comfy.samplers.sampling_function"]
    soak.look(server, graph, 0)
    assert not any(soak.look(server, graph, 0).inside[what] for what in ("hooks", "patches", "replaced"))
