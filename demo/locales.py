"""Write locales/en/nodeDefs.json, the texts of the nodes in the form ComfyUI translates.

`python -m demo.locales` asks a running ComfyUI for the texts. The other languages are written by hand with
the same keys; tests/comfyui/test_node_schemas.py reports missing ones."""

import json
from typing import Any

from .workflows import input_specs, kind_of

CATEGORY = "sampling/AMED"


def english(nodes: dict[str, dict]) -> dict[str, Any]:
    """Return the names, descriptions and tooltips of nodes, by class; `nodes` is as in /object_info."""
    return {name: node_text(node) for name, node in sorted(nodes.items())}


def node_text(node: dict) -> dict[str, Any]:
    """Return one node's name, description, and the names and tooltips of its inputs and outputs."""
    inputs = {
        name: {"name": name, "tooltip": kind_of(spec)[1].get("tooltip", "")}
        for name, spec in input_specs(node).items()
    }
    tooltips = node.get("output_tooltips") or []
    outputs = {
        str(i): {"name": name, "tooltip": tooltip or ""}
        for i, (name, tooltip) in enumerate(zip(node["output_name"], tooltips))
    }
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def main() -> None:
    from .comfyui import ROOT, Server

    with Server() as server:
        info = server.object_info()
    ours = {name: node for name, node in info.items() if node["category"].startswith(CATEGORY)}
    file = ROOT / "locales" / "en" / "nodeDefs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(english(ours), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{file.relative_to(ROOT)}: {len(ours)} nodes")


if __name__ == "__main__":
    main()
