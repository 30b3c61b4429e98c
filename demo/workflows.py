"""Convert saved ComfyUI workflows (nodes, links, widgets) into graphs that its HTTP API runs."""

import re
from collections.abc import Callable

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}  # input types that are widgets on a node
ONLY_FOR_PEOPLE = {"Note", "MarkdownNote"}  # node types that the server does not know
NEVER, BYPASS = 2, 4  # values of a node's `mode`: muted, bypassed
SEEDS = ("seed", "noise_seed")
CONTROL, CONTROLS = "control_after_generate", ("fixed", "increment", "decrement", "randomize")
NAMES = "amed_widgets"  # web/js/saved.js writes it
# web/js/text.js has it too
SENT = re.compile(
    r"^predictor: [^\0]*evaluations counted|^\d+% done|saved as .*\.safetensors[^\0]*in |nothing was saved"
)


def kind_of(spec: list) -> tuple[object, dict]:
    """Return an input's type (for a combo: the list of its choices) and its options."""
    return spec[0], spec[1] if len(spec) > 1 else {}


def is_widget(spec: list) -> bool:
    """Return whether an input is a widget, i.e. is typed or chosen on the node and not linked."""
    kind, options = kind_of(spec)
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")


def has_control(name: str, spec: list) -> bool:
    """Return whether ComfyUI's page adds a control_after_generate widget to an input.

    It does where the input's schema asks for it, and for an INT called seed or noise_seed unless the schema
    forbids it (ComfyUI_frontend, useIntWidget)."""
    kind, options = kind_of(spec)
    requested = options.get("control_after_generate")
    if requested is None:
        return kind == "INT" and name in SEEDS
    return bool(requested) and (isinstance(kind, list) or kind in ("INT", "COMBO"))


def input_specs(info: dict) -> dict[str, list]:
    """Return a node's inputs in the order of its widgets: required ones, then optional ones."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def widget_values(node: dict, info: dict) -> dict[str, object]:
    """Return a saved node's `widgets_values` by name.

    Optional inputs that were added after the workflow was saved have no value and keep their defaults, as in
    the page. For this pack's nodes, the orders of widgets that older versions saved are recognised too, as in
    web/js/saved.js.

    Raises ValueError if the number of values is wrong, or a seed is not followed by a choice of
    control_after_generate."""
    specs, values = input_specs(info), node.get("widgets_values") or []
    written, ours = node.get("properties", {}).get(NAMES), node["type"].startswith("AMED")
    if ours and written and len(written) == len(values):
        return {name: value for name, value in zip(written, values) if name in specs and value is not None}
    while ours and values and (values[-1] is None or SENT.search(str(values[-1]))):
        values = values[:-1]

    def added_later(names: list[str]) -> bool:
        return names[:1] not in ([CONTROL], [""]) and not set(names) & set(info["input"].get("required", {}))

    def fits(order: list[str]) -> bool:
        fit = all(could_be(name, value, specs) for name, value in zip(order, values))
        return fit and len(values) <= len(order) and added_later(order[len(values) :])

    names = widget_order(specs, has_control)
    if ours:
        orders = [widget_order(specs, beside) for beside in (lambda name, _: name in SEEDS, lambda *_: False)]
        names = next(filter(fits, orders), names)
    node_label = f"node {node['id']} ({node['type']})"
    if added_later(names[len(values) :]):
        names = names[: len(values)]
    if len(values) != len(names):
        wanted = [name or "an upload button" for name in names]
        raise ValueError(
            f"{node_label} has {len(values)} widget values for {len(names)} widgets: {', '.join(wanted)}; "
            "save the workflow again in ComfyUI's page"
        )
    for name, value in zip(names, values, strict=True):
        if name == CONTROL and value not in CONTROLS:
            raise ValueError(
                f"{node_label} has {value!r} where control_after_generate belongs, so its widget values are "
                "shifted: save the workflow again in ComfyUI's page"
            )
    return {name: value for name, value in zip(names, values) if name in specs and value is not None}


def widget_order(specs: dict[str, list], control: Callable[[str, list], bool]) -> list[str]:
    """Return the names of a node's widgets in the page's order.

    `control(name, spec)` says whether "control_after_generate" follows an input; "" stands for an upload
    button."""
    names = []
    for name, spec in specs.items():
        if is_widget(spec):
            names.append(name)
            if control(name, spec):
                names.append(CONTROL)
            if kind_of(spec)[1].get("image_upload"):
                names.append("")
    return names


def could_be(name: str, value: object, specs: dict[str, list]) -> bool:
    """Return whether a value has the right type for the widget `name`, or is None."""
    if name == CONTROL:
        return value in CONTROLS
    kind = kind_of(specs[name])[0]
    types = {"INT": (int, float), "FLOAT": (int, float), "BOOLEAN": bool}.get(str(kind), str)
    return value is None or (isinstance(value, types) and isinstance(value, bool) == (types is bool))


def to_api(workflow: dict, object_info: dict) -> dict[str, dict]:
    """Convert a saved workflow into an API-format graph `{id: {class_type, inputs}}`.

    Args:
        workflow: the saved JSON.
        object_info: the server's description of its nodes.

    Raises ValueError with a node's id and class if the node is unknown, is bypassed (only the page can run
    such a workflow), lacks an input, has an input or a widget that the server does not know, or is linked to
    an output that does not exist."""
    links = {link[0]: link for link in workflow["links"]}
    nodes = {node["id"]: node for node in workflow["nodes"] if node.get("mode", 0) != NEVER}
    graph = {}
    for node in nodes.values():
        kind, node_label = node["type"], f"node {node['id']} ({node['type']})"
        if kind in ONLY_FOR_PEOPLE:
            continue
        if kind not in object_info:
            raise ValueError(f"{node_label} is unknown to this ComfyUI: update ComfyUI, or install the node")
        if node.get("mode", 0) == BYPASS:
            raise ValueError(
                f"{node_label} is bypassed, which only ComfyUI's page can run: remove the node or enable it"
            )
        specs, inputs = input_specs(object_info[kind]), widget_values(node, object_info[kind])
        for slot in node.get("inputs", []):
            if slot["name"] not in specs:
                raise ValueError(
                    f"{node_label} has no input {slot['name']!r}: link one that exists ({', '.join(specs)})"
                )
            if slot.get("link") is None:
                continue
            _, source, output, _, _, _ = links[slot["link"]]
            if source not in nodes:
                continue
            if output >= len(object_info[nodes[source]["type"]]["output"]):
                raise ValueError(
                    f"input {slot['name']} of {node_label} is linked to output {output} of node {source} "
                    f"({nodes[source]['type']}), which has fewer outputs: link it again"
                )
            inputs[slot["name"]] = [str(source), output]
        missing = [name for name in object_info[kind]["input"].get("required", {}) if name not in inputs]
        if missing:
            raise ValueError(f"{node_label} has no value for {', '.join(missing)}: link or set these inputs")
        graph[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return graph
