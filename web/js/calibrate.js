/* A button on AMED KSampler that adds a Calibrate AMED beside it, connected to the same inputs. */

const SHARED = ["model", "positive", "negative", "latent_image"];
const GAP = 60;

const widget = (node, name) => node.widgets?.find((candidate) => candidate.name === name);

/** Connect an input of `to` to the origin of the input of the same name of `from`. */
function share(from, to, name) {
  const graph = from.graph;
  const id = from.inputs.find((input) => input.name === name)?.link;
  const link = id == null ? null : (graph.getLink?.(id) ?? graph.links[id]);
  if (!link) return;
  const origin = graph.getNodeById(link.origin_id);
  const slot = to.inputs.findIndex((input) => input.name === name);
  if (origin) origin.connect(link.origin_slot, to, slot);
  else graph.inputNode?.slots?.[link.origin_slot]?.connect(to.inputs[slot], to); // the origin is outside the subgraph
}

/** Return the first free position for a node of `size` below, above, left or right of another; else below all nodes. */
function place(beside, size) {
  const [x, y] = beside.pos, [w, h] = beside.size, [width, height] = size;
  const others = beside.graph.nodes ?? beside.graph._nodes;
  const free = ([left, top]) => others.every(({ pos, size: s }) =>
    left + width < pos[0] || pos[0] + s[0] < left || top + height < pos[1] - GAP || pos[1] + s[1] + GAP / 2 < top);
  const places = [[x, y + h + GAP], [x, y - height - GAP], [x - width - GAP, y], [x + w + GAP, y]];
  const lowest = Math.max(...others.map((node) => node.pos[1] + node.size[1]));
  return places.find(free) ?? [x, lowest + GAP];
}

/** Add a Calibrate AMED with this node's inputs and settings. */
function calibrate(node, canvas) {
  const LiteGraph = window.LiteGraph, graph = node.graph;
  const added = LiteGraph.createNode("AMEDCalibrate");
  if (!added) return;
  graph.beforeChange?.();
  added.pos = place(node, added.size);
  graph.add(added);
  for (const name of SHARED) share(node, added, name);
  widget(added, "nfe").value = String(widget(node, "nfe").value);
  widget(added, "guidance").value = widget(node, "guidance").value;
  const sampler = widget(node, "sampler").value;
  if (sampler !== "auto") widget(added, "sampler").value = sampler;
  graph.afterChange?.();
  canvas?.selectNodes?.([added]);
  canvas?.setDirty?.(true, true);
}

/** Add the button, which is not saved in workflows. */
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
