/* A line on AMED KSampler and Calibrate AMED: what the widgets' present values cost. */

export const PRESETS = { quick: 2500, normal: 12000, thorough: 40000 }; // amed/fit/settings.py
const LEAST = (nfe) => 900 + 220 * nfe; // its `smallest_budget`

/** The present value of a widget. */
const value = (node, name) => node.widgets.find((widget) => widget.name === name)?.value;
const counted = (number) => number.toLocaleString("en");
const many = (number, what) => `${counted(number)} ${what}${number === 1 ? "" : "s"}`;

/** Guidance makes two passes of an evaluation. */
const passes = (evaluations, guidance) => evaluations * (Math.abs(guidance - 1) < 1e-9 ? 1 : 2);

function sampling(node) {
  const nfe = value(node, "nfe");
  const most = value(node, "denoise") < 1 ? "at most " : "";
  return `${most}${many(nfe, "evaluation")}, ${many(passes(nfe, value(node, "guidance")), "pass").replace("passs", "passes")}`;
}

function calibrating(node) {
  const budget = value(node, "budget");
  const each = String(value(node, "nfe")).split(/[,\s]+/).filter(Boolean).map(Number);
  if (!each.length || each.some((nfe) => !Number.isInteger(nfe) || nfe < 2)) return "nfe: numbers, as 5, 7, 9";
  const cost = (nfe) => (budget in PRESETS ? Math.max(PRESETS[budget], LEAST(nfe)) : value(node, "evaluations"));
  const all = [...new Set(each)].map(cost).reduce((sum, one) => sum + one, 0);
  return `≈ ${counted(all)} evaluations, ${counted(passes(all, value(node, "guidance")))} passes`;
}

const NAME = "costs", HEIGHT = 24;

/** What the line says, by the widgets' present values. */
export function updateCost(node) {
  const line = node.widgets?.find((widget) => widget.name === NAME);
  const words = node.comfyClass === "AMEDCalibrate" ? calibrating(node) : sampling(node);
  if (line && line.value !== words) line.value = words;
}

/** Add the line; it is saved nowhere. */
export function addCost(node) {
  const given = [...node.widgets];
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
  for (const widget of given) {
    const own = widget.callback;
    widget.callback = function (...said) {
      const result = own?.apply(this, said);
      updateCost(node);
      return result;
    };
  }
  updateCost(node);
}
