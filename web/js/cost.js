/* A line on AMED KSampler and Calibrate AMED: what the widgets' present values cost. */

export const PRESETS = { quick: 2500, normal: 12000, thorough: 40000 }; // amed/fit/settings.py
const LEAST = (nfe) => 900 + 220 * nfe; // its `smallest`

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

function draw(ctx, text, width, y, height) {
  ctx.save();
  ctx.fillStyle = window.LiteGraph?.WIDGET_SECONDARY_TEXT_COLOR ?? "#999";
  ctx.font = `${Math.round(height * 0.58)}px Inter, Arial, sans-serif`;
  ctx.textAlign = "center";
  ctx.fillText(text, width / 2, y + height * 0.7, width - 24);
  ctx.restore();
}

/** Add the line. It is read off the widgets whenever it is drawn, and saved nowhere. */
export function addCost(node) {
  const words = node.comfyClass === "AMEDCalibrate" ? calibrating : sampling;
  node.addCustomWidget({
    type: "amed_costs",
    name: "costs",
    value: "",
    options: { serialize: false },
    serialize: false,
    computeSize: (width) => [width ?? 0, 20],
    draw(ctx, on, width, y, height) {
      this.value = words(on);
      draw(ctx, this.value, width, y, height);
    },
  });
}
