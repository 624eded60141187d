/** The chart of one node: an element that holds a run's curve, keeps it up to date and draws itself. */

import { api } from "../../../scripts/api.js";
import { EXPANDS } from "../mount.js";
import { STEP, Curve } from "./curve.js";
import { plot, pointAt } from "./plot.js";

const SILENCE = 3000; // ms without an event of a running run, after which the server is asked

export class ChartWidget {
  /** `height`: in pixels, at least. */
  constructor(height) {
    this.curve = new Curve();
    this.hovered = null;
    this.element = document.createElement("div");
    this.element.className = `purecc-chart ${EXPANDS}`;
    this.element.style.cssText = `position:relative; overflow:hidden; width:100%; height:100%; min-height:${height}px`;
    this.canvas = document.createElement("canvas");
    this.canvas.style.cssText = "position:absolute; inset:0; width:100%; height:100%";
    this.canvas.setAttribute("role", "img");
    this.element.append(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.#hover(event));
    this.canvas.addEventListener("pointerleave", () => this.#hover(null));
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.element);
    this.theme = new MutationObserver(() => this.draw());
    for (const root of [document.documentElement, document.body])
      this.theme.observe(root, { attributes: true, attributeFilter: ["class", "style"] });
    this.draw();
  }

  /** Shows the run of this name, from the server; null shows none. */
  show(run) {
    if (run === this.curve.run) return;
    this.curve = new Curve(run);
    this.hovered = null;
    if (run) this.#fill();
    this.draw();
  }

  /** A live event of a run. */
  take(event) {
    if (event.run !== this.curve.run) {
      this.curve = new Curve(event.run);
      this.curve.addLive(event);
      this.#fill();
    } else if (this.curve.addLive(event)) {
      this.#fill();
    }
    this.#watch();
    this.draw();
  }

  remove() {
    this.removed = true;
    clearTimeout(this.silence);
    this.sizes.disconnect();
    this.theme.disconnect();
  }

  draw() {
    const { curve, canvas } = this;
    Object.assign(canvas.dataset, { state: curve.state, points: curve.points.length, step: curve.step, total: curve.total });
    canvas.dataset.run = curve.run ?? "";
    canvas.setAttribute("aria-label", label(curve));
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      const size = [this.element.clientWidth, this.element.clientHeight];
      if (size[0] > 0 && size[1] > 0) plot(canvas, size, this.curve, this.hovered);
    });
  }

  /** Asks the server for what is on disk; once more if that was asked for meanwhile. */
  async #fill() {
    if (this.filling) {
      this.again = true;
      return;
    }
    this.filling = true;
    do {
      this.again = false;
      const { curve } = this;
      const { events } = curve;
      const answer = await api.fetchApi(`/purecc/runs/${encodeURIComponent(curve.run)}`).catch(() => null);
      if (curve !== this.curve) this.again = Boolean(this.curve.run);
      else if (answer?.ok) {
        const stored = await answer.json().catch(() => null); // the server went away in the middle
        if (stored) curve.addStored(stored, events);
      }
      else if (answer?.status === 404 && curve.state === "loading") curve.state = "missing";
    } while (this.again && !this.removed);
    this.filling = false;
    if (this.removed) return;
    this.#watch();
    this.draw();
  }

  /** While it runs and nothing is heard (another page has it, or the line broke), looks again. */
  #watch() {
    clearTimeout(this.silence);
    if (this.curve.state === "running") this.silence = setTimeout(() => this.#fill(), SILENCE);
  }

  #hover(event) {
    const box = this.canvas.getBoundingClientRect(); // scaled with the graph
    const x = event && ((event.clientX - box.left) / box.width) * this.element.clientWidth;
    this.hovered = event && pointAt(this.curve, this.element.clientWidth, x);
    this.draw();
  }
}

function label({ state, total, step, points }) {
  const last = points.at(-1);
  const values = ["L_CC", "L_PureCC", "lambda*", "cos2"]
    .map((name, i) => (last && last[STEP + 1 + i] !== null ? `${name} ${last[STEP + 1 + i].toPrecision(3)}` : null))
    .filter(Boolean);
  return [`Training chart, ${state}, step ${step} of ${total}`, ...values].join(", ");
}
