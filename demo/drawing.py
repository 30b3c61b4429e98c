"""Build workflows and subgraphs as ComfyUI's page would save them, from nodes given by name.

Links and widget values are given by name, so that none can get into the wrong place. A value that is not
given is the node's default, as the server reports it (`object_info`).
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from .workflows import has_control, input_specs, is_widget, kind_of

TITLE, SLOT, WIDGET = 30, 20, 26  # heights in the page, in pixels: title bar, slot, widget
BADGE, GAP, BETWEEN = 20, 34, 80  # height of the pack's badge; gap between nodes of a column; between columns
WIDTH, TEXT = 340, 120  # width of a node; height of a multiline text field
NOTE_WIDTH, LETTERS, LINE = 660, 105, 16  # of the note: width, letters per line, height of a line
# height of what a node shows below its widgets
SHOWS = {"AMEDKSampler": 130, "AMEDApplyPredictor": 110, "AMEDLoadPredictor": 60, "AMEDScheduler": 60,
         "AMEDEvaluationsUsed": 80, "LoadImage": 320}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model file that is not part of the pack: its name, where to download it, its folder in models/."""

    name: str
    url: str
    directory: str


@dataclass
class Node:
    """One node of a workflow."""

    name: str  # unique in its workflow; links refer to it
    kind: str  # its class, e.g. "KSampler"
    links: dict[str, str] = field(default_factory=dict)  # input name -> "node name.output name"
    values: dict[str, object] = field(default_factory=dict)  # widget name -> value
    title: str = ""  # "" for the class's own title
    width: int = WIDTH
    size: tuple[int, int] | None = None  # width and height; None to compute the height
    below: int = 0  # additional pixels between it and the node above it
    control: str = "fixed"  # control_after_generate: what happens to a seed after a run
    models: tuple[Model, ...] = ()  # files that it needs
    pos: tuple[int, int] = (0, 0)  # set by `place`


@dataclass
class Column:
    """Nodes below each other; `top` is the y of the first one."""

    nodes: list[Node]
    top: int = 0


@dataclass
class Example:
    """An example workflow: its nodes in columns, and a note that explains it."""

    note: str  # Markdown
    columns: list[Column]  # from left to right
    groups: dict[str, list[str]] = field(default_factory=dict)  # title of a group box -> names of its nodes
    lift: int = 0  # additional pixels between the note and the nodes below it

    def nodes(self) -> list[Node]:
        """Return all nodes of the workflow, column by column."""
        return [node for column in self.columns for node in column.nodes]


def sockets(info: dict) -> dict[str, str]:
    """Return the inputs of a node class that take a link, name -> type, in ComfyUI's display order."""
    return {name: kind_of(spec)[0] for name, spec in input_specs(info).items() if not is_widget(spec)}


def widgets(info: dict) -> dict[str, list]:
    """Return the widgets of a node class (inputs typed or chosen on the node), name -> specification."""
    return {name: spec for name, spec in input_specs(info).items() if is_widget(spec)}


def default(spec: list) -> object:
    """Return a widget's value on a new node: the default in its specification, or else its first choice."""
    kind, options = kind_of(spec)
    choices = kind if isinstance(kind, list) else options.get("options")
    empty = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
    return options.get("default", choices[0] if choices else empty.get(str(kind)))


def height(node: Node, info: dict) -> int:
    """Return the height that a node needs, in pixels."""
    fields = widgets(info)
    controls = sum(has_control(name, spec) for name, spec in fields.items())
    long = sum(bool(kind_of(spec)[1].get("multiline")) for spec in fields.values())
    slots = max(len(sockets(info)), len(info["output"]))
    shows = SHOWS.get(node.kind, 0)
    return 16 + SLOT * slots + WIDGET * (len(fields) + controls - long) + TEXT * long + shows


def place(columns: list[Column], object_info: dict) -> list[Node]:
    """Set the size and position of every node; return all nodes, column by column."""
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
    """Return nodes and links in the JSON form of a saved workflow.

    A link is `[id, from node, its output number, to node, its input number, type]`.

    Raises KeyError for an input or widget that the class does not have, ValueError for an unknown output."""
    numbers = {node.name: i for i, node in enumerate(nodes, 1)}
    classes = {node.name: node.kind for node in nodes}
    page_nodes, links = [], []
    for order, node in enumerate(nodes):
        info = object_info[node.kind]
        slots, fields = sockets(info), widgets(info)
        unknown = [*(k for k in node.links if k not in slots), *(k for k in node.values if k not in fields)]
        if unknown:
            raise KeyError(f"the node class {node.kind} has no input {', '.join(unknown)}: correct its name")
        inputs = [{"name": name, "type": kind, "link": None} for name, kind in slots.items()]
        optional = info["input"].get("optional", {})
        for slot, entry in enumerate(inputs):
            if entry["name"] in optional:
                entry["shape"] = 7
            if (source := node.links.get(entry["name"])) is None:
                continue
            source_name, output = source.split(".")
            number = object_info[classes[source_name]]["output_name"].index(output)
            entry["link"] = len(links) + 1
            links.append(
                [len(links) + 1, numbers[source_name], number, numbers[node.name], slot, entry["type"]]
            )
        for name, spec in fields.items():
            kind = "COMBO" if isinstance(kind_of(spec)[0], list) else kind_of(spec)[0]
            inputs.append({"name": name, "type": kind, "widget": {"name": name}, "link": None})
        properties = {"Node name for S&R": node.kind}
        if node.models:
            properties["models"] = [vars(model) for model in node.models]
        page_nodes.append({
            "id": numbers[node.name], "type": node.kind, "pos": list(node.pos), "size": list(node.size),
            "flags": {}, "order": order, "mode": 0, "inputs": inputs,
            "outputs": [{"name": n, "type": t, "links": []}
                        for n, t in zip(info["output_name"], info["output"])],
            "properties": properties, "widgets_values": widget_values(node, fields),
        } | ({"title": node.title} if node.title else {}))  # fmt: skip
    for number, source, output, *_ in links:
        page_nodes[source - 1]["outputs"][output]["links"].append(number)
    return page_nodes, links


def widget_values(node: Node, fields: dict[str, list]) -> list[object]:
    """Return a node's widget values in the order of ComfyUI's web page.

    The page adds a value after a seed (control_after_generate) and after an upload ("image")."""
    values = []
    for name, spec in fields.items():
        values.append(node.values.get(name, default(spec)))
        values += [node.control] if has_control(name, spec) else []
        values += ["image"] if kind_of(spec)[1].get("image_upload") else []
    return values


def boxes(groups: dict[str, list[str]], nodes: list[Node]) -> list[dict]:
    """Return a workflow's coloured group boxes; `groups` maps a box's title to the names of its nodes."""
    groups_json = []
    for number, (title, names) in enumerate(groups.items(), 1):
        inside = [node for node in nodes if node.name in names]
        left, top = min(n.pos[0] for n in inside) - 14, min(n.pos[1] for n in inside) - TITLE - 46
        right = max(n.pos[0] + n.size[0] for n in inside) + 14
        bottom = max(n.pos[1] + n.size[1] for n in inside) + 14
        groups_json.append({"id": number, "title": title, "bounding": [left, top, right - left, bottom - top],
                     "color": "#3f789e", "font_size": 22, "flags": {}})  # fmt: skip
    return groups_json


def note(text: str, number: int, above: float) -> dict:
    """Return a MarkdownNote with the given id, whose lower edge is at y = `above`."""
    paragraphs = [line for line in text.splitlines() if line]
    tall = 36 + sum(6 + LINE * (1 + len(line) // LETTERS) for line in paragraphs)
    return {
        "id": number, "type": "MarkdownNote", "pos": [0, above - tall], "size": [NOTE_WIDTH, tall],
        "flags": {}, "order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {},
        "title": "Read me", "widgets_values": [text], "color": "#432", "bgcolor": "#653",
    }  # fmt: skip


def workflow(name: str, example: Example, object_info: dict) -> dict:
    """Return the JSON of an example workflow; its explaining note stands above the nodes on the left."""
    nodes = place(example.columns, object_info)
    page_nodes, links = drawn(nodes, object_info)
    groups = boxes(example.groups, nodes)
    tops = [n.pos[1] - TITLE - BADGE for n in nodes if n.pos[0] < NOTE_WIDTH]
    tops += [box["bounding"][1] for box in groups if box["bounding"][0] < NOTE_WIDTH]
    page_nodes.append(note(example.note, len(page_nodes) + 1, min(tops) - 30 - example.lift))
    return {
        "id": identity(name), "revision": 0, "last_node_id": len(page_nodes), "last_link_id": len(links),
        "nodes": page_nodes, "links": links, "groups": groups, "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def identity(name: str) -> str:
    """Return a UUID made from a workflow's name, so that its id stays the same when its file is rewritten."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"comfyui-amed/{name}"))


INSIDE, OUTSIDE = -10, -20  # ids of a subgraph's input and output node


def subgraph(
    name: str,
    about: str,
    columns: list[Column],
    inside: Iterable[tuple[str, str]],
    outside: Iterable[str],
    shown: Iterable[tuple[str, str]],
    object_info: dict,
) -> dict:
    """Return the JSON of a subgraph blueprint.

    Args:
        name, about: its title and its description.
        columns: the nodes inside it.
        inside: (node, input) for each input of the subgraph; inputs of the same name become one.
        outside: "node.output" for each output of the subgraph.
        shown: (node, widget) for each widget that the subgraph's node shows.
        object_info: the server's description of its nodes."""
    nodes = place(columns, object_info)
    page_nodes, link_rows = drawn(nodes, object_info)
    by_name = dict(zip((node.name for node in nodes), page_nodes))
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, row)) for row in link_rows]
    kind = identity(name)

    def add_link(*ends: object) -> int:
        links.append(dict(zip(keys, (len(links) + 1, *ends))))
        return len(links)

    entries: dict[str, dict] = {}
    for node_name, input_name in inside:
        node = by_name[node_name]
        slot = next(i for i, socket in enumerate(node["inputs"]) if socket["name"] == input_name)
        new_entry = end(f"{name}/in/{input_name}", node["inputs"][slot], [-140, 20 + SLOT * len(entries)])
        entry = entries.setdefault(input_name, new_entry)
        number = add_link(INSIDE, list(entries).index(input_name), node["id"], slot, entry["type"])
        node["inputs"][slot]["link"] = number
        entry["linkIds"].append(number)
    outputs, right = [], max(n.pos[0] + n.size[0] for n in nodes) + BETWEEN
    for i, output_name in enumerate(outside):
        node_name, output = output_name.split(".")
        node = by_name[node_name]
        slot = next(k for k, socket in enumerate(node["outputs"]) if socket["name"] == output)
        outputs.append(end(f"{name}/out/{output}", node["outputs"][slot], [right + 20, 20 + SLOT * i]))
        number = add_link(node["id"], slot, OUTSIDE, i, outputs[-1]["type"])
        node["outputs"][slot]["links"].append(number)
        outputs[-1]["linkIds"].append(number)
    outer_node = {
        "id": 1, "type": kind, "pos": [0, 0], "size": [400, 480], "flags": {}, "order": 0, "mode": 0,
        "inputs": [{"name": e["name"], "type": e["type"], "link": None} for e in entries.values()],
        "outputs": [{"name": e["name"], "type": e["type"], "links": []} for e in outputs],
        "properties": {"proxyWidgets": [[str(by_name[n]["id"]), w] for n, w in shown]}, "widgets_values": [],
        "title": name,
    }  # fmt: skip
    definition = {
        "id": kind, "version": 1, "revision": 0, "config": {}, "name": name,
        "state": {"lastGroupId": 0, "lastNodeId": len(page_nodes), "lastLinkId": len(links),
                  "lastRerouteId": 0},
        "inputNode": {"id": INSIDE, "bounding": [-260, 0, 120, 40 + SLOT * len(entries)]},
        "outputNode": {"id": OUTSIDE, "bounding": [right, 0, 120, 40 + SLOT * len(outputs)]},
        "inputs": list(entries.values()), "outputs": outputs, "widgets": [], "nodes": page_nodes,
        "groups": [], "links": links, "extra": {}, "category": "AMED", "description": about,
    }  # fmt: skip
    return {"id": identity(f"{name}/blueprint"), "revision": 0, "last_node_id": 1, "last_link_id": 0,
            "nodes": [outer_node], "links": [], "groups": [], "config": {},
            "extra": {"BlueprintDescription": about}, "version": 0.4,
            "definitions": {"subgraphs": [definition]}}  # fmt: skip


def end(key: str, slot: dict, pos: list[int]) -> dict:
    """Return the JSON of a subgraph's input or output.

    Args:
        key: text from which its id is made.
        slot: the input or output of a node inside, which gives the name and type.
        pos: its position [x, y]."""
    return {"id": identity(key), "name": slot["name"], "type": slot["type"], "linkIds": [], "pos": pos}
