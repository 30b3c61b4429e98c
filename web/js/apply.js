/* Apply AMED Predictor: disables the inputs that a linked predictor replaces. */

const REPLACED = ["sampler", "nfe", "guidance", "if_missing"];

/** Disable the widgets that a linked predictor replaces; they keep their values. */
export function follow(node) {
  const linked = node.inputs?.find((input) => input.name === "predictor")?.link != null;
  for (const widget of node.widgets ?? []) if (REPLACED.includes(widget.name)) widget.disabled = linked;
}
