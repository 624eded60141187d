/** The points of one run, in order of their steps, none twice: joined from live events and from the run's file on the server. */

export const STEP = 0; // a point is [step, L_CC, L_PureCC, lambda*, cos2]; null where there is no such measure
const LIMIT = 2000; // points kept; beyond it every second one goes

export class Curve {
  constructor(run = null) {
    this.run = run; // the name of its folder
    this.state = run ? "loading" : "empty"; // then running, finished, stopped; or missing
    this.total = 0;
    this.points = [];
    this.events = 0;
  }

  get step() {
    return this.points.at(-1)?.[STEP] ?? 0;
  }

  /** Takes a live event. Returns whether points before it are missing here. */
  addLive({ state, step, total, points }) {
    this.events += 1;
    Object.assign(this, { state, total });
    const first = points.length ? points[0][STEP] : step + 1;
    const before = points.length ? this.points.filter((p) => p[STEP] < first) : this.points;
    const missing = first > (before.at(-1)?.[STEP] ?? 0) + 1;
    this.points = thinned([...before, ...points]);
    return missing;
  }

  /** Takes what the server had on disk, asked for when `events` live events had come: newer ones know the state better. */
  addStored({ state, step, total, points }, events) {
    this.total = total;
    if (events === this.events) this.state = state;
    this.points = thinned([...points, ...this.points.filter((p) => p[STEP] > step)]);
  }
}

function thinned(points) {
  if (points.length <= LIMIT) return points;
  return points.filter((_, i) => i % 2 === 0 || i === points.length - 1);
}

/** Exponential mean of a column over `width` steps, one value for each point; points may be unevenly spaced. */
export function smoothed(points, column, width) {
  let mean = 0;
  let weight = 0;
  let last = null;
  return points.map((point) => {
    const value = point[column];
    if (value === null) return null;
    const keep = last === null ? 0 : Math.exp(-(point[STEP] - last) / width);
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep); // corrects the bias towards the first values
    last = point[STEP];
    return mean / weight;
  });
}
