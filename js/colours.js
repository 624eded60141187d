/** Wires and sockets of the pack's own kinds in colours of their own, unless the page's palette has some; it empties those of kinds that it lacks. */

import { app } from "../../scripts/app.js";

const COLOURS = { PURECC_DATA: "#d9a441", PURECC_CONCEPT: "#ef6aa6", PURECC_SETTINGS: "#6fb3a8" };

function prefer(known, kind, colour) {
  let own = "";
  Object.defineProperty(known, kind, {
    get: () => own || colour,
    set: (value) => (own = value),
    enumerable: true,
    configurable: true,
  });
}

app.registerExtension({
  name: "purecc.colours",
  setup() {
    const sheet = document.createElement("style"); // for Nodes 2.0
    sheet.textContent = `:root { ${Object.entries(COLOURS).map(([kind, colour]) => `--color-datatype-${kind}: ${colour};`).join(" ")} }`;
    document.head.append(sheet);
    for (const known of [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors])
      for (const [kind, colour] of Object.entries(COLOURS)) if (known) prefer(known, kind, colour);
  },
});
