/* Loading saved nodes. The page assigns a saved node's values to its widgets by position; here each value goes to the
   widget of its name, whichever version of this pack and of the page saved it. */

import { PAGES_OWN, SENT } from "./text.js";

const NAMES = "amed_widgets"; // property of a saved node: the names of its widgets_values, in order
const CONTROL = "control_after_generate", CONTROLS = ["fixed", "increment", "decrement", "randomize"];
const SEEDS = ["seed", "noise_seed"];

/** Return the widgets whose values are saved. */
const savedWidgets = (node) =>
  (node.widgets ?? []).filter((widget) => widget.serialize !== false && widget.name !== PAGES_OWN);

/** Store the names of the values in a node that is being saved. */
export function writeNames(node, saved) {
  if (!Array.isArray(saved.widgets_values)) return;
  const all = node.widgets ?? [], written = all.filter((widget) => widget.serialize !== false);
  // some versions of the page leave a gap for a widget that is not saved, others do not
  const order = saved.widgets_values.length > written.length ? all : written;
  const names = Array.from(saved.widgets_values, (_, i) => order[i]?.name ?? null);
  saved.properties = { ...saved.properties, [NAMES]: names };
}

/** Move each value of a saved node to the position of its widget on this page; a widget without a saved value keeps its
    current one. `required`: names of the inputs that every version had. */
export function readByName(node, info, required) {
  const values = named(node, info, required), widgets = savedWidgets(node);
  if (!values) return;
  const read = (widget) => values[widget.name] ?? widget.value;
  info.widgets_values = widgets.map(read);
  if (info.widgets_values_named) info.widgets_values_named = Object.fromEntries(widgets.map((w) => [w.name, read(w)]));
  info.properties = { ...info.properties, [NAMES]: widgets.map((widget) => widget.name) };
}

/** Return a saved node's values by name; null if they fit no version. */
function named(node, info, required) {
  const values = info.widgets_values, names = info.properties?.[NAMES];
  if (info.widgets_values_named) return info.widgets_values_named;
  if (!Array.isArray(values)) return values ?? null;
  if (Array.isArray(names) && names.length === values.length) return zipped(names, values);
  const saved = [...values];
  while (saved.length && (saved.at(-1) == null || SENT.test(saved.at(-1)))) saved.pop();
  const candidates = orders(node).map((order) => {
    // the first value of another kind, e.g. of a text
    const misfit = saved.findIndex((value, i) => !fits(order[i], value));
    return { names: order.map((widget) => widget.name), count: misfit < 0 ? saved.length : misfit };
  });
  const complete = ({ names, count }) => required.every((name) => names.indexOf(name) < count);
  const match = candidates.find(complete) ?? candidates.findLast(({ count }) => count === saved.length);
  return match ? zipped(match.names, saved.slice(0, match.count)) : null;
}

const zipped = (names, values) => Object.fromEntries(values.map((value, i) => [names[i], value]));

/** Return the orders in which values were saved when names were not: that of the inputs, to which later versions only add
    at the end, with and without the control that draws a new seed after each run, in which versions and pages differ. */
function orders(node) {
  const inputs = savedWidgets(node).filter((widget) => widget.name !== CONTROL), control = { name: CONTROL, value: "" };
  return [inputs.flatMap((widget) => (SEEDS.includes(widget.name) ? [widget, control] : [widget])), inputs];
}

/** Return whether a value can belong to a widget. */
function fits(widget, value) {
  if (widget?.name === CONTROL) return CONTROLS.includes(value);
  return !widget || value == null || widget.value == null || typeof value === typeof widget.value;
}
