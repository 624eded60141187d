/** Draws a run's curve on a canvas: one panel for the losses, one for lambda* and cos2 where the run has them. */

import { rangeOf, short, ticks } from "./axis.js";
import { STEP, smoothed } from "./curve.js";

const SERIES = {
  concept: { column: 1, label: "L_CC", colour: "--p-blue-500", fallback: "#3b82f6" },
  pure: { column: 2, label: "L_PureCC", colour: "--p-orange-500", fallback: "#f97316" },
  scale: { column: 3, label: "λ*", colour: "--p-green-500", fallback: "#22c55e", withZero: true },
  cosine: { column: 4, label: "cos²", colour: "--p-purple-500", fallback: "#a855f7", withZero: true },
};
const PANELS = [
  [SERIES.concept, SERIES.pure],
  [SERIES.scale, SERIES.cosine],
];
const FONT = "11px Inter, system-ui, sans-serif";
const SMOOTHING = 0.05; // of the steps shown: how many steps the strong line is the mean of
const [LEGEND, BOTTOM, SIDE, GAP] = [18, 18, 38, 6]; // pixels

/** The panels that a curve needs: [[left series, right series or undefined], ...]. */
export function panelsOf(curve) {
  const has = ({ column }) => curve.points.some((point) => point[column] !== null);
  return PANELS.map((series) => series.filter(has)).filter((series) => series.length);
}

/** The step whose values are nearest to `x` pixels from the left, or null outside the frame. */
export function pointAt(curve, width, x) {
  const { left, right } = frame(width, panelsOf(curve));
  if (!curve.points.length || x < left - 4 || x > right + 4) return null;
  const step = ((x - left) / (right - left)) * lastOf(curve);
  return curve.points.reduce((a, b) => (Math.abs(b[STEP] - step) < Math.abs(a[STEP] - step) ? b : a));
}

/** `size` = [width, height] in CSS pixels; `hovered`: a point to read out, or null. */
export function plot(canvas, size, curve, hovered) {
  const [width, height] = size;
  const density = Math.max(2, window.devicePixelRatio || 1); // sharp when zoomed in a little
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  const g = canvas.getContext("2d");
  g.scale(density, density);
  g.font = FONT;
  const ink = coloursOf(canvas);
  const panels = panelsOf(curve);
  if (!panels.length) return message(g, width, height, sentence(curve), ink);

  const { left, right } = frame(width, panels);
  const x = (step) => left + (step / lastOf(curve)) * (right - left);
  const tall = (height - BOTTOM) / panels.length;
  panels.forEach((series, i) => {
    const box = { left, right, top: i * tall + LEGEND, bottom: (i + 1) * tall - (i < panels.length - 1 ? GAP : 2) };
    panel(g, box, series, curve, hovered, x, ink);
  });
  steps(g, x, height, curve, hovered, ink);
}

/** The step at the right edge: of a long run's beginning more is seen than a sliver. */
function lastOf({ total, step }) {
  return Math.max(1, Math.min(total, Math.max(2 * step, 20)));
}

function frame(width, panels) {
  return { left: SIDE, right: width - (panels.some((series) => series.length > 1) ? SIDE : 8) };
}

function coloursOf(canvas) {
  const style = getComputedStyle(canvas);
  const read = (name, fallback) => style.getPropertyValue(name).trim() || fallback;
  return {
    text: read("--descrip-text", "#999"),
    strong: read("--input-text", "#ddd"),
    line: read("--border-color", "#4e4e4e"),
    of: ({ colour, fallback }) => read(colour, fallback),
  };
}

function panel(g, box, series, curve, hovered, x, ink) {
  series.forEach((one, side) => {
    const means = smoothed(curve.points, one.column, Math.max(4, lastOf(curve) * SMOOTHING));
    const raw = curve.points.map((point) => point[one.column]);
    const [low, high] = rangeOf([...raw, ...means], one.withZero);
    const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
    const colour = ink.of(one);
    axis(g, box, ticks(low, high, Math.max(3, (box.bottom - box.top) / 24)), y, side, colour, ink);
    g.save();
    g.beginPath();
    g.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    g.clip();
    g.strokeStyle = colour;
    trace(g, curve.points, raw, x, y, 1, 0.3);
    trace(g, curve.points, means, x, y, 1.8, 1);
    if (hovered) dot(g, x(hovered[STEP]), y(hovered[one.column] ?? NaN), colour);
    g.restore();
    const now = hovered ? hovered[one.column] : means.findLast((mean) => mean !== null);
    legend(g, box, `${one.label} ${short(now)}`, side, colour, ink);
  });
  g.strokeStyle = ink.line;
  g.lineWidth = 1;
  g.strokeRect(box.left + 0.5, box.top + 0.5, box.right - box.left - 1, box.bottom - box.top - 1);
  if (hovered) {
    g.beginPath();
    g.moveTo(x(hovered[STEP]), box.top);
    g.lineTo(x(hovered[STEP]), box.bottom);
    g.stroke();
  }
}

function axis(g, box, values, y, side, colour, ink) {
  g.textBaseline = "middle";
  g.textAlign = side ? "left" : "right";
  for (const value of values) {
    const at = y(value);
    if (!side) {
      g.globalAlpha = 0.5;
      g.fillStyle = ink.line;
      g.fillRect(box.left, Math.round(at), box.right - box.left, 1);
      g.globalAlpha = 1;
    }
    g.fillStyle = colour;
    g.fillText(short(value), side ? box.right + 4 : box.left - 4, Math.min(Math.max(at, box.top + 4), box.bottom - 4));
  }
}

function trace(g, points, values, x, y, width, alpha) {
  g.lineWidth = width;
  g.globalAlpha = alpha;
  g.lineJoin = "round";
  g.beginPath();
  let drawn = 0;
  points.forEach((point, i) => {
    if (values[i] === null) return;
    const [px, py] = [x(point[STEP]), y(values[i])];
    if (drawn) g.lineTo(px, py);
    else g.moveTo(px, py);
    drawn += 1;
  });
  g.stroke();
  if (drawn === 1) dot(g, x(points.at(-1)[STEP]), y(values.at(-1)), g.strokeStyle);
  g.globalAlpha = 1;
}

function dot(g, x, y, colour) {
  if (!Number.isFinite(y)) return;
  g.fillStyle = colour;
  g.beginPath();
  g.arc(x, y, 2.5, 0, 2 * Math.PI);
  g.fill();
}

/** A coloured mark and a text above the panel: left for the left axis, right for the right one. */
function legend(g, box, text, side, colour, ink) {
  g.textBaseline = "middle";
  g.textAlign = side ? "right" : "left";
  const [edge, middle] = [side ? box.right : box.left, box.top - LEGEND / 2];
  g.fillStyle = colour;
  g.fillRect(side ? edge - 10 : edge, middle - 1.5, 10, 3);
  g.fillStyle = ink.strong;
  g.fillText(text, side ? edge - 14 : edge + 14, middle);
}

function steps(g, x, height, curve, hovered, ink) {
  const middle = height - BOTTOM / 2 + 1;
  g.textBaseline = "middle";
  g.textAlign = "left";
  g.fillStyle = ink.strong;
  const text = hovered ? `step ${hovered[STEP]}` : `${curve.state}, step ${curve.step} of ${curve.total}`;
  g.fillText(text, x(0), middle);
  g.fillStyle = ink.text;
  const from = x(0) + g.measureText(text).width + 12;
  for (const value of ticks(0, lastOf(curve), 4).filter(Number.isInteger)) {
    const wide = g.measureText(short(value)).width;
    g.textAlign = "center";
    const at = Math.min(x(value), x(lastOf(curve)) - wide / 2);
    if (at - wide / 2 > from) g.fillText(short(value), at, middle);
  }
}

function sentence({ state }) {
  if (state === "running") return "Training begins …";
  if (state === "loading") return "Reading the run …";
  if (state === "missing") return "This run is no longer on disk.";
  return "The losses are drawn here while it trains.";
}

function message(g, width, height, text, ink) {
  g.textAlign = "center";
  g.textBaseline = "middle";
  g.fillStyle = ink.text;
  g.fillText(text, width / 2, height / 2);
}
