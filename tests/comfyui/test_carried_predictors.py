"""Carry a predictor to another machine: as a text code, or in an image's metadata."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from amed import load, save
from amed.files.code import code_of
from demo.comfyui import RunError

FILE = "test_amed.safetensors"  # takes 4 evaluations, for any checkpoint of the demo model's family
NAME = "mine.safetensors"


def folder(server):
    return server.base / "models" / "amed_predictors"


@pytest.fixture
def mine(server):
    """A predictor file of the user, which does not exist on the other machine."""
    return save(folder(server) / NAME, load(folder(server) / FILE))


def test_a_workflow_carries_the_loaded_predictor_to_another_machine(server, graph, mine):
    def run(workflow, name=NAME):
        g = graph()
        loaded = g.add("AMEDLoadPredictor", name=name)
        apply = g.add("AMEDApplyPredictor", model=g.model, predictor=[loaded, 0])
        latent = g.ksampler("amed", "amed", steps=2, model=[apply, 0])
        image = g.add("AMEDDemoDecode", samples=latent, enlarge=1)
        shown = g.add("SaveImage", images=[image, 0], filename_prefix="carried")
        result = server.run(g.nodes, workflow=workflow)
        png = Image.open(io.BytesIO(server.view(result.files("images", shown)[0])))
        return np.asarray(png), json.loads(png.text["workflow"]), result.text(loaded), loaded

    before, workflow, _, node = run({})
    assert workflow["extra"]["amed"][node]["code"] == code_of(load(mine))
    mine.unlink()
    after, _, text, _ = run(workflow)
    assert np.array_equal(before, after) and f"{NAME}, from the workflow" in text
    with pytest.raises(RunError, match="there is no predictor 'another.safetensors'") as refused:
        run(workflow, "another.safetensors")
    assert str(refused.value).count("\n") < 3


def test_predictor_info_gives_a_code_that_load_accepts(server, graph):
    g = graph()
    loaded = g.add("AMEDLoadPredictor", name=FILE)
    info = g.add("AMEDPredictorInfo", predictor=[loaded, 0])
    shown = g.add("PreviewAny", source=[info, 2])
    code = server.run(g.nodes).text(shown)
    assert code == code_of(load(folder(server) / FILE))

    g = graph()
    pasted = g.add("AMEDLoadPredictor", name="not here.safetensors", code=f"  {code[:50]}\n{code[50:]}\n")
    info = g.add("AMEDPredictorInfo", predictor=[pasted, 0])
    assert server.run(g.nodes).text(info).startswith("pasted (amed, 4 evaluations")
    g.nodes[pasted]["inputs"]["code"] = code[:-9]
    with pytest.raises(RunError, match="pasted: the code .* cannot be loaded: the predictor's code is"):
        server.run(g.nodes)


def saved_by_ksampler(server, graph, workflow, seed=3, **asked):
    """Return (pixels, metadata, node id) of an image that AMED KSampler made and SaveImage saved."""
    g = graph()
    latent = g.amed(seed=seed, **asked)
    image = g.add("AMEDDemoDecode", samples=latent, enlarge=1)
    shown = g.add("SaveImage", images=[image, 0], filename_prefix="by_ksampler")
    result = server.run(g.nodes, workflow=workflow)
    png = Image.open(io.BytesIO(server.view(result.files("images", shown)[0])))
    return np.asarray(png), {k: json.loads(v) for k, v in png.text.items()}, latent[0]


def test_an_images_metadata_states_what_ran(server, graph):
    _, metadata, node = saved_by_ksampler(server, graph, {}, nfe=4, guidance=2.0)
    mine = metadata["amed"][node]
    assert (mine["predictor"], mine["solver"]) == (FILE, "amed")
    assert (mine["evaluations"], mine["passes"], mine["guidance"]) == (4, 8, 2.0)
    assert "evaluations counted: 4, 8 network passes per image" in mine["text"]
    _, metadata, node = saved_by_ksampler(server, graph, {}, nfe=12, sampler="auto", if_missing="plain")
    mine = metadata["amed"][node]
    assert mine["predictor"] == "plain" and mine["evaluations"] == 12 and len(mine["notes"]) == 1
    assert node not in metadata["workflow"].get("extra", {}).get(
        "amed", {}
    )  # any installation has these itself


@pytest.mark.parametrize("inputs", [{}, {"predictor": NAME}], ids=["auto", "named"])
def test_ksampler_uses_the_predictor_in_the_workflow(server, graph, mine, inputs):
    """On a machine without the file, an image's workflow gives the same image bit for bit."""
    (folder(server) / FILE).rename(folder(server) / "away")
    try:
        before, metadata, node = saved_by_ksampler(server, graph, {}, **inputs)
        assert metadata["amed"][node]["predictor"] == NAME
        mine.unlink()
        other, _, _ = saved_by_ksampler(server, graph, metadata["workflow"], seed=4, **inputs)
        after, again, _ = saved_by_ksampler(server, graph, metadata["workflow"], **inputs)
        assert np.array_equal(before, after) and not np.array_equal(before, other)
        assert again["amed"][node]["predictor"] == f"{NAME}, from the workflow"
        with pytest.raises(RunError, match="no predictor"):
            saved_by_ksampler(server, graph, metadata["workflow"], nfe=10, sampler="amed_euler", **inputs)
    finally:
        (folder(server) / "away").rename(folder(server) / FILE)


def test_a_carried_predictor_of_another_checkpoint_is_not_used(server, graph, mine):
    _, metadata, node = saved_by_ksampler(server, graph, {}, predictor=NAME)
    workflow = metadata["workflow"]
    other = load(folder(server) / "test_other_checkpoint.safetensors")
    workflow["extra"]["amed"][node] |= {"code": code_of(other), "checkpoint": "f" * 16}
    _, after, _ = saved_by_ksampler(server, graph, workflow, seed=5, predictor=NAME)
    assert after["amed"][node]["predictor"] == NAME
    assert "not taken from the workflow: " in after["amed"][node]["notes"][0]
    workflow["extra"]["amed"][node]["code"] = "amed:broken"
    _, after, _ = saved_by_ksampler(server, graph, workflow, seed=6, predictor=NAME)
    assert "not taken from the workflow: " in after["amed"][node]["notes"][0]
