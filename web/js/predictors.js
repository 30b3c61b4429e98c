/* The list of predictors without the demo model's, where no demo model is in the graph. */

const DEMO = /^emoji32-/;

/** All nodes of a workflow, those in subgraphs too. */
function everywhere(graph) {
  const root = graph?.rootGraph ?? graph;
  return [root, ...(root?.subgraphs?.values() ?? [])].flatMap((one) => one?.nodes ?? one?._nodes ?? []);
}

/** Shorten what a combo offers. What it is set to stays in the list, whatever it is; the server knows them all. */
export function shorten(node, name) {
  const widget = node.widgets.find((one) => one.name === name);
  let all = widget.options.values;
  if (!Array.isArray(all)) return;
  const offered = () => {
    if (!Array.isArray(all) || !node.graph) return all;
    if (everywhere(node.graph).some((one) => one.type === "AMEDDemoModel")) return all;
    return all.filter((value) => !DEMO.test(value) || value === widget.value);
  };
  Object.defineProperty(widget.options, "values", {
    get: offered,
    set: (values) => { all = values; },
    configurable: true,
    enumerable: true,
  });
}
