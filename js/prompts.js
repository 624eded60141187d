/** Which workflow queued a prompt, and what came of its nodes: their ids are alike in all workflows that came of one template. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const LOOK = 100; // ms between looks whether the page has made the workflow of a graph that it loaded the active one
const PATIENCE = 30; // looks
const NO_ID = /^[0-]*$/; // of a graph that came of an API prompt
const prompts = new Map(); // id -> { order: the later the more, workflow, signatures: node -> what its result depends on }
const outputs = new Map(); // signature -> output
const numbers = new Map(); // a node's class and inputs, those on wires by their own numbers -> its signature, a number
const results = new WeakMap(); // workflow -> (node -> { order, output })
const owners = new WeakMap(); // node -> the workflow that it is of
const waiting = []; // [prompt's id, function]: of events that came before the server's answer
const HISTORY = 32; // prompts of before, looked through for results that the server has in its cache and this page was not told of
const sought = new Set(); // signatures that the history was asked for
const shows = new Set(); // classes of nodes that show results
const KEPT = 50; // prompts that have ended, of which events may still come
const ended = []; // their ids
const mistakes = new WeakMap(); // workflow -> (node's id -> [text, whether a value was refused]), since its last prompt was queued
const handlers = []; // of results
let asked = 0; // answers that are to come
let settling = 0; // timer
let settled = {}; // the workflow that was active last when the nodes' owners were noted, and its graph's id
let last = 0; // order of the newest prompt

/** Called before a prompt is queued; with the errors of nodes whose values the server refuses: id -> { class_type, errors }, whether nothing of the
 *  prompt runs, its workflow; and, when a workflow comes to the front again, with each node that something went wrong in, and what keepMistake was given.
 */
export const beforeQueue = [];
export const onRefused = [];
export const onMistake = [];

const active = () => app.extensionManager?.workflow?.activeWorkflow ?? app;

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

/** The node of an execution's id where its workflow is in front; while the page loads another graph, none. */
function nodeInFront(workflow, id) {
  const node = nodeOf(id);
  if (!node || !workflow) return node; // of a prompt that was queued before the page was loaded nothing is known
  if (workflow !== active()) return null;
  if (owners.get(node) === workflow) return node;
  settleLater();
  return null;
}

/** The nodes that are there belong to the active workflow. */
function settle() {
  const graphs = [app.rootGraph ?? app.graph];
  settled = { workflow: active(), id: graphs[0]?.id ?? "" };
  for (const graph of graphs)
    for (const node of graph?.nodes ?? []) {
      owners.set(node, active());
      if (Array.isArray(node.subgraph?.nodes) && !graphs.includes(node.subgraph)) graphs.push(node.subgraph);
    }
}

/** Remembers what went wrong in a node, until the workflow's next prompt is queued, or a run gives its result; the node, where it is in front. */
export function keepMistake(workflow, id, text, refused) {
  if (!mistakes.has(workflow)) mistakes.set(workflow, new Map());
  mistakes.get(workflow).set(id, [text, refused]);
  return nodeInFront(workflow, id);
}

/** Once the graph that is there is known to be the active workflow's: another one became active, or the same graph was drawn anew. */
function settleLater() {
  let looks = PATIENCE;
  settling ||= setInterval(() => {
    const id = (app.rootGraph ?? app.graph)?.id ?? "";
    const known = active() !== settled.workflow || (id === settled.id && !NO_ID.test(id));
    if (!known && (looks -= 1) > 0) return;
    stopSettling();
    settle();
    showAgain();
  }, LOOK);
}

function stopSettling() {
  clearInterval(settling);
  settling = 0;
}

/** Calls `then(node, detail)` for an event of a prompt whose workflow is in front. */
export function onEvent(name, then) {
  api.addEventListener(name, ({ detail }) =>
    whenKnown(detail.prompt_id, (prompt) => {
      const node = nodeInFront(prompt?.workflow, detail.display_node ?? detail.node);
      if (node) then(node, detail);
    }),
  );
}

/** Calls `then(detail, workflow)` for a prompt that ended in an error. */
export function onFailure(then) {
  api.addEventListener("execution_error", ({ detail }) =>
    whenKnown(detail.prompt_id, (prompt) => then(detail, prompt?.workflow ?? active())),
  );
}

/** Calls `then(node, output)` for each result of a node of these classes, also where the server had it in its cache, and again when its workflow comes to the front. */
export function onResult(classes, then) {
  for (const name of classes) shows.add(name);
  handlers.push(then);
}

/** A number for all that a node's result depends on. `known`: those of the prompt's nodes so far. */
function signatureOf(nodes, id, known) {
  if (known.has(id)) return known.get(id);
  known.set(id, null); // a circle ends here
  const { class_type, inputs } = nodes[id];
  const named = Object.keys(inputs)
    .sort()
    .map((name) => {
      const value = inputs[name];
      const wired = Array.isArray(value) && value.length === 2 && nodes[value[0]];
      return [name, wired ? [signatureOf(nodes, String(value[0]), known), value[1]] : value];
    });
  const text = JSON.stringify([class_type, named]);
  if (!numbers.has(text)) numbers.set(text, numbers.size);
  known.set(id, numbers.get(text));
  return known.get(id);
}

/** Of the nodes in a prompt that show results: id -> signature. */
function signaturesOf(nodes) {
  const own = Object.keys(nodes).filter((id) => shows.has(nodes[id].class_type));
  const known = new Map();
  return new Map(own.map((id) => [id, signatureOf(nodes, id, known)]));
}

/** Adds what came of earlier prompts' nodes, by the server's history. */
async function learnFromHistory() {
  const answer = await api.fetchApi(`/history?max_items=${HISTORY}`).catch(() => null);
  const history = answer?.ok ? await answer.json().catch(() => ({})) : {};
  for (const { prompt, outputs: found } of Object.values(history).reverse()) // the newest first
    for (const [id, signature] of signaturesOf(prompt?.[2] ?? {}))
      if (found?.[id] && !outputs.has(signature)) outputs.set(signature, found[id]);
}

function whenKnown(id, then) {
  if (prompts.has(id) || !asked) then(prompts.get(id));
  else waiting.push([id, then]);
}

function keep(prompt, id, output) {
  const workflow = prompt?.workflow ?? active();
  if (!results.has(workflow)) results.set(workflow, new Map());
  const order = prompt?.order ?? 0;
  if (results.get(workflow).get(id)?.order > order) return; // the history was asked for meanwhile
  results.get(workflow).set(id, { order, output });
  if (mistakes.get(workflow)?.get(id)?.[1] === false) mistakes.get(workflow).delete(id);
  const node = nodeInFront(prompt?.workflow, id);
  if (node) for (const then of handlers) then(node, output);
}

function showAgain() {
  for (const [id, { output }] of results.get(active()) ?? []) {
    const node = nodeOf(id);
    if (node) for (const then of handlers) then(node, output);
  }
  for (const [id, mistake] of mistakes.get(active()) ?? []) {
    const node = nodeOf(id);
    if (node) for (const then of onMistake) then(node, ...mistake);
  }
}

app.registerExtension({
  name: "purecc.prompts",

  setup() {
    const queue = api.queuePrompt;
    api.queuePrompt = async (...args) => {
      const workflow = active();
      asked += 1;
      const tell = (listeners, ...what) => {
        try {
          for (const then of listeners) then(...what);
        } catch (error) {
          console.error("PureCC:", error); // the prompt is queued all the same
        }
      };
      if (!settling) tell([settle]);
      mistakes.delete(workflow);
      tell(beforeQueue);
      try {
        const answer = await queue.apply(api, args);
        try {
          const signatures = signaturesOf(args[1]?.output ?? {});
          if (answer?.prompt_id) prompts.set(answer.prompt_id, { order: ++last, workflow, signatures });
        } catch (error) {
          console.error("PureCC:", error);
        }
        tell(onRefused, answer?.node_errors ?? {}, false, workflow);
        return answer;
      } catch (error) {
        tell(onRefused, error?.response?.node_errors ?? {}, true, workflow);
        throw error;
      } finally {
        asked -= 1;
        const later = waiting.splice(0);
        for (const [id, then] of later) whenKnown(id, then);
      }
    };
    api.addEventListener("executed", ({ detail }) =>
      whenKnown(detail.prompt_id, (prompt) => {
        const id = String(detail.display_node ?? detail.node);
        if (prompt?.signatures.has(id)) outputs.set(prompt.signatures.get(id), detail.output);
        if (detail.output) keep(prompt, id, detail.output);
      }),
    );
    for (const name of ["execution_success", "execution_error", "execution_interrupted"])
      api.addEventListener(name, ({ detail }) => {
        ended.push(detail.prompt_id);
        if (ended.length > KEPT) prompts.delete(ended.shift());
      });
    api.addEventListener("execution_cached", ({ detail }) =>
      whenKnown(detail.prompt_id, async (prompt) => {
        const cached = (detail.nodes ?? []).map(String).filter((id) => prompt?.signatures.has(id));
        const known = (id) => outputs.get(prompt.signatures.get(id));
        if (!cached.every((id) => known(id) || sought.has(prompt.signatures.get(id)))) await learnFromHistory();
        for (const id of cached) sought.add(prompt.signatures.get(id));
        for (const id of cached) if (known(id)) keep(prompt, id, known(id));
      }),
    );
  },

  afterConfigureGraph() {
    stopSettling();
    settleLater();
  },
});
