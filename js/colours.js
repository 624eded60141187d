/** Wires and sockets of the pack's own kinds in colours of their own; the page has none for kinds that it does not know. */

import { app } from "../../scripts/app.js";

const COLOURS = { PURECC_DATA: "#d9a441", PURECC_CONCEPT: "#ef6aa6", PURECC_SETTINGS: "#6fb3a8" };

app.registerExtension({
  name: "purecc.colours",
  setup() {
    for (const [kind, colour] of Object.entries(COLOURS)) {
      for (const known of [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors])
        if (known) known[kind] = colour;
      // of the root: the page takes kinds that its palette lacks away from the body
      document.documentElement.style.setProperty(`--color-datatype-${kind}`, colour);
    }
  },
});
