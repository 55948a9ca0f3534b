// Small line charts as SVG. A chart is made once; draw() gives it new numbers.

const SVG = "http://www.w3.org/2000/svg";
const WIDE = 300;
const HIGH = 100;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// The smallest of 1, 2, 5 times a power of ten that is not below the value.
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const step of [1, 2, 5, 10]) if (value <= step * power * 1.0000001) return step * power;
  return 10 * power;
}

export class Chart {
  // lines: [{name, field}], at most two; show: number -> text; top: the fixed upper end, or nothing.
  constructor(title, lines, show, top) {
    Object.assign(this, { lines, show, top, samples: [], seconds: 300 });
    this.values = lines.map(() => element("span"));
    const keys = lines.map((line, i) =>
      element("span", { class: "key" }, element("i", { class: "ab"[i] }), `${line.name} `, this.values[i]));
    this.svg = shape("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img" });
    this.svg.setAttribute("aria-label", title);
    for (const y of [0, 50, 100]) this.svg.append(shape("line", { class: "grid", x1: 0, x2: WIDE, y1: y, y2: y }));
    this.paths = lines.map((_, i) => {
      const pair = [shape("path", { class: `area ${"ab"[i]}` }), shape("path", { class: `path ${"ab"[i]}` })];
      this.svg.append(...pair);
      return pair;
    });
    this.cursor = shape("line", { class: "cursor", y1: 0, y2: HIGH, visibility: "hidden" });
    this.svg.append(this.cursor);
    this.scale = element("span");
    this.when = element("span", { text: "now" });
    this.node = element("section", { class: "card chart" },
      element("div", { class: "head" }, element("h2", { text: title }), ...keys),
      this.svg,
      element("div", { class: "foot" }, element("span", { text: "5 min ago" }), this.scale, this.when));
    this.svg.addEventListener("pointermove", (e) => this.point(e));
    this.svg.addEventListener("pointerdown", (e) => this.point(e));
    this.svg.addEventListener("pointerleave", () => this.leave());
  }

  x(sample) {
    return WIDE * (1 - (this.newest - sample.at) / this.seconds);
  }

  draw(samples) {
    this.samples = samples;
    this.newest = samples.length ? samples.at(-1).at : 0;
    const most = Math.max(0, ...samples.flatMap((s) => this.lines.map((l) => s[l.field])));
    const top = this.top ?? roundUp(most);
    this.scale.textContent = `up to ${this.show(top)}`;
    this.lines.forEach((line, i) => {
      const runs = this.runs();
      const point = (s) => `${this.x(s).toFixed(2)} ${(HIGH * (1 - Math.min(s[line.field] / top, 1))).toFixed(2)}`;
      const path = runs.map((run) => "M" + run.map(point).join("L")).join("");
      const area = runs.map((run) =>
        `M${this.x(run[0]).toFixed(2)} ${HIGH}L` + run.map(point).join("L") + `L${this.x(run.at(-1)).toFixed(2)} ${HIGH}Z`).join("");
      this.paths[i][0].setAttribute("d", area);
      this.paths[i][1].setAttribute("d", path);
    });
    if (this.pointed === undefined) this.tell(samples.at(-1), "now");
    else this.pointAt(this.pointed);
  }

  // The samples in pieces without gaps: no line is drawn over a time that nobody measured.
  runs() {
    const runs = [];
    for (const sample of this.samples) {
      const run = runs.at(-1);
      if (run && sample.at - run.at(-1).at < 5) run.push(sample);
      else runs.push([sample]);
    }
    return runs;
  }

  tell(sample, when) {
    this.lines.forEach((line, i) => { this.values[i].textContent = sample ? this.show(sample[line.field]) : "–"; });
    this.when.textContent = when;
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    this.pointAt((event.clientX - box.left) / box.width);
  }

  pointAt(share) {
    this.pointed = share;
    const at = this.newest - this.seconds * (1 - share);
    const near = this.samples.reduce((a, b) => (a && Math.abs(a.at - at) <= Math.abs(b.at - at) ? a : b), undefined);
    if (!near) return;
    this.cursor.setAttribute("x1", this.x(near));
    this.cursor.setAttribute("x2", this.x(near));
    this.cursor.setAttribute("visibility", "visible");
    this.tell(near, `${Math.round(this.newest - near.at)} s ago`);
  }

  leave() {
    this.pointed = undefined;
    this.cursor.setAttribute("visibility", "hidden");
    this.tell(this.samples.at(-1), "now");
  }
}
