/** Node names end in words for the search box, in parentheses: "Pure Learning (fine-tune, ...)". On the canvas they are left out. */

import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "purecc.titles",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name.startsWith("PureCC")) nodeType.title = nodeData.display_name.replace(/ \(.*\)$/, "");
  },
});
