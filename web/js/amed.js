/* AMED on ComfyUI's page: what the numbers cost, a shorter predictor list, a way to Calibrate AMED, and the nodes'
   texts. Everything here is an extra: on a page that it does not know it leaves the nodes as the page makes them. */

import { addButton } from "./calibrate.js";
import { addCost, updateCost } from "./cost.js";
import { shorten } from "./predictors.js";
import { follow } from "./apply.js";
import { readByName, writeNames } from "./saved.js";
import { addText, listen, restore, show } from "./text.js";

const MADE = {
  AMEDKSampler: [addCost, addButton, (node) => shorten(node, "predictor")],
  AMEDApplyPredictor: [follow],
  AMEDCalibrate: [addCost],
  AMEDLoadPredictor: [(node) => shorten(node, "name")],
};
let warned = false;

/** Run `extra`; what fails is left out, with one warning in all. */
function gently(extra) {
  try {
    return extra();
  } catch (error) {
    if (!warned) console.warn("AMED: this page lacks what an extra of the nodes needs, it is left out.", error);
    warned = true;
  }
}

/** Call extras before and after a method of a node's class, which stays as it was. */
function around(nodeType, method, before, after) {
  const own = nodeType.prototype[method];
  nodeType.prototype[method] = function (...given) {
    if (before) gently(() => before(this, ...given));
    const result = own?.apply(this, given);
    if (after) gently(() => after(this, ...given));
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
      const extras = MADE[nodeData.name] ?? [];
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
