"""Workflows saved by each version of this pack, opened in the page: each value is in the widget of its name.

saved/nodes-VERSION.workflow.json has every node of a version, with no widget at its default (saved/make.py).
"""

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from demo.browser import ACTIVE

SAVED = sorted(Path(__file__).parents[1].joinpath("saved").glob("nodes-*.workflow.json"))
VERSIONS = [file.name.removesuffix(".workflow.json") for file in SAVED]
CONTROL = "control_after_generate"
DEFAULTS = """kinds => Object.fromEntries(kinds.map(kind => {
    const saved = (LiteGraph.createNode(kind).widgets ?? []).filter(w => w.serialize !== false);
    return [kind, saved.map(w => [w.name, w.value])];
}))"""
# values set on a node, and values sent to the server
SENT = "app.graphToPrompt().then(({output}) => output)"


def saved_by(version):
    """Return (the workflow, each node's values by name, keyed by node id)."""
    workflow = json.loads(SAVED[VERSIONS.index(version)].read_text())
    return workflow, workflow["extra"]["amed_test"]


def check(page, values):
    """Check that each widget of the open workflow has the value saved under its name, else its default."""
    nodes, sent = page.nodes(), page.tab.evaluate(SENT)
    defaults = page.tab.evaluate(DEFAULTS, [node["type"] for node in nodes])
    assert len(nodes) == len(values) >= 7
    for node in nodes:
        saved = values[str(node["id"])]
        wanted = {name: saved.get(name, default) for name, default in defaults[node["type"]]}
        assert {w["name"]: w["value"] for w in node["widgets"] if w["saved"]} == wanted, node["type"]
        assert set(saved) - set(wanted) <= {CONTROL}, "a widget has disappeared"
        inputs = sent.get(str(node["id"]), {"inputs": wanted})["inputs"]
        assert {name: inputs[name] for name in wanted if name != CONTROL} == {
            name: value for name, value in wanted.items() if name != CONTROL
        }


@pytest.mark.parametrize("version", VERSIONS)
def test_each_value_is_in_the_widget_of_its_name(page, version):
    _, values = saved_by(version)
    page.open(SAVED[VERSIONS.index(version)])
    check(page, values)


@pytest.mark.parametrize("version", VERSIONS)
def test_saving_again_adds_names_and_keeps_the_values(page, version, tmp_path):
    _, values = saved_by(version)
    page.open(SAVED[VERSIONS.index(version)])
    again = page.saved()
    for node in again["nodes"]:
        if node.get("widgets_values"):
            assert len(node["properties"]["amed_widgets"]) == len(node["widgets_values"])
    file = tmp_path / "again.json"
    file.write_text(json.dumps(again))
    page.open(file)
    check(page, values)


def test_workflows_in_images_are_read_by_name(page, tmp_path):
    """An image saved with a workflow, dropped on the page."""
    workflow, values = saved_by("nodes-0.1.0")
    page.tab.evaluate("app.graph.clear()")
    data, file = PngImagePlugin.PngInfo(), tmp_path / "made.png"
    data.add_text("workflow", json.dumps(workflow))
    Image.new("RGB", (8, 8)).save(file, pnginfo=data)
    page.tab.set_input_files("#comfy-file-input", str(file))
    page.tab.wait_for_function("count => app.graph.nodes.length === count", arg=len(values))
    page.settle()
    check(page, values)


READ = """([kind, values, properties, change]) => {
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    const added = (name, value, place) => {
        const widget = node.addWidget(typeof value === "string" ? "text" : "number", name, value, () => {});
        node.widgets.splice(place, 0, node.widgets.pop());
        return widget;
    };
    for (const one of change) added(...one);
    const {widgets_values_named, ...saved} = node.serialize(); // newer pages write the names themselves
    node.configure({...saved, widgets_values: values, properties});
    const found = node.widgets.filter(w => w.serialize !== false).map(w => [w.name, w.value]);
    app.graph.remove(node);
    return Object.fromEntries(found);
}"""
FIT = ["amed_ipndm", "5", 2.0, "custom", 3000, 7]  # of Calibrate AMED, up to the seed


@pytest.mark.parametrize(("rest", "expected"), [
    (["randomize", "mine"], {"name": "mine", "passes": 0}),  # 0.1.0
    (["mine"], {"name": "mine", "passes": 0}),  # 0.2.0
    (["mine", 9], {"name": "mine", "passes": 9}),  # 0.3.0
    (["randomize", "mine", 9], {"name": "mine", "passes": 9}),  # 0.3.0 in a page that draws every seed
    (["mine", None, None, "any text of the page's own"], {"name": "mine", "passes": 0}),
    (["mine", "any text of the page's own"], {"name": "mine", "passes": 0}),
    (["randomize"], {"name": "randomize", "passes": 0}),  # lost by the older page: the node requires it
    (["fixed", 9], {"name": "fixed", "passes": 9}),
])  # fmt: skip
@pytest.mark.parametrize("later", [[], [["added", "its default", 8]]], ids=["today", "with a later input"])
def test_calibrations_saved_without_names(page, rest, expected, later):
    read = page.tab.evaluate(READ, ["AMEDCalibrate", [*FIT, *rest], {}, later])
    assert read["seed"] == 7 and read["evaluations"] == 3000 and read["nfe"] == "5"
    assert {name: read[name] for name in expected} == expected
    texts = [text for text in rest if isinstance(text, str) and "page" in text]
    assert read.get("added", "its default") in ("its default", *texts)


@pytest.mark.parametrize("place", [0, 3, 8])
def test_with_names_the_position_does_not_matter(page, place):
    """A later version may add an input anywhere, and another pack a widget."""
    names = ["passes", "name", "of another pack", "seed", "nfe"]
    values = [9, "mine", "theirs", 7, "5"]
    added = [["added", "its default", place]]
    read = page.tab.evaluate(READ, ["AMEDCalibrate", values, {"amed_widgets": names}, added])
    assert read["added"] == "its default" and read["budget"] == "quick" and read["guidance"] == 5
    assert {name: read[name] for name in ("passes", "name", "seed", "nfe")} == {
        "passes": 9, "name": "mine", "seed": 7, "nfe": "5"
    }  # fmt: skip


def test_a_seed_saved_without_a_control(page):
    read = page.tab.evaluate(READ, ["AMEDKSampler", ["auto", "amed", 7, 6, 2.0, 0.5, "error"], {}, []])
    assert read[CONTROL] == "randomize" or read[CONTROL] == "fixed"
    assert (read["seed"], read["nfe"], read["denoise"], read["if_missing"]) == (7, 6, 0.5, "error")


def test_opening_changes_nothing(page):
    """A workflow of this version is not marked as changed by opening it."""
    page.open(SAVED[VERSIONS.index("nodes-0.3.0")])
    modified = f"(w => (w.changeTracker.checkState(), w.isModified))({ACTIVE})"
    assert not page.tab.evaluate(modified)
    page.change("AMEDTrajectoryPlot", nfe=9)
    assert page.tab.evaluate(modified)
