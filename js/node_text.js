/** What a node has to say stands in it, to be read and copied: while it runs, and its summary, report or figures afterwards.
 *  So does what went wrong, which newer pages tell in a panel alone. What is wrong though it runs is said over the canvas.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { EXPANDS, after, mount, mountLater } from "./mount.js";
import { beforeQueue, keepMistake, onEvent, onFailure, onMistake, onRefused, onResult } from "./prompts.js";

// at least, in pixels; more scrolls, or shows in a taller node. (Training nodes have theirs below the chart: training_chart.js)
const HEIGHTS = {
  PureCCConceptSet: 100,
  PureCCCompare: 54,
  PureCCSettings: 40,
  PureCCGuider: 40,
  PureCCExportConcept: 40,
  PureCCImportLora: 26,
  PureCCSaveConcept: 26,
  PureCCLoadConcept: 26,
};
const HOSTS_OWN = "$$node-text-preview"; // the widget in which the page shows progress texts
const texts = new WeakMap(); // node -> element with a box in it
const mistakes = new Map(); // such an element, where what went wrong stands -> { before: what stood there, refused: it is of no run }
const PLAIN = "var(--input-text, #ddd)";
const RED = "var(--error-text, #ff6b6b)";
const REFUSED = "Custom validation failed for node"; // the host's word before those of the node

/** Gives a node its text, as its last widget so far; `height` in pixels, at least. */
export function addText(node, height) {
  const outer = element(height);
  texts.set(node, outer);
  mountLater(node, outer);
  const widget = node.addDOMWidget("said", "purecc_text", outer, {
    serialize: false, // no part of the prompt
    hideOnZoom: false,
    getMinHeight: () => height,
  });
  widget.serialize = false; // nor of the workflow's widget values
  const grow = () => node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  after(node, "onConfigure", grow); // a workflow of an earlier version had no room for it
  grow();
}

/** A box whose size does not follow from its text, and the text in it. */
function element(height) {
  const outer = document.createElement("div");
  outer.className = `purecc-text ${EXPANDS}`;
  outer.style.cssText = `position:relative; width:100%; height:100%; min-height:${height}px`;
  const box = document.createElement("div");
  box.style.cssText =
    "position:absolute; inset:0; overflow:auto; padding:3px 6px; white-space:pre-wrap; overflow-wrap:anywhere; " +
    `font:11px/1.35 Inter, system-ui, sans-serif; color:${PLAIN}; user-select:text; cursor:text`;
  box.addEventListener("wheel", (event) => {
    if (box.scrollHeight > box.clientHeight && !event.ctrlKey) event.stopPropagation();
    else app.canvas.processMouseWheel(event);
  });
  outer.append(box);
  return outer;
}

function show(node, text) {
  const outer = texts.get(node);
  if (!outer) return;
  const mistake = mistakes.get(outer);
  if (mistake?.refused) {
    mistake.before = text; // of a run that was queued before
  } else {
    mistakes.delete(outer);
    write(outer, text, PLAIN);
  }
  mount(node, outer);
}

function write(outer, text, colour) {
  if (outer.textContent !== text) outer.firstChild.textContent = text;
  outer.firstChild.style.color = colour;
}

/** In the node until the next prompt is queued; over the canvas if that is wanted, or the node is not in sight or has no text. */
function tellMistake(workflow, id, text, refused, overCanvas) {
  const node = keepMistake(workflow, id, text, refused);
  if (overCanvas || !texts.has(node) || node.graph !== app.canvas.graph) warn(text);
  showMistake(node, text, refused);
}

function showMistake(node, text, refused) {
  const outer = texts.get(node);
  if (!outer) return;
  const before = mistakes.get(outer)?.before ?? outer.textContent;
  mistakes.set(outer, { before, refused });
  write(outer, text, RED);
  mount(node, outer);
}

function takeBackMistakes() {
  for (const [outer, { before }] of mistakes) write(outer, before, PLAIN);
  mistakes.clear();
}

function warn(text) {
  app.extensionManager?.toast?.add({ severity: "warn", summary: "PureCC", detail: text, life: 15000 });
}

/** A notice below another pack's node is of its last run: the sampler may run without the concept now. */
function takeBackNotices() {
  const root = app.rootGraph ?? app.graph;
  for (const graph of [root, ...(root?.subgraphs?.values() ?? [])])
    for (const node of graph?.nodes ?? []) {
      const said = node.widgets?.find((widget) => widget.name === HOSTS_OWN);
      if (String(said?.value).startsWith("PureCC:")) said.value = "";
    }
}

/** `whole`: nothing runs. Of several outputs those that are refused are left out of a run, which is said over the canvas too. */
function tellRefused(nodeErrors, whole, workflow) {
  for (const [id, { class_type, errors }] of Object.entries(nodeErrors)) {
    if (!class_type?.startsWith("PureCC")) continue;
    const said = errors.map(({ message, details }) =>
      message === REFUSED ? details.replace(/^\w+ - /, "") : `${message}: ${details}`,
    );
    const text = [...new Set(said)].join("\n"); // the host says it once for each input that the node looked at
    tellMistake(workflow, id, text, true, !whole);
  }
}

app.registerExtension({
  name: "purecc.node_text",

  setup() {
    onEvent("purecc.text", (node, { text }) => show(node, text));
    onResult(Object.keys(HEIGHTS), (node, { text }) => text?.length && show(node, text.join("\n")));
    onFailure(({ node_id, node_type, exception_message }, workflow) => {
      const text = exception_message?.trim();
      if (node_type?.startsWith("PureCC") && text) tellMistake(workflow, String(node_id), text, false, false);
    });
    onRefused.push(tellRefused);
    onMistake.push(showMistake);
    beforeQueue.push(takeBackMistakes);
    api.addEventListener("purecc.mistake", ({ detail }) => warn(detail.text));
    api.addEventListener("execution_start", takeBackNotices);
  },

  nodeCreated(node) {
    if (HEIGHTS[node.comfyClass]) addText(node, HEIGHTS[node.comfyClass]);
  },
});
