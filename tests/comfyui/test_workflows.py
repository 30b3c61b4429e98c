"""The example workflows, as a person drags them in."""

import copy
import json

import numpy as np
import pytest

from demo.comfyui import ROOT
from demo.workflows import has_control, input_specs, to_api

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


@pytest.mark.parametrize(("name", "spec", "expected"), [
    ("seed", ["INT", {}], True),
    ("noise_seed", ["INT"], True),
    ("seed", ["INT", {"control_after_generate": False}], False),
    ("steps", ["INT", {}], False),
    ("steps", ["INT", {"control_after_generate": True}], True),
    ("seed", ["FLOAT", {}], False),
    ("seed", ["STRING", {}], False),
    ("choice", [["a", "b"], {"control_after_generate": True}], True),
])  # fmt: skip
def test_the_pages_rule_for_seeds(name, spec, expected):
    assert has_control(name, spec) is expected


def test_our_seeds_say_whether_they_change(server):
    """A page that is not told puts a "randomize" beside a seed, so that every Run fits anew."""
    said = {
        node: spec[1].get("control_after_generate")
        for node, info in server.object_info().items()
        if info["category"] == "sampling/AMED"
        for name, spec in input_specs(info).items()
        if name in ("seed", "noise_seed")
    }
    assert said == {"AMEDKSampler": True, "AMEDCalibrate": False, "AMEDTrainPredictor": False}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_widgets_are_what_the_page_would_read(server, file):
    """No value stands where another belongs."""
    info = server.object_info()
    for node in to_api(json.loads(file.read_text()), info).values():
        for name, spec in input_specs(info[node["class_type"]]).items():
            value, kind = node["inputs"].get(name), spec[0]
            if name not in node["inputs"] or isinstance(value, list):
                continue
            kinds = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
            options = kind if isinstance(kind, list) else spec[1].get("options")
            assert value in options if options else isinstance(value, kinds[kind]), (
                f"{file.name}: {name} is {value!r}"
            )


def test_shifted_values_are_named(server):
    info = server.object_info()
    whole = json.loads((ROOT / "example_workflows" / "amed_ksampler.json").read_text())
    values = next(n for n in whole["nodes"] if n["type"] == "AMEDKSampler")["widgets_values"]
    values.append(values.pop(values.index("fixed")))
    with pytest.raises(ValueError, match=r"\(AMEDKSampler\) has 5 where control_after_generate belongs"):
        to_api(whole, info)


def test_a_workflow_from_before_an_optional_input(server):
    """Optional inputs are added at the end: what was saved before has no value for them, and loads."""
    info = server.object_info()
    whole = json.loads((ROOT / "example_workflows" / "amed_custom_advanced.json").read_text())
    node = next(n for n in whole["nodes"] if n["type"] == "AMEDLoadPredictor")
    node["widgets_values"] = node["widgets_values"][:1]
    assert list(to_api(whole, info)[str(node["id"])]["inputs"]) == ["name"]


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
