/** Small numbers in the newer node design, which shows three decimals: 1e-4 would read 0, and a click into it would lose it. */

import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "purecc.numbers",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("PureCC")) return;
    for (const { options } of node.widgets ?? []) {
      const decimals = Math.round(-Math.log10(options?.round));
      if (decimals > 3) options.maxFractionDigits = decimals;
    }
  },
});
