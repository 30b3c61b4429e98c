"""The subgraph that the page offers among its nodes is served and complete."""

import json
from urllib.error import HTTPError

import pytest

from demo.examples import SUBGRAPHS
from demo.gallery import BLUEPRINTS
from demo.workflows import input_specs, is_widget

NAMES = sorted(BLUEPRINTS)


@pytest.fixture(params=NAMES)
def blueprint(request):
    return json.loads((SUBGRAPHS / f"{request.param}.json").read_text())


def test_there_is_one_subgraph():
    assert sorted(path.stem for path in SUBGRAPHS.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_server_offers_it(server, name):
    try:
        offered = server.get("/global_subgraphs")
    except HTTPError as error:
        assert error.code == 404
        pytest.skip("this ComfyUI offers no subgraphs of packs")
    (key,) = [k for k, entry in offered.items() if entry["name"] == name]
    assert offered[key]["info"]["node_pack"] == "custom_nodes.comfyui-amed"
    data = server.get(f"/global_subgraphs/{key}")["data"]
    assert data == (SUBGRAPHS / f"{name}.json").read_text()


def test_the_file_equals_the_generators_output(server, blueprint):
    """Compare our own nodes; other versions of the host have other nodes of their own."""
    (inside,) = blueprint["definitions"]["subgraphs"]
    (again,) = BLUEPRINTS[inside["name"]](inside["name"], server.object_info())["definitions"]["subgraphs"]

    def ours(nodes):
        return [(n["type"], n["widgets_values"]) for n in nodes if n["type"].startswith("AMED")]

    assert ours(inside["nodes"]) == ours(again["nodes"])


def test_its_root_is_one_node_with_the_same_slots(blueprint):
    (face,), (inside,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert face["type"] == inside["id"] and face["title"] == inside["name"]
    for side in ("inputs", "outputs"):
        assert [(s["name"], s["type"]) for s in face[side]] == [(s["name"], s["type"]) for s in inside[side]]
    assert blueprint["extra"]["BlueprintDescription"]


def test_every_link_has_both_its_ends(server, blueprint):
    (inside,), info = blueprint["definitions"]["subgraphs"], server.object_info()
    nodes = {node["id"]: node for node in inside["nodes"]}
    assert set(inside["state"]) == {"lastGroupId", "lastNodeId", "lastLinkId", "lastRerouteId"}
    assert max(nodes) == inside["state"]["lastNodeId"]
    assert [link["id"] for link in inside["links"]] == list(range(1, inside["state"]["lastLinkId"] + 1))
    for link in inside["links"]:
        if link["origin_id"] == inside["inputNode"]["id"]:
            origin = inside["inputs"][link["origin_slot"]]
            assert link["id"] in origin["linkIds"]
        else:
            origin = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in origin["links"]
        if link["target_id"] == inside["outputNode"]["id"]:
            target = inside["outputs"][link["target_slot"]]
            assert target["linkIds"] == [link["id"]]
        else:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert target["link"] == link["id"]
        assert origin["type"] == target["type"] == link["type"]
    for node in nodes.values():
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        required = info[node["type"]]["input"].get("required", {})
        assert {n for n, spec in required.items() if not is_widget(spec)} <= linked, node["type"]


def test_each_exposed_widget_exists_inside(server, blueprint):
    (face,), (inside,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    info, nodes = server.object_info(), {str(node["id"]): node for node in inside["nodes"]}
    shown = face["properties"]["proxyWidgets"]
    assert len(shown) >= 6
    for number, name in shown:
        assert is_widget(input_specs(info[nodes[number]["type"]])[name])
