"""The node schemas that saved workflows rely on, and the descriptions of every node."""

import json
from pathlib import Path

import pytest

from demo.comfyui import ROOT
from demo.workflows import input_specs, kind_of

BEFORE = json.loads((Path(__file__).parent / "saved" / "nodes-0.1.0.json").read_text())
LOCALES = ROOT / "locales"


@pytest.fixture(scope="module")
def nodes(server):
    info = server.object_info()
    return {name: node for name, node in info.items() if node["category"].startswith("sampling/AMED")}


def input_types(node):
    """Return the inputs by name in their order, each with its type."""
    return {
        name: "COMBO" if isinstance(spec[0], list) else spec[0] for name, spec in input_specs(node).items()
    }


def options(spec):
    kind, more = kind_of(spec)
    return kind if isinstance(kind, list) else more.get("options", [])


@pytest.mark.parametrize("name", BEFORE)
def test_nodes_of_0_1_0_are_unchanged(nodes, name):
    """Node ids, inputs with their types and order, choices and outputs are unchanged; new ones come last."""
    before, now = BEFORE[name], nodes[name]
    inputs = input_types(now)
    assert list(inputs.items())[: len(before["inputs"])] == list(before["inputs"].items())
    required = set(now["input"].get("required", {}))
    assert not required - set(before["inputs"]), "a new input must be optional"
    for key, choices in before["options"].items():
        assert set(choices) <= set(options(input_specs(now)[key])), key
    outputs = [list(pair) for pair in zip(now["output_name"], now["output"])]
    assert outputs[: len(before["outputs"])] == before["outputs"]


def test_every_input_and_output_has_a_description(nodes):
    assert set(nodes) >= set(BEFORE)
    for name, node in nodes.items():
        assert node["description"], name
        for key, spec in input_specs(node).items():
            assert kind_of(spec)[1].get("tooltip"), f"{name}: {key}"
        assert all(node["output_tooltips"]) and len(node["output_tooltips"]) == len(node["output"]), name
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file()


def test_the_english_locale_equals_the_nodes_texts(nodes):
    """`python -m demo.locales` writes the English file."""
    from demo.locales import english

    assert json.loads((LOCALES / "en" / "nodeDefs.json").read_text()) == english(nodes)


def shape(value):
    """Return the keys and the empty texts of a translation."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return bool(value)


@pytest.mark.parametrize("language", ["zh"])
def test_a_translation_is_complete(nodes, server, language):
    english = json.loads((LOCALES / "en" / "nodeDefs.json").read_text())
    other = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert shape(other) == shape(english)
    served = server.get("/i18n")[language]["nodeDefs"]
    assert served["AMEDKSampler"] == other["AMEDKSampler"]
    for name, node in other.items():
        assert node["description"] != english[name]["description"], name
