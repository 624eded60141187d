/** Puts a chart into the training nodes, gives it the events of its node's run, and remembers the run in the workflow. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ChartWidget } from "./chart/widget.js";

const HEIGHTS = { PureCCTrainExtractor: 170, PureCCPureLearning: 240 }; // at least, in pixels: one panel, two panels
const STAGES = { PureCCTrainExtractor: "extractor-", PureCCPureLearning: "pure-" }; // how names of their runs begin
const WIDTH = 340; // of a new node at least
const PROPERTY = "purecc_run"; // of the node: the name of the run that its chart shows
const charts = new WeakMap(); // node -> ChartWidget

/** The node of an execution's id: "5:3" is node 3 in the sub-graph of node 5. */
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

/** Keeps the run's name in the workflow and its draft; it is no part of the prompt. */
function remember(node, run) {
  if (node.properties[PROPERTY] === run) return;
  node.properties[PROPERTY] = run;
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // the newer name first
}

function after(prototype, name, then) {
  const original = prototype[name];
  prototype[name] = function (...args) {
    const result = original?.apply(this, args);
    then.apply(this, args);
    return result;
  };
}

app.registerExtension({
  name: "purecc.training_chart",

  setup() {
    api.addEventListener("purecc.run", ({ detail }) => {
      const node = nodeOf(detail.node);
      const chart = node && charts.get(node);
      if (!chart || !detail.run?.startsWith(STAGES[node.comfyClass])) return; // another workflow is in front
      chart.take(detail);
      remember(node, detail.run);
    });
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    const height = HEIGHTS[nodeData.name];
    if (!height) return;

    after(nodeType.prototype, "onNodeCreated", function () {
      const chart = new ChartWidget(height);
      charts.set(this, chart);
      const widget = this.addDOMWidget("chart", "purecc_chart", chart.element, {
        serialize: false, // no part of the prompt
        hideOnZoom: false,
        getMinHeight: () => height,
      });
      widget.serialize = false; // nor of the workflow's widget values
      this.setSize([Math.max(this.size[0], WIDTH), this.computeSize()[1]]);
    });
    after(nodeType.prototype, "onConfigure", function () {
      charts.get(this)?.show(this.properties?.[PROPERTY] ?? null);
    });
    after(nodeType.prototype, "onExecuted", function (output) {
      const run = output?.purecc_run?.[0]; // also where the host had the result in its cache
      if (!run) return;
      charts.get(this)?.show(run);
      remember(this, run);
    });
    after(nodeType.prototype, "onRemoved", function () {
      charts.get(this)?.remove();
    });
  },
});
