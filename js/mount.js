/** Elements in nodes. Nodes 2.0 put one into the page once: where the next graph has a node of the same id, they go on showing the last one's. */

import { app } from "../../scripts/app.js";

const LATER = [300, 1500]; // ms after a node was made

/** The class by which Nodes 2.0 give a widget's element what a node has to spare in height. */
export const EXPANDS = "widget-expands";

/** Puts a node's element where one of its kind stands that belongs to no node any more. Its first class tells the kind. */
export function mount(node, element) {
  if (element.isConnected || node.graph !== app.canvas.graph) return;
  document.querySelector(`[data-node-id="${node.id}"] .${element.classList[0]}`)?.replaceWith(element);
}

/** Calls `then` after a node's, or a prototype's, own method, with the same `this` and arguments. */
export function after(owner, name, then) {
  const original = owner[name];
  owner[name] = function (...args) {
    const result = original?.apply(this, args);
    then.apply(this, args);
    return result;
  };
}

/** `mount`, when the page has drawn the node. */
export function mountLater(node, element) {
  for (const wait of LATER) setTimeout(() => mount(node, element), wait);
}
