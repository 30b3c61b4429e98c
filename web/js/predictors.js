/* Hides the demo model's predictors from the lists where the graph has no demo model. */

const DEMO = /^(emoji32|avatars32)-/;

/** Return all nodes of a workflow, including those in subgraphs. */
function allNodes(graph) {
  const root = graph?.rootGraph ?? graph;
  return [root, ...(root?.subgraphs?.values() ?? [])].flatMap((part) => part?.nodes ?? part?._nodes ?? []);
}

/** Shorten a combo's list. Its current value always stays in the list; the server accepts all predictors. */
export function shorten(node, name) {
  const widget = node.widgets.find((candidate) => candidate.name === name);
  let all = widget.options.values;
  if (!Array.isArray(all)) return;
  const offered = () => {
    if (!Array.isArray(all) || !node.graph) return all;
    if (allNodes(node.graph).some((other) => other.type === "AMEDDemoModel")) return all;
    return all.filter((value) => !DEMO.test(value) || value === widget.value);
  };
  Object.defineProperty(widget.options, "values", {
    get: offered,
    set: (values) => { all = values; },
    configurable: true,
    enumerable: true,
  });
}
