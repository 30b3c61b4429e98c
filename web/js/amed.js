/* Additions to AMED's nodes on ComfyUI's page: the cost of the settings, a shorter list of predictors, a button that adds
   Calibrate AMED, and texts on the nodes. All are optional: on a page without the needed features the nodes stay as the
   page makes them. */

import { addButton } from "./calibrate.js";
import { addCost, updateCost } from "./cost.js";
import { shorten } from "./predictors.js";
import { follow } from "./apply.js";
import { readByName, writeNames } from "./saved.js";
import { addText, listen, restore, show } from "./text.js";

const EXTRAS = {
  AMEDKSampler: [addCost, addButton, (node) => shorten(node, "predictor")],
  AMEDApplyPredictor: [follow],
  AMEDCalibrate: [addCost],
  AMEDLoadPredictor: [(node) => shorten(node, "name")],
};
let warned = false;

/** Run `extra`. If it fails, skip it; only the first failure gives a warning. */
function gently(extra) {
  try {
    return extra();
  } catch (error) {
    if (!warned) console.warn("AMED: this page lacks a feature that an addition to the nodes needs; it is off.", error);
    warned = true;
  }
}

/** Call extras before and after a method of a node's class, without changing the method itself. */
function around(nodeType, method, before, after) {
  const original = nodeType.prototype[method];
  nodeType.prototype[method] = function (...args) {
    if (before) gently(() => before(this, ...args));
    const result = original?.apply(this, args);
    if (after) gently(() => after(this, ...args));
    return result;
  };
}

const after = (nodeType, method, extra) => around(nodeType, method, null, extra);

async function register() {
  const { app } = await import("../../../scripts/app.js");
  app.registerExtension({
    name: "AMED",
    setup: () => gently(() => listen(app, gently)),
    beforeRegisterNodeDef(nodeType, nodeData) {
      if (!nodeData?.name?.startsWith("AMED")) return;
      const extras = EXTRAS[nodeData.name] ?? [];
      for (const extra of extras) after(nodeType, "onNodeCreated", extra);
      if (extras.includes(addCost))
        for (const method of ["onConfigure", "onDrawBackground"]) after(nodeType, method, updateCost);
      if (extras.includes(follow))
        for (const method of ["onConfigure", "onConnectionsChange"]) after(nodeType, method, follow);
      const required = Object.keys(nodeData.input?.required ?? {});
      around(nodeType, "configure", (node, info) => readByName(node, info, required));
      after(nodeType, "onSerialize", writeNames);
      after(nodeType, "onNodeCreated", (node) => addText(app, node));
      after(nodeType, "onExecuted", (node, output) => show(app, node, output?.text));
      after(nodeType, "onDrawBackground", (node) => restore(app, node));
    },
  });
}

await register().catch((error) => gently(() => { throw error; }));
