"""What an artist meets in ComfyUI's page: the example workflows, a run, texts on nodes, help, an interrupted
fit, and the additions of web/js."""

import json
import time

import numpy as np
import pytest

from amed.fit import PRESETS
from amed.fit.settings import smallest_budget
from demo.comfyui import ROOT
from demo.workflows import input_specs, widget_values

FILES = sorted((ROOT / "example_workflows").glob("*.json"))
NAMES = [file.stem for file in FILES]


def kinds(file):
    return [node["type"] for node in json.loads(file.read_text())["nodes"]]


def first(*wanted, without=("AMEDCalibrate", "AMEDCompare")):
    """Return the first example that has these nodes and none of those."""
    return next(f for f in FILES if set(wanted) <= set(kinds(f)) and not set(without) & set(kinds(f)))


START = first("AMEDDemoModel", "AMEDKSampler")
FIT = first("AMEDDemoModel", "AMEDCalibrate", without=())


def saved_values(workflow):
    return {str(node["id"]): node.get("widgets_values") or [] for node in workflow["nodes"]}


def shown_image(page):
    """Return the first image on a node, as the page loaded it: (node id, width, height, file)."""
    page.tab.wait_for_function("app.graph.nodes.some(n => n.imgs?.[0]?.naturalWidth)")
    return page.tab.evaluate(
        """(() => {
            const node = app.graph.nodes.find(n => n.imgs?.[0]?.naturalWidth), image = node.imgs[0];
            return [node.id, image.naturalWidth, image.naturalHeight, image.src];
        })()"""
    )


def widget(node, name):
    return next(w for w in node["widgets"] if w["name"] == name)


# -- the example workflows


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_the_page_reads_every_value_correctly(page, server, file):
    """By position, as the file has them; by name, as our reader does; and saving writes the same values."""
    workflow, info = json.loads(file.read_text()), server.object_info()
    page.open(file)
    assert page.dialogs() == []
    read = {str(node["id"]): node for node in page.nodes()}
    again = saved_values(page.saved())
    for node in workflow["nodes"]:
        shown_values, values = read[str(node["id"])], node.get("widgets_values") or []
        assert shown_values["known"], f"the page does not know {node['type']}"
        saved = [w["value"] for w in shown_values["widgets"] if w["saved"]]
        assert saved[: len(values)] == values and again[str(node["id"])][: len(values)] == values
        if node["type"] in info:
            specs = input_specs(info[node["type"]])
            for name, value in widget_values(node, info[node["type"]]).items():
                assert widget(shown_values, name)["value"] == value, (node["type"], name)
            later = set(list(specs)[-max(len(saved) - len(values), 0) :]) if len(saved) > len(values) else ()
            assert all(name in info[node["type"]]["input"].get("optional", {}) for name in later)
    assert len(page.saved()["links"]) == len(workflow["links"])


# -- a run


def test_a_run_gives_images_and_a_report_on_the_node(page):
    page.open(START)
    before = page.saved()
    outputs = page.run()
    node, width, height, source = shown_image(page)
    assert width > 100 and height > 100 and "/view?" in source
    image = np.stack(page.server_images(outputs[str(node)]))
    assert image.std() > 10
    nfe = widget(page.node("AMEDKSampler"), "nfe")["value"]
    text = page.text_on(page.node("AMEDKSampler")["id"])
    assert f"evaluations counted: {nfe}, {2 * nfe} network passes" in text
    assert text.count("evaluations counted") == 1
    assert saved_values(page.saved()) == saved_values(before), "a text on a node was saved into the workflow"


def test_a_changed_nfe_takes_effect(page):
    page.open(START)
    images = []
    for nfe in (5, 8):
        page.change(
            "AMEDKSampler", nfe=nfe, seed=41
        )  # a value that no other test has left in the server's cache
        outputs = page.run()
        images.append(np.stack(page.server_images(outputs[str(shown_image(page)[0])])))
        assert f"evaluations counted: {nfe}" in page.text_on(page.node("AMEDKSampler")["id"])
    assert images[0].shape == images[1].shape and not np.array_equal(*images)


def test_texts_on_nodes_are_readable(page):
    file = first("AMEDEvaluationsUsed", "KSampler")
    page.open(file)
    page.run()
    steps = widget(page.node("KSampler"), "steps")["value"]
    assert f"{steps} evaluations" in page.text_on(page.node("AMEDEvaluationsUsed")["id"])
    page.open(START)  # switch to another tab and back
    page.tab_of(file.stem)
    assert f"{steps} evaluations" in page.text_on(page.node("AMEDEvaluationsUsed")["id"])


@pytest.mark.parametrize(
    "text",
    [
        "predictor: a.safetensors (multistep)\nevaluations counted: 5, 5 network passes per image",
        "44% done, about 5 s left: 16 references",
        "a.safetensors: error 0.1\nsaved as a.safetensors (unfinished) in /models/amed_predictors",
    ],
)
def test_a_text_saved_by_an_older_page_is_not_read_as_a_value(page, text):
    """The page's own line of text used to be saved behind the values, where new inputs are added."""
    page.open(START)
    values = page.tab.evaluate(
        """text => {
            const node = LiteGraph.createNode("AMEDKSampler");
            node.addWidget("text", "added later", "its default", () => {});
            app.graph.add(node);
            const saved = node.serialize();
            node.configure({...saved, widgets_values: [...saved.widgets_values.slice(0, 8), text]});
            return node.widgets.filter(w => w.serialize !== false).map(w => w.value);
        }""",
        text,
    )
    assert values[-1] == "its default" and len(values) == 9


def test_a_linked_predictor_disables_the_inputs_it_replaces(page):
    page.open(next(file for file in FILES if file.stem.startswith("10")))
    disabled = """(() => {
        const node = app.graph.nodes.find(n => n.type === "AMEDApplyPredictor");
        if (%s) node.disconnectInput(node.inputs.findIndex(i => i.name === "predictor"));
        return node.widgets.filter(w => w.disabled).map(w => w.name);
    })()"""
    assert page.tab.evaluate(disabled % "false") == ["sampler", "nfe", "guidance", "if_missing"]
    assert page.tab.evaluate(disabled % "true") == []


def test_a_node_without_text_has_no_gap(page):
    page.open(START)
    page.box()
    with_box, without = page.tab.evaluate(
        """(() => {
            const node = app.graph.nodes.find(n => n.type === "AMEDDemoModel"), high = node.computeSize()[1];
            node.widgets.splice(node.widgets.findIndex(w => w.name === "amed_text"), 1);
            return [high, node.computeSize()[1]];
        })()"""
    )
    assert without <= with_box <= without + 8


def test_predictor_info_is_readable(page):
    page.open(START)
    page.tab.evaluate(
        """(() => {
            app.graph.clear();
            const [load, info] = ["AMEDLoadPredictor", "AMEDPredictorInfo"].map(kind => {
                const node = LiteGraph.createNode(kind);
                app.graph.add(node);
                return node;
            });
            info.pos = [load.pos[0] + 500, load.pos[1]];
            load.widgets.find(w => w.name === "name").value = "emoji32-multistep-nfe5-cfg1.safetensors";
            load.connect(0, info, 0);
        })()"""
    )
    page.box()
    page.run()
    text = page.text_on(page.node("AMEDPredictorInfo")["id"])
    assert "multistep" in text and len(text.splitlines()) > 3
    assert "emoji32-multistep-nfe5-cfg1" in page.text_on(page.node("AMEDLoadPredictor")["id"])


def test_the_help_page_opens(page):
    """With its picture."""
    page.open(START)
    text = page.help("AMEDKSampler")
    page.tab.wait_for_function("document.querySelector('.node-help-content img')?.naturalWidth > 200")
    page.tab.keyboard.press("Escape")
    lines = (ROOT / "web" / "docs" / "AMEDKSampler.md").read_text().splitlines()
    wanted = next(line for line in lines[1:] if line and not line.startswith("!"))
    assert wanted[:60].replace("*", "") in text and "if_missing" in text


# -- a fit


# a MODEL that waits at an evaluation, inserted before the fit
WAITS = """at => {
    const node = LiteGraph.createNode("TestStops"), named = name => w => w.name === name;
    app.graph.add(node);
    node.widgets.find(named("at")).value = at;
    node.widgets.find(named("wait")).value = true;
    const the = kind => app.graph.nodes.find(n => n.type === kind);
    the("AMEDDemoModel").connect(0, node, 0);
    node.connect(0, the("AMEDCalibrate"), 0);
}"""


def test_an_interrupted_fit_says_what_was_saved(page, server):
    """The MODEL waits late in the fit for the interruption, which may arrive late too."""
    page.open(FIT)
    page.change("AMEDDemoModel", width=16, height=16)
    page.tab.evaluate(WAITS, 1500)
    page.change("AMEDCalibrate", nfe="4", guidance=1.0, budget="custom", evaluations=2000, name="stopped")
    before = page.saved()
    node = page.node("AMEDCalibrate")["id"]
    run = page.queue()
    waiting = "TestStops: waits"
    end, before_it = time.monotonic() + 600, server.log().count(waiting)
    while server.log().count(waiting) == before_it and time.monotonic() < end:
        page.settle()
    text = "app.graph.getNodeById(id).widgets.find(w => w.name === 'amed_text').value"
    page.tab.wait_for_function(f"id => {text}.includes(' left: ')", arg=node)
    page.stop()
    assert page.wait(run)["state"] == "stopped"
    said = page.text_on(node)
    (file,) = (server.base / "models" / "amed_predictors").glob("stopped*")
    assert f"saved as {file.name} (unfinished)" in said and "the best so far is kept" in said
    assert saved_values(page.saved()) == saved_values(before)


# -- what web/js adds


def costs(page, kind, **values):
    page.change(kind, **values)
    page.settle()
    return widget(page.node(kind), "costs")["value"]


def test_a_line_shows_what_sampling_costs(page):
    page.open(START)
    page.box()
    assert costs(page, "AMEDKSampler", nfe=8, guidance=5.0) == "8 evaluations, 16 passes"
    assert costs(page, "AMEDKSampler", guidance=1.0) == "8 evaluations, 8 passes"
    assert costs(page, "AMEDKSampler", nfe=1) == "1 evaluation, 1 pass"
    assert costs(page, "AMEDKSampler", nfe=8, denoise=0.5) == "at most 8 evaluations, 8 passes"


def test_a_line_shows_what_a_fit_costs(page):
    page.open(FIT)
    page.box()
    for budget, evaluations in PRESETS.items():
        for nfe in (5, 8):
            each = max(evaluations, smallest_budget(nfe))
            line = costs(page, "AMEDCalibrate", budget=budget, nfe=str(nfe), guidance=1.0)
            assert line == f"≈ {each:,} evaluations, {each:,} passes"
    three = f"≈ {3 * PRESETS['normal']:,} evaluations, {6 * PRESETS['normal']:,} passes"
    assert costs(page, "AMEDCalibrate", budget="normal", nfe="5, 7 9", guidance=4.0) == three
    line = costs(page, "AMEDCalibrate", budget="custom", evaluations=3000, nfe="5", guidance=1.0)
    assert line == "≈ 3,000 evaluations, 3,000 passes"
    assert costs(page, "AMEDCalibrate", nfe="five") == "nfe: numbers, e.g. 5, 7, 9"


def test_the_demos_predictors_are_listed_only_with_the_demo_model(page, server):
    everything = server.object_info()["AMEDKSampler"]["input"]["required"]["predictor"]
    everything = everything[1]["options"] if everything[0] == "COMBO" else everything[0]
    demos = [name for name in everything if name.startswith(("emoji32-", "avatars32-"))]
    assert demos[0].startswith("avatars32-") and demos[-1].startswith("emoji32-")
    page.open(START)
    assert widget(page.node("AMEDKSampler"), "predictor")["options"] == everything
    page.tab.evaluate("app.graph.remove(app.graph.nodes.find(n => n.type === 'AMEDDemoModel'))")
    rest = [name for name in everything if name not in demos]
    assert widget(page.node("AMEDKSampler"), "predictor")["options"] == rest
    assert {"auto", "test_amed.safetensors"} <= set(rest)
    page.change("AMEDKSampler", predictor=demos[0])  # the selected predictor is offered and kept
    node = page.node("AMEDKSampler")
    assert widget(node, "predictor")["value"] == demos[0]
    assert set(widget(node, "predictor")["options"]) == {*rest, demos[0]}
    assert demos[0] in saved_values(page.saved())[str(node["id"])]
    page.tab.evaluate("app.refreshComboInNodes()")  # R in the page refreshes the lists
    node = page.node("AMEDKSampler")
    assert widget(node, "predictor")["value"] == demos[0]
    assert set(widget(node, "predictor")["options"]) == {*rest, demos[0]}


def test_a_button_adds_calibrate_amed(page):
    page.open(START)
    page.change("AMEDKSampler", nfe=9, guidance=3.5)
    before, sampler = page.saved(), page.node("AMEDKSampler")
    for _ in range(2):  # the second button press finds another free place
        page.press("AMEDKSampler", "Calibrate AMED for this model")
    saved = page.saved()
    links = {link[0]: link[1:3] for link in saved["links"]}
    inputs = {n["id"]: {i["name"]: links.get(i["link"]) for i in n["inputs"]} for n in saved["nodes"]}
    added = [n for n in page.nodes() if n["type"] == "AMEDCalibrate"]
    assert len(added) == 2
    for node in added:
        assert widget(node, "nfe")["value"] == "9" and widget(node, "guidance")["value"] == 3.5
        for name in ("model", "positive", "negative", "latent_image"):
            assert inputs[node["id"]][name] == inputs[sampler["id"]][name] is not None
        x, y, w, h = *node["pos"], *node["size"]
        others = [(*n["pos"], *n["size"]) for n in page.nodes() if n["id"] != node["id"]]
        assert all(x + w <= bx or bx + bw <= x or y + h <= by or by + bh <= y for bx, by, bw, bh in others)
    assert saved_values(before).items() <= saved_values(saved).items()


def test_nodes_2_has_the_same_additions(page):
    """The page's other way of drawing nodes."""
    page.open(START)
    before = saved_values(page.saved())
    page.setting("Comfy.VueNodes.Enabled", True)
    try:
        page.change("AMEDKSampler", nfe=7, guidance=2.0, seed=42)
        page.run()
        sampler = page.node("AMEDKSampler")
        shown = page.tab.locator(f"[data-node-id='{sampler['id']}']")
        assert "7 evaluations, 14 passes" in shown.inner_text()
        box = shown.locator("textarea.amed-text")
        assert "evaluations counted: 7, 14 network passes" in box.input_value()
        assert box.bounding_box()["width"] > 0.8 * shown.bounding_box()["width"]
        after = saved_values(page.saved())
        assert {k: v for k, v in after.items() if k != str(sampler["id"])}.items() <= before.items()
        assert len(after[str(sampler["id"])]) == len(before[str(sampler["id"])])
    finally:
        page.setting("Comfy.VueNodes.Enabled", False)


STRANGE = {
    "no extensions": "export const app = {};",
    "no nodes to add to": """export const app = {registerExtension(extension) {
        class Node { onNodeCreated() { return "its own"; } }
        extension.setup();
        extension.beforeRegisterNodeDef(Node, {name: "AMEDKSampler"});
        const node = new Node();
        window.strange = node.onNodeCreated();
        node.onExecuted({text: ["a text"]});
        node.onDrawBackground();
        extension.beforeRegisterNodeDef(undefined, undefined);
    }};""",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_an_unknown_page_gives_one_warning(opened, kind):
    """The same files from another place, beside a different scripts/app.js."""
    place = f"{opened.url}/{kind.replace(' ', '-')}"

    def answer(route):
        name = route.request.url.removeprefix(place)
        app_script = (
            STRANGE[kind]
            if name == "/scripts/app.js"
            else (ROOT / "web/js" / name.split("/")[-1]).read_text()
        )
        route.fulfill(body=app_script, content_type="text/javascript")

    opened.tab.route(f"{place}/**", answer)
    opened.complaints.clear()
    opened.tab.evaluate("url => import(url).then(() => 0)", f"{place}/extensions/comfyui-amed/js/amed.js")
    assert len(opened.complaints) == 1 and "warning: AMED: " in opened.complaints[0]
    if kind != "no extensions":
        assert opened.tab.evaluate("window.strange") == "its own"
