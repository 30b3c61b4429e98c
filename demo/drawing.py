"""Workflows and subgraphs as ComfyUI's page would save them, from nodes by name.

Values are given by name, so none can stand where another belongs; what is not given is the node's default, as
the server says it (`object_info`).
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from .workflows import has_control, input_specs, is_widget, kind_of

TITLE, SLOT, WIDGET = 30, 20, 26  # the page's, in pixels: title bar, a slot, a widget
BADGE, GAP, BETWEEN = 20, 34, 80  # a pack's name above its nodes; between nodes below each other; columns
WIDTH, TEXT = 340, 120  # of a node; a multiline text field's height
NOTE_WIDTH, LETTERS, LINE = 660, 105, 16  # the note's, letters in a line, and a line's height
SHOWS = {"AMEDKSampler": 130, "AMEDApplyPredictor": 110, "AMEDLoadPredictor": 60, "AMEDScheduler": 60,
         "AMEDEvaluationsUsed": 80, "LoadImage": 320}  # fmt: skip
# pixels for what a node shows below its widgets


@dataclass(frozen=True)
class Model:
    """A file that is not part of the pack, where to get it, and its folder in models/."""

    name: str
    url: str
    directory: str


@dataclass
class Node:
    """One node: `links` are input name -> "node.output"; `values` widgets by name; `width`, or `size` where
    the usual height will not do; `below` more pixels between it and what is above it; `control` what becomes
    of a seed after a run."""

    name: str
    kind: str
    links: dict[str, str] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    title: str = ""
    width: int = WIDTH
    size: tuple[int, int] | None = None
    below: int = 0
    control: str = "fixed"
    models: tuple[Model, ...] = ()
    pos: tuple[int, int] = (0, 0)


@dataclass
class Column:
    """Nodes below each other, from `top` on."""

    nodes: list[Node]
    top: int = 0


@dataclass
class Example:
    """A workflow: its note, columns from left to right, group boxes title -> names; `lift` more pixels
    between the note and what is below it."""

    note: str
    columns: list[Column]
    groups: dict[str, list[str]] = field(default_factory=dict)
    lift: int = 0

    def nodes(self) -> list[Node]:
        return [node for column in self.columns for node in column.nodes]


def sockets(info: dict) -> dict[str, str]:
    """Inputs that are linked, with their types, in the page's order."""
    return {name: kind_of(spec)[0] for name, spec in input_specs(info).items() if not is_widget(spec)}


def widgets(info: dict) -> dict[str, list]:
    """Inputs that are typed or chosen."""
    return {name: spec for name, spec in input_specs(info).items() if is_widget(spec)}


def default(spec: list) -> object:
    """What a fresh node has."""
    kind, options = kind_of(spec)
    choices = kind if isinstance(kind, list) else options.get("options")
    empty = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
    return options.get("default", choices[0] if choices else empty.get(str(kind)))


def height(node: Node, info: dict) -> int:
    """Pixels a node needs."""
    fields = widgets(info)
    controls = sum(has_control(name, spec) for name, spec in fields.items())
    long = sum(bool(kind_of(spec)[1].get("multiline")) for spec in fields.values())
    slots = max(len(sockets(info)), len(info["output"]))
    shows = SHOWS.get(node.kind, 0)
    return 16 + SLOT * slots + WIDGET * (len(fields) + controls - long) + TEXT * long + shows


def place(columns: list[Column], object_info: dict) -> list[Node]:
    """Gives every node its size and place; the nodes, in order."""
    x, placed = 0, []
    for column in columns:
        y = column.top
        for node in column.nodes:
            node.size = node.size or (node.width, height(node, object_info[node.kind]))
            y += node.below
            node.pos = (x, y)
            y += node.size[1] + TITLE + GAP
            placed.append(node)
        x += max(node.size[0] for node in column.nodes) + BETWEEN
    return placed


def drawn(nodes: list[Node], object_info: dict) -> tuple[list[dict], list[list]]:
    """The page's nodes and links `[id, from, output, to, input, type]`. Raises KeyError for an input, widget
    or output that does not exist."""
    numbers = {node.name: i for i, node in enumerate(nodes, 1)}
    kinds = {node.name: node.kind for node in nodes}
    made, links = [], []
    for order, node in enumerate(nodes):
        info = object_info[node.kind]
        slots, fields = sockets(info), widgets(info)
        unknown = [*(k for k in node.links if k not in slots), *(k for k in node.values if k not in fields)]
        if unknown:
            raise KeyError(f"{node.kind} has no {', '.join(unknown)}")
        inputs = [{"name": name, "type": kind, "link": None} for name, kind in slots.items()]
        optional = info["input"].get("optional", {})
        for slot, entry in enumerate(inputs):
            if entry["name"] in optional:
                entry["shape"] = 7
            if (source := node.links.get(entry["name"])) is None:
                continue
            giver, output = source.split(".")
            number = object_info[kinds[giver]]["output_name"].index(output)
            entry["link"] = len(links) + 1
            links.append([len(links) + 1, numbers[giver], number, numbers[node.name], slot, entry["type"]])
        for name, spec in fields.items():
            kind = "COMBO" if isinstance(kind_of(spec)[0], list) else kind_of(spec)[0]
            inputs.append({"name": name, "type": kind, "widget": {"name": name}, "link": None})
        properties = {"Node name for S&R": node.kind}
        if node.models:
            properties["models"] = [vars(model) for model in node.models]
        made.append({
            "id": numbers[node.name], "type": node.kind, "pos": list(node.pos), "size": list(node.size),
            "flags": {}, "order": order, "mode": 0, "inputs": inputs,
            "outputs": [{"name": n, "type": t, "links": []}
                        for n, t in zip(info["output_name"], info["output"])],
            "properties": properties, "widgets_values": widget_values(node, fields),
        } | ({"title": node.title} if node.title else {}))  # fmt: skip
    for number, giver, output, *_ in links:
        made[giver - 1]["outputs"][output]["links"].append(number)
    return made, links


def widget_values(node: Node, fields: dict[str, list]) -> list[object]:
    """In the page's order, with what it puts between them: beside a seed, below an upload."""
    values = []
    for name, spec in fields.items():
        values.append(node.values.get(name, default(spec)))
        values += [node.control] if has_control(name, spec) else []
        values += ["image"] if kind_of(spec)[1].get("image_upload") else []
    return values


def boxes(groups: dict[str, list[str]], nodes: list[Node]) -> list[dict]:
    """Group boxes around nodes."""
    made = []
    for number, (title, names) in enumerate(groups.items(), 1):
        inside = [node for node in nodes if node.name in names]
        left, top = min(n.pos[0] for n in inside) - 14, min(n.pos[1] for n in inside) - TITLE - 46
        right = max(n.pos[0] + n.size[0] for n in inside) + 14
        bottom = max(n.pos[1] + n.size[1] for n in inside) + 14
        made.append({"id": number, "title": title, "bounding": [left, top, right - left, bottom - top],
                     "color": "#3f789e", "font_size": 22, "flags": {}})  # fmt: skip
    return made


def note(text: str, number: int, above: float) -> dict:
    """A MarkdownNote that ends `above`."""
    paragraphs = [line for line in text.splitlines() if line]
    tall = 36 + sum(6 + LINE * (1 + len(line) // LETTERS) for line in paragraphs)
    return {
        "id": number, "type": "MarkdownNote", "pos": [0, above - tall], "size": [NOTE_WIDTH, tall],
        "flags": {}, "order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {},
        "title": "Read me", "widgets_values": [text], "color": "#432", "bgcolor": "#653",
    }  # fmt: skip


def workflow(name: str, example: Example, object_info: dict) -> dict:
    """The JSON of a workflow, its note above what is at the left."""
    nodes = place(example.columns, object_info)
    made, links = drawn(nodes, object_info)
    groups = boxes(example.groups, nodes)
    tops = [n.pos[1] - TITLE - BADGE for n in nodes if n.pos[0] < NOTE_WIDTH]
    tops += [box["bounding"][1] for box in groups if box["bounding"][0] < NOTE_WIDTH]
    made.append(note(example.note, len(made) + 1, min(tops) - 30 - example.lift))
    return {
        "id": identity(name), "revision": 0, "last_node_id": len(made), "last_link_id": len(links),
        "nodes": made, "links": links, "groups": groups, "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def identity(name: str) -> str:
    """The same each time it is written."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-amed/{name}"))


INSIDE, OUTSIDE = -10, -20  # ids of a subgraph's own two ends


def subgraph(
    name: str,
    about: str,
    columns: list[Column],
    inside: Iterable[tuple[str, str]],
    outside: Iterable[str],
    shown: Iterable[tuple[str, str]],
    object_info: dict,
) -> dict:
    """A blueprint: `inside` are (node, input) that are the subgraph's inputs, those of one name one of them;
    `outside` "node.output" its outputs; `shown` (node, widget) what its node shows."""
    nodes = place(columns, object_info)
    made, rows = drawn(nodes, object_info)
    by_name = dict(zip((node.name for node in nodes), made))
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, row)) for row in rows]
    kind = identity(name)

    def joined(*ends: object) -> int:
        links.append(dict(zip(keys, (len(links) + 1, *ends))))
        return len(links)

    entries: dict[str, dict] = {}
    for giver, input_name in inside:
        node = by_name[giver]
        slot = next(i for i, one in enumerate(node["inputs"]) if one["name"] == input_name)
        fresh = end(f"{name}/in/{input_name}", node["inputs"][slot], [-140, 20 + SLOT * len(entries)])
        entry = entries.setdefault(input_name, fresh)
        number = joined(INSIDE, list(entries).index(input_name), node["id"], slot, entry["type"])
        node["inputs"][slot]["link"] = number
        entry["linkIds"].append(number)
    exits, right = [], max(n.pos[0] + n.size[0] for n in nodes) + BETWEEN
    for i, said in enumerate(outside):
        giver, output = said.split(".")
        node = by_name[giver]
        slot = next(k for k, one in enumerate(node["outputs"]) if one["name"] == output)
        exits.append(end(f"{name}/out/{output}", node["outputs"][slot], [right + 20, 20 + SLOT * i]))
        number = joined(node["id"], slot, OUTSIDE, i, exits[-1]["type"])
        node["outputs"][slot]["links"].append(number)
        exits[-1]["linkIds"].append(number)
    face = {
        "id": 1, "type": kind, "pos": [0, 0], "size": [400, 480], "flags": {}, "order": 0, "mode": 0,
        "inputs": [{"name": e["name"], "type": e["type"], "link": None} for e in entries.values()],
        "outputs": [{"name": e["name"], "type": e["type"], "links": []} for e in exits],
        "properties": {"proxyWidgets": [[str(by_name[n]["id"]), w] for n, w in shown]}, "widgets_values": [],
        "title": name,
    }  # fmt: skip
    definition = {
        "id": kind, "version": 1, "revision": 0, "config": {}, "name": name,
        "state": {"lastGroupId": 0, "lastNodeId": len(made), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": INSIDE, "bounding": [-260, 0, 120, 40 + SLOT * len(entries)]},
        "outputNode": {"id": OUTSIDE, "bounding": [right, 0, 120, 40 + SLOT * len(exits)]},
        "inputs": list(entries.values()), "outputs": exits, "widgets": [], "nodes": made, "groups": [],
        "links": links, "extra": {}, "category": "AMED", "description": about,
    }  # fmt: skip
    return {"id": identity(f"{name}/blueprint"), "revision": 0, "last_node_id": 1, "last_link_id": 0,
            "nodes": [face], "links": [], "groups": [], "config": {},
            "extra": {"BlueprintDescription": about}, "version": 0.4,
            "definitions": {"subgraphs": [definition]}}  # fmt: skip


def end(key: str, slot: dict, pos: list[int]) -> dict:
    """An input or output of a subgraph, like the slot of a node that it is linked to."""
    return {"id": identity(key), "name": slot["name"], "type": slot["type"], "linkIds": [], "pos": pos}
