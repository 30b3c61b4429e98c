"""The example workflows, as a person drags them in."""

import copy
import json

import numpy as np
import pytest

from demo.comfyui import ROOT
from demo.workflows import to_api

FILES = sorted((ROOT / "example_workflows").glob("*.json"))
OURS = [file for file in FILES if file.stem.startswith("amed_")]
QUICK = [file for file in FILES if not file.stem.startswith("calibrate")]  # that one: test_calibrate.py
BUNDLED = {path.name for path in (ROOT / "predictors").glob("*.safetensors")}


def predictors_named(workflow):
    return {
        v for n in workflow["nodes"] for v in n.get("widgets_values", []) if str(v).endswith(".safetensors")
    }


def test_there_are_some():
    assert len(OURS) >= 3


@pytest.mark.parametrize("file", QUICK, ids=lambda file: file.stem)
def test_runs_as_it_is(server, file):
    missing = predictors_named(json.loads(file.read_text())) - BUNDLED
    assert not missing, f"{file.name} names predictors that are not bundled: {missing}"
    result = server.run_workflow(file)
    images = np.stack(result.images())
    assert len(images) == 8 and images.std() > 10
    assert "note:" not in result.text()


def test_all_make_the_same_images(server):
    """Same model, seed, predictor: three ways to say one thing."""
    def same_solver(graph):
        for node in graph.values():
            if node["class_type"] == "AMEDKSampler":
                node["inputs"]["sampler"] = "amed"

    first, *others = (np.stack(server.run_workflow(file, same_solver).images()) for file in OURS)
    assert others and all(np.array_equal(first, other) for other in others)


def test_the_server_offers_them(server):
    assert set(server.get("/workflow_templates")["comfyui-amed"]) == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_damaged_workflow_names_the_node(server, file):
    info, whole = server.object_info(), json.loads(file.read_text())
    to_api(whole, info)

    def damaged(change):
        workflow = copy.deepcopy(whole)
        change(next(n for n in workflow["nodes"] if n["type"] == "AMEDDemoModel"))
        return workflow

    with pytest.raises(ValueError, match=r"node 1 \(NoSuchNode\) is not known"):
        to_api(damaged(lambda n: n.update(type="NoSuchNode")), info)
    with pytest.raises(ValueError, match=r"node 1 \(AMEDDemoModel\) has 3 widget values for 4 widgets"):
        to_api(damaged(lambda n: n["widgets_values"].pop()), info)
    with pytest.raises(ValueError, match=r"node 1 \(AMEDDemoModel\) has no input 'vae'"):
        to_api(damaged(lambda n: n["inputs"].append({"name": "vae", "link": None})), info)
