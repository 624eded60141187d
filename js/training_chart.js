/** Puts a chart into the training nodes, gives it the events of its node's run, and remembers the run in the workflow. */

import { app } from "../../scripts/app.js";
import { ChartWidget } from "./chart/widget.js";
import { after, mount, mountLater } from "./mount.js";
import { addText } from "./node_text.js";
import { onEvent, onResult } from "./prompts.js";

const HEIGHTS = { PureCCTrainExtractor: 170, PureCCPureLearning: 240 }; // at least, in pixels: one panel, two panels
const STAGES = { PureCCTrainExtractor: "extractor-", PureCCPureLearning: "pure-" }; // how names of their runs begin
const TEXT = 68; // pixels, at least, of the text below it: a line while it trains, then the report
const WIDTH = 340; // of a new node at least
const PROPERTY = "purecc_run"; // of the node: the name of the run that its chart shows
const charts = new WeakMap(); // node -> ChartWidget

/** Keeps the run's name in the workflow and its draft; it is no part of the prompt, and no step of Undo takes it away. */
function remember(node, run) {
  if (node.properties[PROPERTY] === run) return;
  node.properties[PROPERTY] = run;
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  for (const state of [tracker?.activeState, ...(tracker?.undoQueue ?? []), ...(tracker?.redoQueue ?? [])]) {
    const graphs = [state, ...(state?.definitions?.subgraphs ?? [])];
    const graph = node.graph.isRootGraph === false ? graphs.find((one) => one?.id === node.graph.id) : state;
    const kept = graph?.nodes?.find((one) => String(one.id) === String(node.id) && one.type === node.type);
    if (kept) kept.properties = { ...kept.properties, [PROPERTY]: run };
  }
  tracker?.updateModified?.(); // writes the draft
}

app.registerExtension({
  name: "purecc.training_chart",

  setup() {
    onEvent("purecc.run", (node, detail) => {
      const chart = charts.get(node);
      if (!chart || !detail.run?.startsWith(STAGES[node.comfyClass])) return;
      mount(node, chart.element);
      chart.take(detail);
      remember(node, detail.run);
    });
    onResult(Object.keys(HEIGHTS), (node, output) => {
      const run = output.purecc_run?.[0];
      if (!charts.has(node) || !run?.startsWith(STAGES[node.comfyClass])) return;
      mount(node, charts.get(node).element);
      charts.get(node).show(run);
      remember(node, run);
    });
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    const height = HEIGHTS[nodeData.name];
    if (!height) return;

    after(nodeType.prototype, "onNodeCreated", function () {
      const chart = new ChartWidget(height);
      charts.set(this, chart);
      mountLater(this, chart.element);
      const widget = this.addDOMWidget("chart", "purecc_chart", chart.element, {
        serialize: false, // no part of the prompt
        hideOnZoom: false,
        getMinHeight: () => height,
      });
      widget.serialize = false; // nor of the workflow's widget values
      addText(this, TEXT);
      this.setSize([Math.max(this.size[0], WIDTH), this.computeSize()[1]]);
    });
    after(nodeType.prototype, "onConfigure", function () {
      charts.get(this)?.show(this.properties?.[PROPERTY] ?? null);
    });
    after(nodeType.prototype, "onRemoved", function () {
      charts.get(this)?.remove();
    });
  },
});
