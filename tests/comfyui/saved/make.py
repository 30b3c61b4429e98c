"""Make a workflow with every node of a version of this pack, as ComfyUI's page saves it.

    PYTHONPATH=.:tests .venv/bin/python tests/comfyui/saved/make.py 0.3.0 [folder of the pack]

No widget has its default, and `extra.amed_test` has each node's values by name. Two nodes have the line of
text that the page itself adds where a server sends one."""

import json
import sys
from pathlib import Path

from demo import browser, comfyui

MAKE = """lines => {
    app.graph.clear();
    const values = {}, other = (w) => {
        if (w.name === "control_after_generate") return w.value === "increment" ? "decrement" : "increment";
        if (w.type === "combo") return w.options.values.filter(v => v !== w.value).at(-1) ?? w.value;
        if (typeof w.value === "number")
            return Number.isInteger(w.value) && w.value + 2 <= w.options.max ? w.value + 2 : w.value / 2;
        return typeof w.value === "boolean" ? !w.value : w.value + "2";
    };
    const kinds = Object.keys(LiteGraph.registered_node_types).filter(kind => kind.startsWith("AMED")).sort();
    for (const [place, kind] of kinds.entries()) {
        const node = LiteGraph.createNode(kind);
        node.pos = [place % 4 * 450, Math.floor(place / 4) * 550];
        app.graph.add(node);
        const saved = (node.widgets ?? []).filter(w => w.serialize !== false);
        for (const w of saved) w.value = other(w);
        values[node.id] = Object.fromEntries(saved.map(w => [w.name, w.value]));
        const nodeId = String(node.id), text = lines[kind];
        if (text) app.api.dispatchCustomEvent("progress_text", {nodeId, text});
    }
    app.graph.extra.amed_test = values;
}"""
LINES = {
    "AMEDKSampler": "predictor: a.safetensors (multistep)\n"
    "evaluations counted: 5, 5 network passes per image",
    "AMEDCalibrate": "44% done, about 5 s left: 16 references",
}


def main(version: str, pack: Path = comfyui.ROOT) -> None:
    with comfyui.Server(pack=pack) as server, browser.Page(server) as page:
        page.tab.evaluate(MAKE, LINES)
        page.settle(500)
        saved = page.saved()
    file = Path(__file__).with_name(f"nodes-{version}.workflow.json")
    file.write_text(json.dumps(saved, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
