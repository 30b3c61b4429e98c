"""The example workflows as users open them, and those saved with 0.1.0; the ones that need a checkpoint run
in test_examples.py."""

import copy
import io
import itertools
import json
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from demo.comfyui import ROOT
from demo.drawing import TITLE, workflow
from demo.gallery import DEMOS, EXAMPLES
from demo.workflows import has_control, input_specs, to_api, widget_values

FILES = sorted((ROOT / "example_workflows").glob("*.json"))
SAVED = sorted(Path(__file__).with_name("saved").glob("[!n]*.json"))  # saved with 0.1.0
EVERY_NODE = sorted(Path(__file__).with_name("saved").glob("nodes-*.workflow.json"))
DEMO = [file for file in FILES if file.stem in DEMOS]
LONG = {file for file in (*FILES, *SAVED) if "alibrate" in file.stem}  # test_calibrate.py
LONG |= {file for file in FILES if file.stem[:2] == "14"}  # test_outside.py
QUICK = [file for file in (*DEMO, *SAVED) if file not in LONG and not file.stem.startswith("02")]
WAYS = [file for file in DEMO if file.stem[:2] in ("01", "10", "11")]
OLD_WAYS = [file for file in SAVED if file.stem.startswith("amed_")]
BUNDLED = {path.name for path in (ROOT / "predictors").glob("*.safetensors")}
PACK = "comfyui-amed"


def name_of(file):
    return f"{'saved ' * (file in SAVED)}{file.stem}"


def read(file):
    return json.loads(file.read_text())


def predictors_named(workflow):
    """Return the predictor names in the values of our nodes."""
    ours = [n for n in workflow["nodes"] if n["type"].startswith("AMED")]
    return {v for n in ours for v in n.get("widgets_values", []) if str(v).endswith(".safetensors")}


def test_there_are_example_workflows():
    assert len(FILES) >= 12 and len(SAVED) == 6 and len(WAYS) == 3 and len(OLD_WAYS) == 3


@pytest.mark.parametrize("file", QUICK, ids=name_of)
def test_an_example_runs_unchanged(server, file):
    missing = predictors_named(read(file)) - BUNDLED
    assert not missing, f"{file.name} names predictors that are not bundled: {missing}"
    result = server.run_workflow(file)
    images = np.stack(result.images())
    assert len(images) == (8 if file in SAVED else 9) and images.std() > 10
    assert "note:" not in result.text()


def test_the_comparison_runs(server):
    """It gives a picture (on the node and saved) and a table of the reference and four samplers."""
    result = server.run_workflow(ROOT / "example_workflows" / "02 Compare samplers.json")
    small, large = result.images()
    assert large.size >= small.size and large.shape[1] > 1000 and large.std() > 20
    rows = [line for line in result.text().splitlines() if line.startswith("| ") and "---" not in line]
    assert [row.split("|")[1].strip() for row in rows] == [
        "sampler", "reference", "amed", "plain", "dpmpp_2m", "uni_pc"
    ]  # fmt: skip


@pytest.mark.parametrize("files", [WAYS, OLD_WAYS], ids=["examples", "saved"])
def test_three_kinds_of_nodes_give_the_same_image(server, files):
    """The same model, seed and predictor in three kinds of nodes."""

    def same_solver(graph):
        for node in graph.values():
            if node["class_type"] == "AMEDKSampler":
                node["inputs"]["sampler"] = "amed_multistep" if files is WAYS else "amed"

    first, *others = (np.stack(server.run_workflow(file, same_solver).images()) for file in files)
    assert len(others) == 2 and all(np.array_equal(first, other) for other in others)


def test_the_server_offers_the_examples(server):
    """Under the names that the page requests."""
    assert set(server.get("/workflow_templates")[PACK]) == {file.stem for file in FILES}
    for file in FILES:
        assert server.request(f"/api/workflow_templates/{PACK}/{quote(file.name)}") == file.read_bytes()


@pytest.mark.parametrize("file", DEMO, ids=name_of)
def test_each_example_has_a_card(server, file):
    """The picture that the template browser shows."""
    card = server.request(f"/api/workflow_templates/{PACK}/{quote(file.stem)}.jpg")
    image = Image.open(io.BytesIO(card))
    assert image.format == "JPEG" and image.width == 512 and np.asarray(image).std() > 20


def test_the_examples_equal_the_generators_output(server):
    """Compare our own nodes; other versions of the host have other nodes of their own."""
    info = server.object_info()

    def ours(workflow):
        own_nodes = [
            n for n in workflow["nodes"] if n["type"].startswith("AMED") or n["type"] == "MarkdownNote"
        ]
        return [(n["type"], n["widgets_values"]) for n in own_nodes]

    for name, make in EXAMPLES.items():
        path = ROOT / "example_workflows" / f"{name}.json"
        if {node.kind for node in make().nodes()} <= set(info):
            written = ours(workflow(name, make(), info))
            assert ours(read(path)) == written, f"{name}: run `python -m demo.examples`"


def boxes(workflow):
    """Return (title, left, top, right, bottom) of each node, including its title bar."""
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        yield node.get("title") or node["type"], x, y - TITLE, x + width, y + height


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_node_covers_another(file):
    for (title, *a), (other, *b) in itertools.combinations(boxes(read(file)), 2):
        apart = a[2] + 10 < b[0] or b[2] + 10 < a[0] or a[3] + 10 < b[1] or b[3] + 10 < a[1]
        assert apart, f"{title} and {other}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_title_is_cut_off(server, file):
    """A title has the node's width minus 60 pixels; a letter takes at most 9."""
    info = server.object_info()
    for node in read(file)["nodes"]:
        shown = info.get(node["type"], {}).get("display_name")
        title = node.get("title") or shown or node["type"]
        assert 9 * len(title) <= node["size"][0] - 60, title


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
def test_how_the_page_recognises_seeds(name, spec, expected):
    assert has_control(name, spec) is expected


def test_our_seeds_state_whether_they_change(server):
    """Otherwise the page puts a "randomize" beside a seed, and every Run fits anew."""
    controls = {
        node: spec[1].get("control_after_generate")
        for node, info in server.object_info().items()
        if info["category"] == "sampling/AMED"
        for name, spec in input_specs(info).items()
        if name in ("seed", "noise_seed")
    }
    assert controls.pop("AMEDKSampler") is True
    assert set(controls.values()) == {False} and {"AMEDCalibrate", "AMEDTrainPredictor"} <= set(controls)


@pytest.mark.parametrize("file", [*FILES, *SAVED], ids=name_of)
def test_widget_values_are_read_by_the_right_widget(server, file):
    """No value is at the place of another widget.

    The files that an example needs are named in its nodes, so that the page offers them."""
    info, workflow = server.object_info(), read(file)
    wanted = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    assert all(model["url"].endswith(f"/{model['name']}") for model in wanted)
    elsewhere = {model["name"] for model in wanted} | {"example.png"}
    for node in to_api(workflow, info).values():
        for name, spec in input_specs(info[node["class_type"]]).items():
            value, kind = node["inputs"].get(name), spec[0]
            if name not in node["inputs"] or isinstance(value, list) or str(value) in elsewhere:
                continue
            kinds = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
            options = kind if isinstance(kind, list) else spec[1].get("options")
            assert value in options if options else isinstance(value, kinds[kind]), (
                f"{file.name}: {name} is {value!r}"
            )


def test_shifted_values_are_reported(server):
    info = server.object_info()
    workflow = read(ROOT / "example_workflows" / "01 Start here.json")
    values = next(n for n in workflow["nodes"] if n["type"] == "AMEDKSampler")["widgets_values"]
    values.append(values.pop(values.index("fixed")))
    with pytest.raises(ValueError, match=r"\(AMEDKSampler\) has 6 where control_after_generate belongs"):
        to_api(workflow, info)


def test_an_upload_button_has_a_value(server):
    """The page saves a value for an upload button."""
    info = server.object_info()
    workflow = read(ROOT / "example_workflows" / "07 Image to image.json")
    node = next(n for n in workflow["nodes"] if n["type"] == "LoadImage")
    assert node["widgets_values"] == ["example.png", "image"]
    node["widgets_values"].append("more")
    with pytest.raises(ValueError, match=r"3 widget values for 2 widgets: image, an upload button"):
        to_api(workflow, info)


@pytest.mark.parametrize("file", EVERY_NODE, ids=lambda file: file.name.split(".workflow")[0])
def test_each_saved_value_belongs_to_its_name(server, file):
    """For files saved by each version of this pack (browser/test_saved.py: in the page)."""
    info, workflow = server.object_info(), read(file)
    for node in workflow["nodes"]:
        saved = workflow["extra"]["amed_test"][str(node["id"])]
        wanted = {name: value for name, value in saved.items() if name in input_specs(info[node["type"]])}
        values = widget_values(node, info[node["type"]]) if saved else {}
        assert values == wanted and set(saved) - set(wanted) <= {"control_after_generate"}, node["type"]


def test_a_workflow_older_than_an_optional_input_loads(server):
    """Optional inputs are added at the end: an older workflow has no value for them, and loads."""
    info = server.object_info()
    workflow = read(ROOT / "example_workflows" / "11 In SamplerCustomAdvanced.json")
    node = next(n for n in workflow["nodes"] if n["type"] == "AMEDLoadPredictor")
    node["widgets_values"] = node["widgets_values"][:1]
    assert list(to_api(workflow, info)[str(node["id"])]["inputs"]) == ["name"]


@pytest.mark.parametrize("file", [*DEMO, *SAVED], ids=name_of)
def test_a_damaged_workflow_names_the_node(server, file):
    info, example = server.object_info(), read(file)
    to_api(example, info)

    def damaged(change):
        workflow = copy.deepcopy(example)
        change(next(n for n in workflow["nodes"] if n["type"] == "AMEDDemoModel"))
        return workflow

    with pytest.raises(ValueError, match=r"node 1 \(NoSuchNode\) is unknown to"):
        to_api(damaged(lambda n: n.update(type="NoSuchNode")), info)
    with pytest.raises(ValueError, match=r"node 1 \(AMEDDemoModel\) has 3 widget values for 5 widgets"):
        to_api(damaged(lambda n: n.update(widgets_values=n["widgets_values"][:3])), info)
    with pytest.raises(ValueError, match=r"node 1 \(AMEDDemoModel\) has no input 'vae'"):
        to_api(damaged(lambda n: n["inputs"].append({"name": "vae", "link": None})), info)
