/* The texts of the nodes: what a run said (`ui.text`, which the page shows for no node but its own), and what is sent
   while one works, in one box that can be read whole. The page's own line for the latter is cut after two rows, and is
   saved into the workflow as if it were a widget's value. */

const NAME = "amed_text";
export const PAGES_OWN = "$$node-text-preview";
const ROW = 15, LETTER = 5.8, MOST = 12; // pixels; rows before it scrolls

/** Add the box to a new node. It is out of sight until there is something to say; made only then, it would not appear
    where the page draws nodes itself (Nodes 2.0) and has seen their widgets already. */
export function addText(app, node) {
  const area = document.createElement("textarea");
  area.readOnly = true;
  area.spellcheck = false;
  area.className = "comfy-multiline-input amed-text";
  area.style.cssText = "box-sizing: border-box; width: 100%; resize: none; opacity: 0.85; display: none;" +
    `font: 11px/${ROW}px Inter, Arial, sans-serif;`;
  const rows = () => area.value.split("\n").reduce(
    (sum, line) => sum + Math.max(1, Math.ceil((line.length * LETTER) / Math.max(node.size[0] - 40, 100))), 0);
  area.addEventListener("wheel", (event) => {
    if (area.scrollHeight > area.clientHeight && !event.ctrlKey) event.stopPropagation();
    else app.canvas.processMouseWheel?.(event);
  });
  const widget = node.addDOMWidget(NAME, "amed_text", area, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => area.value,
    setValue: (value) => {
      area.value = value;
      area.style.display = value ? "" : "none";
      area.style.minHeight = `${Math.min(rows(), MOST) * ROW + 4}px`; // where the page leaves the height to it
      widget.hidden = !value;
    },
    getMinHeight: () => (area.value ? Math.min(rows(), MOST) * ROW + 20 : 0),
    getMaxHeight: () => (area.value ? rows() * ROW + 20 : 0),
  });
  widget.serialize = false;
  widget.hidden = true;
}

/** Show a text on a node, in place of what was there. */
export function show(app, node, text) {
  const said = Array.isArray(text) ? text.join("\n") : text;
  if (typeof said !== "string" || !said) return;
  node.amedSeen = outputs(app, node);
  const box = node.widgets.find((widget) => widget.name === NAME);
  if (!box) return;
  drop(node);
  box.value = said;
  fit(node);
  node.setDirtyCanvas?.(true, true);
}

/** As high as its widgets ask for. */
function fit(node) {
  const [width, height] = node.computeSize();
  if (height > node.size[1] || width > node.size[0])
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
}

/** The page's own line off a node. */
function drop(node) {
  const index = node.widgets?.findIndex((widget) => widget.name === PAGES_OWN) ?? -1;
  if (index < 0) return;
  node.widgets[index].onRemove?.();
  node.widgets.splice(index, 1);
}

/** What the page keeps of a node's last run. */
function outputs(app, node) {
  const root = node.graph?.rootGraph ?? node.graph;
  return app.nodeOutputs?.[node.graph === root ? node.id : `${node.graph.id}:${node.id}`];
}

/** The text of an earlier run again, after a change of tabs. */
export function restore(app, node) {
  const kept = outputs(app, node);
  if (kept?.text && kept !== node.amedSeen) show(app, node, kept.text);
}

/** A text that the page's own line left among a saved node's values. */
export const SENT = /^predictor: [^]*evaluations counted|^\d+% done|saved as .*\.safetensors[^]*in |nothing was saved/;

/** A node by the id it has in a run: "5", or "5:3" for the 3 in a subgraph. */
function found(app, id) {
  const path = String(id).split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const outer of path.slice(0, -1)) graph = graph?.getNodeById(outer)?.subgraph;
  return graph?.getNodeById(path.at(-1));
}

/** Take over what the server sends while a node of ours works. */
export function listen(app, gently) {
  app.api.addEventListener("progress_text", ({ detail }) => {
    // after the page's own listener, so that its line is there to be taken off
    queueMicrotask(() => gently(() => {
      const node = found(app, detail.nodeId);
      if (detail.text && (node?.comfyClass ?? node?.type)?.startsWith("AMED")) show(app, node, detail.text);
    }));
  });
}
