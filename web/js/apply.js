/* Apply AMED Predictor: what a linked predictor decides cannot be typed. */

const VOID = ["sampler", "nfe", "guidance", "if_missing"];

/** Gray out the widgets that a link makes void; they keep their values. */
export function follow(node) {
  const linked = node.inputs?.find((input) => input.name === "predictor")?.link != null;
  for (const widget of node.widgets ?? []) if (VOID.includes(widget.name)) widget.disabled = linked;
}
