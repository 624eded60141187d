/** Small numbers are shown whole: the page would round 0.000025 to five decimals, or to three, and a click into it would lose the rest. */

import { app } from "../../scripts/app.js";

/** How many decimals a value has, `most` at most. */
function decimalsOf(value, most) {
  const digits = Number(value).toFixed(most).split(".")[1] ?? "";
  return digits.replace(/0+$/, "").length;
}

app.registerExtension({
  name: "purecc.numbers",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("PureCC")) return;
    for (const widget of node.widgets ?? []) {
      const { options } = widget;
      const decimals = Math.round(-Math.log10(options?.round));
      if (!(decimals > 3)) continue;
      options.maxFractionDigits = decimals;
      const least = options.precision ?? 0;
      Object.defineProperty(options, "precision", {
        get: () => Math.max(least, decimalsOf(widget.value, decimals)),
        enumerable: true,
        configurable: true,
      });
    }
  },
});
