"""The pack as a guest: it loads, describes its nodes, and leaves the host unchanged."""

import re

import numpy as np
import pytest

from amed import SAMPLERS
from demo.comfyui import PACK, ROOT, RunError

NODES = sorted(page.stem for page in (ROOT / "web" / "docs").glob("*.md"))


def options(info, node, name):
    kind, *more = info[node]["input"]["required"][name]
    return kind if isinstance(kind, list) else more[0]["options"]


def test_the_pack_loads_without_warnings(server):
    lines = [line for line in server.log().splitlines() if PACK in line or "AMED" in line]
    assert lines, "ComfyUI's log does not mention the pack"
    assert not [line for line in lines if "IMPORT FAILED" in line or "Cannot import" in line]
    assert any(re.search(r"[\d.]+ seconds", line) for line in lines), (
        "ComfyUI's log does not list the pack as loaded"
    )


@pytest.mark.parametrize("node", NODES)
def test_each_node_is_registered_with_help(server, node):
    info = server.get(f"/object_info/{node}")[node]
    assert info["category"] == "sampling/AMED" and info["description"]
    page = ROOT / "web" / "docs" / f"{node}.md"
    assert page.is_file()
    text = page.read_text()
    for name in [*info["input"].get("required", {}), *info["input"].get("optional", {})]:
        assert f"**{name}**" in text, f"{page.name} does not explain {name}"
    assert server.request(f"/extensions/{PACK}/docs/{node}.md").decode() == text


def test_every_node_has_a_help_page(server):
    ours = [name for name, node in server.object_info().items() if node["category"] == "sampling/AMED"]
    assert len(ours) >= 7 and sorted(ours) == NODES


def test_dropdowns_have_our_entries_and_all_of_the_hosts(server):
    info = server.object_info()
    for node in ("KSampler", "KSamplerAdvanced"):
        samplers, schedulers = options(info, node, "sampler_name"), options(info, node, "scheduler")
        assert samplers[0] == "euler" and samplers[-len(SAMPLERS) :] == list(SAMPLERS)
        assert len(set(samplers)) == len(samplers)
        assert {"karras", "normal", "amed"} <= set(schedulers) and schedulers.count("amed") == 1


def test_only_predictor_files_are_offered(server):
    offered = options(server.object_info(), "AMEDLoadPredictor", "name")
    assert "test_amed.safetensors" in offered
    assert all(name.endswith(".safetensors") for name in offered)


def test_the_model_is_not_changed(images, graph):
    """Plain Euler, then every sampler of ours on the same MODEL, then plain Euler again: equal to the bit."""

    def euler(seed=11):
        g = graph(batch=2)
        return images(g, g.ksampler("euler", seed=seed, cfg=2.0))

    before = euler()
    g = graph(batch=2)
    loaded = g.add("AMEDLoadPredictor", name="test_amed.safetensors")
    applied = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
    ours = images(
        g,
        g.amed(guidance=2.0),
        g.ksampler("amed", "amed", 2, cfg=2.0, model=[applied, 0]),
        g.ksampler("amed_ipndm", "amed", 3, cfg=2.0),
    )
    assert all(len(pair) == 2 for pair in ours)
    # another order of node ids, so that nothing comes from ComfyUI's cache
    g = graph(batch=2)
    g.add("AMEDLoadPredictor", name="test_amed.safetensors")
    after = images(g, g.ksampler("euler", seed=11, cfg=2.0, scheduler="karras"))
    assert np.array_equal(before, after)


def test_prompts_of_another_model_are_refused(server, graph):
    g = graph()
    empty = g.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    g.show(g.amed(latent_image=[empty, 0]))
    server.run(g.nodes)  # an empty latent of 4 channels becomes one of 3: the host's own rule
    g = graph(width=32, height=32)
    odd = g.add("LatentCrop", samples=g.latent, width=136, height=256, x=0, y=0)  # 17 x 32
    g.show(g.amed(latent_image=[odd, 0]))
    with pytest.raises(RunError, match="multiples of 4, got a LATENT of 17x32"):
        server.run(g.nodes)
