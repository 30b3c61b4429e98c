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
    assert soak.more(first, last) == {}


def test_what_is_left_would_be_seen(server, graph):
    """A hook on the network, a patch on the MODEL, a function put in another's place, a tensor, an entry of a
    list."""
    before = soak.look(server, graph, 0)
    g = graph()
    leaving = g.add("TestLeaves", model=g.model)
    node = g.add("TestLeft", model=[leaving, 0])
    seen = soak.read(server, g, node)
    grown = soak.more(before, soak.Seen(0, {}, seen))
    left = {name: last - first for name, (first, last) in grown.items() if not name.startswith("ours: ")}
    assert left == {"tensors: Tensor torch.float32 [3, 1, 4, 1, 5]": 1, "lengths: SAMPLER_NAMES": 1}
    assert seen["hooks"] and seen["patches"] and seen["replaced"] == ["comfy.samplers.sampling_function"]
    soak.look(server, graph, 0)
    assert not any(soak.look(server, graph, 0).inside[what] for what in ("hooks", "patches", "replaced"))
