/* A button on AMED KSampler: a Calibrate AMED beside it, wired to the same inputs. */

const SHARED = ["model", "positive", "negative", "latent_image"];
const GAP = 60;

const widget = (node, name) => node.widgets?.find((one) => one.name === name);

/** Wire an input of `to` to where the one of the same name of `from` comes from. */
function share(from, to, name) {
  const graph = from.graph;
  const id = from.inputs.find((input) => input.name === name)?.link;
  const link = id == null ? null : (graph.getLink?.(id) ?? graph.links[id]);
  if (!link) return;
  const origin = graph.getNodeById(link.origin_id);
  const slot = to.inputs.findIndex((input) => input.name === name);
  if (origin) origin.connect(link.origin_slot, to, slot);
  else graph.inputNode?.slots?.[link.origin_slot]?.connect(to.inputs[slot], to); // from outside of a subgraph
}

/** The first free place for a node of `size` below, above, left or right of another; else under everything. */
function place(beside, size) {
  const [x, y] = beside.pos, [w, h] = beside.size, [width, height] = size;
  const others = beside.graph.nodes ?? beside.graph._nodes;
  const free = ([left, top]) => others.every(({ pos, size: s }) =>
    left + width < pos[0] || pos[0] + s[0] < left || top + height < pos[1] - GAP || pos[1] + s[1] + GAP / 2 < top);
  const places = [[x, y + h + GAP], [x, y - height - GAP], [x - width - GAP, y], [x + w + GAP, y]];
  const lowest = Math.max(...others.map((node) => node.pos[1] + node.size[1]));
  return places.find(free) ?? [x, lowest + GAP];
}

function calibrate(node, canvas) {
  const LiteGraph = window.LiteGraph, graph = node.graph;
  const made = LiteGraph.createNode("AMEDCalibrate");
  if (!made) return;
  graph.beforeChange?.();
  made.pos = place(node, made.size);
  graph.add(made);
  for (const name of SHARED) share(node, made, name);
  widget(made, "nfe").value = String(widget(node, "nfe").value);
  widget(made, "guidance").value = widget(node, "guidance").value;
  const sampler = widget(node, "sampler").value;
  if (sampler !== "auto") widget(made, "sampler").value = sampler;
  graph.afterChange?.();
  canvas?.selectNodes?.([made]);
  canvas?.setDirty?.(true, true);
}

/** Add the button; it is saved nowhere. */
export function addButton(node) {
  const button = node.addWidget(
    "button",
    "Calibrate AMED for this model",
    null,
    (_value, canvas) => calibrate(node, canvas),
    { serialize: false },
  );
  button.serialize = false;
}
