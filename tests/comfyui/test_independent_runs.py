"""Each run, and each item of a list, gives what it would give alone; nothing of another run is left over."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from demo.comfyui import Interrupted


@pytest.fixture(scope="module", autouse=True)
def no_files(server):
    """Remove files that these tests save."""
    yield
    for path in (server.base / "models" / "amed_predictors").glob("seeds-*.safetensors"):
        path.unlink()


def saved(server, g, latent, workflow):
    """Run the graph; return (metadata of the images that SaveImage saved, result)."""
    image = g.add("AMEDDemoDecode", samples=latent, enlarge=1)
    shown = g.add("SaveImage", images=[image, 0], filename_prefix="left_over")
    result = server.run(g.nodes, workflow=workflow)
    pictures = [Image.open(io.BytesIO(server.view(entry))) for entry in result.files("images", shown)]
    metadata = [{k: json.loads(v) for k, v in picture.text.items()} for picture in pictures]
    return metadata, [np.asarray(picture) for picture in pictures], result


def rebatched(g):
    return [g.add("RebatchLatents", latents=g.latent, batch_size=1), 0]


def test_each_item_of_a_list_gives_what_it_gives_alone(server, graph):
    """A batch of three as a list."""
    g = graph(batch=3, width=16, height=16)
    node = g.amed(5, "auto", latent_image=rebatched(g))
    text = g.add("PreviewAny", source=[node[0], 1])
    metadata, images, result = saved(server, g, node, {"extra": {}})
    reports = [report.strip() for report in result.text(text).split("predictor: ")[1:]]
    assert len(images) == len(reports) == 3
    assert len(set(reports)) == 1 and "from the workflow" not in reports[0]
    assert "evaluations counted: 5" in reports[0]
    entry = metadata[0]["workflow"]["extra"]["amed"][node[0]]
    assert isinstance(
        entry, dict
    )  # all images used the same predictor, in a form that older versions read too
    assert [report["predictor"] for report in metadata[0]["amed"][node[0]]] == [entry["name"]] * 3
    batch = graph(batch=3, width=16, height=16)  # the host gives each item its own noise
    _, others, _ = saved(server, batch, batch.amed(5, "auto"), {"extra": {}})
    assert all(np.abs(a.astype(int) - b.astype(int)).max() <= 1 for a, b in zip(images, others))


def two_models(g):
    other = g.add("TestCheckpoint", model=g.model)
    return [g.add("TestModels", first=g.model, second=[other, 0]), 0]


@pytest.mark.parametrize("kind", ["sampler", "apply"])
def test_each_checkpoint_of_a_list_uses_its_own_predictor(server, graph, kind):
    def build(g, model):
        if kind == "sampler":
            return g.amed(5, "auto", if_missing="plain", model=model)
        calibrate = g.add(
            "AMEDApplyPredictor", model=model, nfe=5, guidance=1.0, sampler="auto", if_missing="plain"
        )
        return [calibrate, g.ksampler("amed_multistep", "amed", steps=5, model=[calibrate, 0])]

    def run(model_of, workflow):
        g = graph(batch=1, width=16, height=16)
        nodes = build(g, model_of(g))
        node, latent = (nodes[0], nodes) if kind == "sampler" else nodes
        metadata, images, result = saved(server, g, latent, workflow)
        return metadata[-1]["workflow"].get("extra", {}).get("amed", {}).get(node), images, result.text(node)

    both, images, text = run(two_models, {"extra": {}})
    assert "from the workflow" not in text
    _, [first], own_metadata = run(lambda g: g.model, {"extra": {}})
    other, [second], others = run(lambda g: [g.add("TestCheckpoint", model=g.model), 0], {"extra": {}})
    assert np.array_equal(first, images[0]) and np.array_equal(second, images[1])
    assert "another checkpoint" in others and "another checkpoint" not in own_metadata
    for line in (*own_metadata.splitlines()[-1:], *others.splitlines()[-1:]):
        assert line in text
    again, after, text = run(two_models, {"extra": {"amed": dict.fromkeys(map(str, range(20)), both)}})
    assert text.count("from the workflow") >= 2
    assert all(np.array_equal(a, b) for a, b in zip(images, after))


def test_each_run_reads_its_own_workflow(server, graph):
    """Two nodes with the same id in consecutive runs: the second run carries nothing of the first."""

    def run(workflow, **asked):
        g = graph(batch=1, width=16, height=16)
        node = g.amed(5, "auto", **asked)
        metadata, _, result = saved(server, g, node, workflow)
        return metadata[0]["workflow"]["extra"]["amed"][node[0]], result.text(node[0]), node[0]

    first, text, node = run({"extra": {}}, seed=31)
    assert "from the workflow" not in text
    _, text, _ = run({"extra": {}}, seed=31)
    _, text, _ = run({"extra": {"amed": {node: first}}}, seed=31)
    assert "from the workflow" in text  # the other run is in the host's cache
    _, text, _ = run({"extra": {}}, seed=31)
    assert "from the workflow" not in text


# --- counts ------------------------------------------------------------------------------------------------


def counting(g):
    g.model = [g.add("AMEDCountEvaluations", model=g.model), 0]


def reader(g, samples):
    node = g.add("AMEDEvaluationsUsed", model=g.model, samples=samples)
    return node, g.add("PreviewAny", source=[node, 1])


def test_an_interrupted_run_is_not_counted(server, graph):
    """The interrupting node is cached in the second run, but its counter goes on."""
    g = graph(batch=1, width=16, height=16)
    g.model = [g.add("TestStops", model=g.model, at=4, wait=False), 0]
    counting(g)
    _, shown = reader(g, g.ksampler("euler", "normal", steps=8))
    with pytest.raises(Interrupted):
        server.run(g.nodes)
    assert server.run(g.nodes).text(shown) == "8"


def test_evaluations_used_counts_the_sampler_of_its_latent(server, graph):
    """Two samplers on one MODEL, chained samplers, decoded and upscaled images, and unsampled latents."""
    g = graph(batch=1, width=16, height=16)
    counting(g)
    g.show(g.ksampler("euler", "normal", steps=3))
    first = g.ksampler("euler", "normal", steps=8)
    _, eight = reader(g, first)
    larger = g.add("LatentUpscaleBy", samples=first, upscale_method="bilinear", scale_by=2.0)
    _, still = reader(g, [larger, 0])
    refined = g.ksampler("euler", "normal", steps=5, latent_image=[larger, 0])
    _, five = reader(g, refined)
    _, none = reader(g, g.latent)
    result = server.run(g.nodes)
    assert [result.text(node) for node in (eight, still, five, none)] == ["8", "8", "5", "0"]


def test_a_cached_sampler_keeps_its_count(server, graph):
    g = graph(batch=1, width=16, height=16)
    counting(g)
    latent = g.ksampler("euler", "normal", steps=8, seed=1)
    node, shown = reader(g, latent)
    assert server.run(g.nodes).text(shown) == "8"
    g.nodes[latent[0]]["inputs"]["steps"] = 3
    assert server.run(g.nodes).text(shown) == "3"
    flipped = g.add("LatentFlip", samples=latent, flip_method="x-axis: vertically")
    g.nodes[node]["inputs"]["samples"] = [flipped, 0]
    assert server.run(g.nodes).text(shown) == "3"  # the sampler's result comes from the host's cache


def test_counts_of_lists(server, graph):
    """Each latent of a list has its own count; rejoined to a batch they are counted together; each MODEL
    separately."""
    g = graph(batch=3, width=16, height=16)
    counting(g)
    each = g.ksampler("euler", "normal", steps=4, latent_image=rebatched(g))
    _, items = reader(g, each)
    joined = g.add("RebatchLatents", latents=each, batch_size=3)
    _, joined_count = reader(g, [joined, 0])
    result = server.run(g.nodes)
    assert result.text(items).split() == ["4", "4", "4"] and result.text(joined_count) == "12"
    g = graph(batch=1, width=16, height=16)
    g.model = two_models(g)
    counting(g)
    _, shown = reader(g, g.ksampler("euler", "normal", steps=4))
    assert server.run(g.nodes).text(shown).split() == ["4", "4"]


def test_counts_of_nodes_that_a_node_expands_into(server, graph):
    g = graph(batch=1, width=16, height=16)
    counting(g)
    node = g.add("TestExpands", **g.around(), steps=6)
    inner = g.add("PreviewAny", source=[node, 1])
    _, outer = reader(g, [node, 0])
    result = server.run(g.nodes)
    assert (result.text(inner), result.text(outer)) == ("6", "6")


# --- limits ------------------------------------------------------------------------------------------------


def test_seeds_have_64_bits(server, graph):
    """Typed and linked seeds, on every node with a seed except the one that trains."""
    nodes = {name: node["input"] for name, node in server.object_info().items() if name.startswith("AMED")}
    most = {name: inputs["required"]["seed"][1]["max"] for name, inputs in nodes.items()
            if "seed" in inputs.get("required", {})}  # fmt: skip
    assert len(most) == 5 and set(most.values()) == {2**64 - 1}
    seed, g = 2**64 - 1, graph(batch=1, width=16, height=16)
    linked = [g.add("TestSeed", value=str(seed)), 0]
    shown = [g.show(g.amed(5, "auto", seed=value)) for value in (seed, linked)]
    calibrate = g.add("AMEDCalibrate", **g.around(), sampler="amed_multistep", nfe="3", guidance=1.0,
                      budget="custom", evaluations=1600, seed=linked, name="seeds")  # fmt: skip
    alike = {"samplers": "amed", "nfe": "5", "guidance": 1.0, "seeds": 2, "reference": 0}
    g.add("AMEDCompare", **g.around(), **alike, seed=seed)
    g.add("AMEDTrajectoryPlot", **g.around(), seed=seed, nfe=5, guidance=1.0, reference=20)
    result = server.run(g.nodes)
    first, other = (result.images(node)[0] for node in shown)
    assert "nfe3" in result.text(calibrate) and np.array_equal(first, other)


def test_fitting_and_plotting_nodes_handle_lists_of_checkpoints(server, graph):
    """Each item saves and reports for its own checkpoint."""
    g = graph(batch=1, width=16, height=16)
    g.model = two_models(g)
    calibrate = g.add("AMEDCalibrate", **g.around(), sampler="amed_multistep", nfe="2", guidance=1.0,
                      budget="custom", evaluations=1400, seed=0, name="seeds")  # fmt: skip
    info = g.add("AMEDPredictorInfo", predictor=[calibrate, 0])
    compared = g.add("AMEDCompare", **g.around(), samplers="amed", nfe="5", guidance=1.0, seed=0, seeds=1,
                     reference=0)  # fmt: skip
    table = g.add("PreviewAny", source=[compared, 1])
    plot = g.add("AMEDTrajectoryPlot", **g.around(), seed=0, nfe=5, guidance=1.0, reference=20)
    text = g.add("PreviewAny", source=[plot, 1])
    result = server.run(g.nodes)
    prints = [line for line in result.text(info).splitlines() if line.startswith("model_fingerprint")]
    assert len(prints) == len(set(prints)) == 2
    assert result.text(calibrate).count("saved as seeds-nfe2-cfg1") == 2
    for report in (result.text(table), result.text(text)):
        assert report.count("fitted for another checkpoint") == 1


def test_training_accepts_a_64_bit_seed(server, graph):
    g = graph(batch=1, width=16, height=16)
    g.add("AMEDTrainPredictor", **g.around(), sampler="amed", nfe=4, guidance=1.0, images=4, batch=4,
          teacher_points=1, learning_rate=5e-3, seed=2**64 - 1, name="seeds")  # fmt: skip
    server.run(g.nodes)


def test_denoise_zero_and_many_evaluations_behave_as_in_the_host(server, graph):
    """denoise 0 returns the latent unchanged, as KSampler does; the host allows 10,000 steps."""
    g = graph(batch=1, width=16, height=16)
    start = g.ksampler("euler", "normal", steps=2)
    same = g.amed(5, "auto", denoise=0.0, latent_image=start)
    sampler = g.add("AMEDSampler", sampler="auto", if_missing="plain")
    none = g.add("AMEDScheduler", model=g.model, sampler="auto", nfe=5, denoise=0.0)
    nodes = [g.show(latent) for latent in (start, same)]
    g.show(g.custom(sampler, none))
    result = server.run(g.nodes)
    first, other = (result.images(node)[0] for node in nodes)
    assert np.array_equal(first, other) and "evaluations counted: 0" in result.text(same[0])
    g = graph(batch=1, width=16, height=16)
    many = g.amed(150, "auto", if_missing="plain")
    g.show(many)
    assert "evaluations counted: 150" in server.run(g.nodes).text(many[0])
