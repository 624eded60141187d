/** Small numbers are kept whole: the page would show and store 0.000025 as 0.00002, or 1e-4 as 0. */

import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "purecc.numbers",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("PureCC")) return;
    for (const { options } of node.widgets ?? []) {
      const decimals = Math.round(-Math.log10(options?.round));
      if (!(decimals > 3)) continue;
      options.maxFractionDigits = decimals; // read by Nodes 2.0
      options.precision = decimals; // and by newer pages in its place; one for all values, or a sub-graph's input could not turn two of them
    }
  },
});
