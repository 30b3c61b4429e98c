/* Saved nodes. The page gives a saved node's values to its widgets by place; here each value goes to the widget of its
   name, whichever version of this pack, and of the page, saved it. */

import { PAGES_OWN, SENT } from "./text.js";

const NAMES = "amed_widgets"; // of a saved node's properties: the names of its widgets_values, in their order
const CONTROL = "control_after_generate", CONTROLS = ["fixed", "increment", "decrement", "randomize"];
const SEEDS = ["seed", "noise_seed"];

/** The widgets whose values are saved. */
const savedWidgets = (node) => (node.widgets ?? []).filter((one) => one.serialize !== false && one.name !== PAGES_OWN);

/** Write the names of the values into a node that is being saved. */
export function writeNames(node, saved) {
  if (!Array.isArray(saved.widgets_values)) return;
  const all = node.widgets ?? [], written = all.filter((one) => one.serialize !== false);
  // some pages leave a gap where a widget is not saved, others do not
  const order = saved.widgets_values.length > written.length ? all : written;
  const names = Array.from(saved.widgets_values, (_, i) => order[i]?.name ?? null);
  saved.properties = { ...saved.properties, [NAMES]: names };
}

/** Give each value of a saved node the place that its widget has on this page; a widget without one keeps the value it
    has. `required`: the names of the inputs that every version had. */
export function readByName(node, info, required) {
  const values = named(node, info, required), widgets = savedWidgets(node);
  if (!values) return;
  const read = (one) => values[one.name] ?? one.value;
  info.widgets_values = widgets.map(read);
  if (info.widgets_values_named) info.widgets_values_named = Object.fromEntries(widgets.map((w) => [w.name, read(w)]));
  info.properties = { ...info.properties, [NAMES]: widgets.map((one) => one.name) };
}

/** A saved node's values by name; null if they are those of no version. */
function named(node, info, required) {
  const values = info.widgets_values, names = info.properties?.[NAMES];
  if (info.widgets_values_named) return info.widgets_values_named;
  if (!Array.isArray(values)) return values ?? null;
  if (Array.isArray(names) && names.length === values.length) return zipped(names, values);
  const given = [...values];
  while (given.length && (given.at(-1) == null || SENT.test(given.at(-1)))) given.pop();
  const read = orders(node).map((order) => {
    const misfit = given.findIndex((value, i) => !fits(order[i], value)); // of something else, as of a text
    return { names: order.map((one) => one.name), count: misfit < 0 ? given.length : misfit };
  });
  const complete = ({ names, count }) => required.every((name) => names.indexOf(name) < count);
  const found = read.find(complete) ?? read.findLast(({ count }) => count === given.length);
  return found ? zipped(found.names, given.slice(0, found.count)) : null;
}

const zipped = (names, values) => Object.fromEntries(values.map((value, i) => [names[i], value]));

/** The orders in which values were saved before their names were: that of the inputs, to which later versions only add at
    the end; with what draws another seed after each run, and without, for versions and pages differ in that. */
function orders(node) {
  const inputs = savedWidgets(node).filter((one) => one.name !== CONTROL), control = { name: CONTROL, value: "" };
  return [inputs.flatMap((one) => (SEEDS.includes(one.name) ? [one, control] : [one])), inputs];
}

/** Whether a value can be a widget's. */
function fits(widget, value) {
  if (widget?.name === CONTROL) return CONTROLS.includes(value);
  return !widget || value == null || widget.value == null || typeof value === typeof widget.value;
}
