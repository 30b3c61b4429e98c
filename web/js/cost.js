/* A line on AMED KSampler and Calibrate AMED with the cost of the current settings. */

export const PRESETS = { quick: 2500, normal: 12000, thorough: 40000 }; // amed/fit/settings.py
const smallestBudget = (nfe) => 900 + 220 * nfe; // `smallest_budget` in the same file

/** Return the current value of a widget. */
const value = (node, name) => node.widgets.find((widget) => widget.name === name)?.value;
const formatted = (number) => number.toLocaleString("en");
/** Return a number with its noun, e.g. "1 evaluation". */
const plural = (number, noun) => `${formatted(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Return the passes of some evaluations: two each with guidance, else one. */
const passes = (evaluations, guidance) => evaluations * (Math.abs(guidance - 1) < 1e-9 ? 1 : 2);

/** Return the line for AMED KSampler. */
function sampling(node) {
  const nfe = value(node, "nfe");
  const prefix = value(node, "denoise") < 1 ? "at most " : "";
  const passCount = plural(passes(nfe, value(node, "guidance")), "pass").replace("passs", "passes");
  return `${prefix}${plural(nfe, "evaluation")}, ${passCount}`;
}

/** Return the line for Calibrate AMED. */
function calibrating(node) {
  const budget = value(node, "budget");
  const nfes = String(value(node, "nfe")).split(/[,\s]+/).filter(Boolean).map(Number);
  if (!nfes.length || nfes.some((nfe) => !Number.isInteger(nfe) || nfe < 2)) return "nfe: numbers, e.g. 5, 7, 9";
  const cost = (nfe) =>
    budget in PRESETS ? Math.max(PRESETS[budget], smallestBudget(nfe)) : value(node, "evaluations");
  const total = [...new Set(nfes)].map(cost).reduce((sum, evaluations) => sum + evaluations, 0);
  return `≈ ${formatted(total)} evaluations, ${formatted(passes(total, value(node, "guidance")))} passes`;
}

const NAME = "costs", HEIGHT = 24;

/** Update the line to the widgets' current values. */
export function updateCost(node) {
  const line = node.widgets?.find((widget) => widget.name === NAME);
  const words = node.comfyClass === "AMEDCalibrate" ? calibrating(node) : sampling(node);
  if (line && line.value !== words) line.value = words;
}

/** Add the line, which is not saved in workflows. */
export function addCost(node) {
  const inputWidgets = [...node.widgets];
  const element = document.createElement("div");
  element.style.cssText = "color: var(--descrip-text, #999); font: 12px/16px Inter, Arial, sans-serif;" +
    "text-align: center; white-space: nowrap; overflow: hidden; pointer-events: none;";
  const line = node.addDOMWidget(NAME, "amed_costs", element, {
    serialize: false,
    hideOnZoom: false,
    margin: 4,
    getValue: () => element.textContent,
    setValue: (value) => { element.textContent = value; },
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => HEIGHT,
  });
  line.serialize = false;
  for (const widget of inputWidgets) {
    const original = widget.callback;
    widget.callback = function (...args) {
      const result = original?.apply(this, args);
      updateCost(node);
      return result;
    };
  }
  updateCost(node);
}
