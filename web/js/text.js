/* Texts on the nodes, in one box that shows them in full: the report of a run (`ui.text`, which the page shows only on its
   own nodes) and the progress messages sent during it. The page's own line for progress is cut after two rows, and is
   saved in the workflow as if it were a widget's value. */

const NAME = "amed_text";
export const PAGES_OWN = "$$node-text-preview";
const ROW = 15, LETTER = 5.8, MOST = 12; // pixels per row and per letter; rows before the box scrolls

/** Add the box to a new node, hidden until it has a text. If it were added later, it would not appear where the page
    draws nodes itself (Nodes 2.0) and has already read their widgets. */
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
      area.style.minHeight = `${Math.min(rows(), MOST) * ROW + 4}px`; // where the page lets the element set its height
      widget.hidden = !value;
    },
    getMinHeight: () => (area.value ? Math.min(rows(), MOST) * ROW + 20 : 0),
    getMaxHeight: () => (area.value ? rows() * ROW + 20 : 0),
  });
  widget.serialize = false;
  widget.hidden = true;
}

/** Show a text on a node, replacing the previous one. */
export function show(app, node, text) {
  const joined = Array.isArray(text) ? text.join("\n") : text;
  if (typeof joined !== "string" || !joined) return;
  node.amedShown = outputs(app, node);
  const box = node.widgets.find((widget) => widget.name === NAME);
  if (!box) return;
  removePageText(node);
  box.value = joined;
  fit(node);
  node.setDirtyCanvas?.(true, true);
}

/** Enlarge a node to the size that its widgets need. */
function fit(node) {
  const [width, height] = node.computeSize();
  if (height > node.size[1] || width > node.size[0])
    node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
}

/** Remove the page's own line of text from a node. */
function removePageText(node) {
  const index = node.widgets?.findIndex((widget) => widget.name === PAGES_OWN) ?? -1;
  if (index < 0) return;
  node.widgets[index].onRemove?.();
  node.widgets.splice(index, 1);
}

/** Return the outputs of a node's last run, which the page stores. */
function outputs(app, node) {
  const root = node.graph?.rootGraph ?? node.graph;
  return app.nodeOutputs?.[node.graph === root ? node.id : `${node.graph.id}:${node.id}`];
}

/** Show the text of an earlier run again, e.g. after switching tabs. */
export function restore(app, node) {
  const stored = outputs(app, node);
  if (stored?.text && stored !== node.amedShown) show(app, node, stored.text);
}

/** Matches a text of the page's own line among a saved node's values. */
export const SENT = /^predictor: [^]*evaluations counted|^\d+% done|saved as .*\.safetensors[^]*in |nothing was saved/;

/** Return a node by its id in a run: "5", or "5:3" for node 3 in subgraph node 5. */
function nodeById(app, id) {
  const path = String(id).split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const outer of path.slice(0, -1)) graph = graph?.getNodeById(outer)?.subgraph;
  return graph?.getNodeById(path.at(-1));
}

/** Show the messages that the server sends while one of our nodes runs. */
export function listen(app, gently) {
  app.api.addEventListener("progress_text", ({ detail }) => {
    // after the page's own listener, so that its line exists and can be removed
    queueMicrotask(() => gently(() => {
      const node = nodeById(app, detail.nodeId);
      if (detail.text && (node?.comfyClass ?? node?.type)?.startsWith("AMED")) show(app, node, detail.text);
    }));
  });
}
