/** Node names end in words for the search box, in parentheses: "Pure Learning (fine-tune, ...)". On the canvas they are left out. */

import { app } from "../../scripts/app.js";

const withoutWords = (name) => name.replace(/ \(.*\)$/, "");

app.registerExtension({
  name: "purecc.titles",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("PureCC")) return;
    const name = node.constructor.title;
    if (node.title === name) node.title = withoutWords(name);
    node.constructor.title = withoutWords(name); // a node from a file takes it after it was created
  },
});
