// Pictures of numbers: the history, the newest steps, memory. Drawn anew each time.

import { at, bytes, count, many, make, ms, percent, rate, say, shape, terms, time } from "./words.js";

const HIGH = 92;
const FOOT = 16; // for what is written below
const PHASES = ["draft", "target", "emit", "plan", "commit"];
const LANES = { draft: 0, target: 1, emit: 2, plan: 3, commit: 3 };
const LANE = 36;
const LABELS = ["draft", "target", "emit", "host"];

export function showHistory(points, periodS) {
  if (!points.length) return;
  const last = points.at(-1).at;
  const since = points[0].at - points[0].span_s;
  const spanS = Math.min(600, Math.max(60, last - since));
  const near = points.filter((point) => point.at > last - spanS);
  const most = Math.max(1, ...near.map((point) => point.tokens_s));
  const scale = nice(most);
  const time_ = { last, spanS, periodS };
  chart("chart-tokens", near, (point) => point.tokens_s, scale, count(scale), time_);
  chart("chart-cached", near, (point) => point.cached, 1, "100 %", time_);
  const latest = points.at(-1);
  say("h-tokens", rate(latest.tokens_s));
  say("h-cached", percent(latest.cached));
  const gaps = near.some((point) => point.span_s > 5 * periodS);
  say("history-span", gaps ? "dashed: the mean while nobody looked" : "");
}

function nice(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * unit).find((step) => step >= value);
}

function chart(id, points, valueOf, top, label, { last, spanS, periodS }) {
  const svg = at(id);
  const wide = svg.clientWidth;
  const x = (when) => wide * (1 - (last - when) / spanS);
  const y = (value) => (HIGH - FOOT) * (1 - Math.min(1, value / top) * 0.92);
  const seen = [];
  const unseen = [];
  let way = null; // the line that goes on, or null after a gap
  for (const point of points) {
    const value = valueOf(point);
    if (value == null) { way = null; continue; }
    const from = x(Math.max(point.at - point.span_s, last - spanS)).toFixed(1);
    const to = x(point.at).toFixed(1);
    const high = y(value).toFixed(1);
    if (point.span_s > 5 * periodS) { unseen.push(`M${from} ${high}H${to}`); way = null; continue; }
    if (way === null) { way = { begun: from, path: `M${from} ${high}`, end: to }; seen.push(way); }
    way.path += `L${from} ${high}L${to} ${high}`;
    way.end = to;
  }
  const floor = HIGH - FOOT;
  svg.setAttribute("viewBox", `0 0 ${wide} ${HIGH}`);
  svg.replaceChildren(
    shape("line", { class: "grid", x1: 0, x2: wide, y1: y(top), y2: y(top) }),
    shape("line", { class: "grid", x1: 0, x2: wide, y1: floor, y2: floor }),
    ...seen.map((each) => shape("path", { class: "area", d: `${each.path}V${floor}H${each.begun}Z` })),
    ...seen.map((each) => shape("path", { class: "lineway", d: each.path })),
    ...unseen.map((path) => shape("path", { class: "unseen", d: path })),
    shape("text", { x: 0, y: y(top) + 12 }, label),
    shape("text", { x: 0, y: HIGH - 3 }, `${time(spanS)} ago`),
    shape("text", { x: wide, y: HIGH - 3, "text-anchor": "end" }, "now"),
  );
}

function lasting(step) {
  return step.plan + step.emit + step.draft + step.target + step.commit;
}

// The newest run of steps without a pause, as many as there is room for.
function run(steps, most) {
  const some = steps.slice(-most);
  const typical = some.map(lasting).sort((a, b) => a - b)[some.length >> 1];
  let first = some.length - 1;
  while (first > 0) {
    const before = some[first - 1];
    if (some[first].begun - before.begun - lasting(before) > 2 * typical + 1) break;
    first -= 1;
  }
  return some.slice(first);
}

export function showSteps(steps) {
  const svg = at("steps");
  at("steps-empty").hidden = steps.length > 0;
  svg.toggleAttribute("hidden", !steps.length);
  at("phases").hidden = !steps.length;
  if (!steps.length) return;
  const wide = svg.clientWidth;
  const left = 46;
  const some = run(steps, Math.max(4, Math.floor(wide / 48)));
  const begun = some[0].begun;
  const newest = some.at(-1);
  const lasted = newest.begun + lasting(newest) - begun;
  const x = (when) => left + ((wide - left) * (when - begun)) / lasted;
  const parts = LABELS.map((name, lane) => shape("text", { x: 0, y: LANE * lane + 22 }, name));
  for (let lane = 1; lane <= LABELS.length; lane += 1) {
    parts.push(shape("line", { class: "grid", x1: left, x2: wide, y1: LANE * lane, y2: LANE * lane }));
  }
  for (const step of some) {
    let when = step.begun;
    for (const phase of ["plan", "emit", "draft", "target", "commit"]) {
      const width = x(when + step[phase]) - x(when);
      if (step[phase] > 0) {
        const box = { class: phase, x: x(when).toFixed(1), width: Math.max(1, width - 0.6).toFixed(1) };
        const rect = shape("rect", { ...box, y: LANE * LANES[phase] + 7, height: LANE - 14, rx: 2 });
        rect.append(shape("title", {}, titled(step, phase)));
        parts.push(rect);
      }
      when += step[phase];
    }
  }
  const foot = LANE * LABELS.length + 15;
  parts.push(shape("text", { x: left, y: foot }, "0"), shape("text", { x: wide, y: foot, "text-anchor": "end" }, ms(lasted)));
  svg.setAttribute("viewBox", `0 0 ${wide} 178`);
  svg.replaceChildren(...parts);
  const mean = (phase) => steps.reduce((sum, step) => sum + step[phase], 0) / steps.length;
  terms("phases", PHASES.map((phase) => [phase, ms(mean(phase)), LANES[phase] === 3 ? "host" : phase]));
  const each = ms(PHASES.reduce((sum, phase) => sum + mean(phase), 0));
  say("steps-span", `${each} a step, on average of ${steps.length}`);
  svg.setAttribute("aria-label", `The newest ${some.length} steps as a timeline of ${ms(lasted)}`);
}

function titled(step, phase) {
  const made = [many(step.rows, "stream"), many(step.drafted, "draft")];
  if (step.read) made.push(`${many(step.read, "prompt token")} read`);
  return `step ${step.number}: ${phase} ${ms(step[phase])} of ${ms(lasting(step))}; ${made.join(", ")}`;
}

const KINDS = {
  weights: "weights", live: "live K/V", segments: "shared, read in place", snapshots: "stored prefixes",
  workspace: "a step's workspace", mlx_cache: "kept by MLX", other: "the process", free: "free",
};

export function showMemory({ budget, kinds }) {
  const bar = at("memory");
  if (bar.children.length !== kinds.length) bar.replaceChildren(...kinds.map(() => make("i")));
  kinds.forEach(([kind, size], place) => {
    bar.children[place].className = `m-${kind}`;
    bar.children[place].style.flexGrow = size / budget;
    bar.children[place].title = `${KINDS[kind]}: ${bytes(size)}`;
  });
  terms("memory-kinds", kinds.map(([kind, size]) => {
    const share = make("small", "quiet", percent(size / budget));
    return [KINDS[kind], [`${bytes(size)} `, share], `m-${kind}`];
  }));
  bar.ariaLabel = kinds.map(([kind, size]) => `${KINDS[kind]} ${bytes(size)}`).join(", ");
  const all = kinds.reduce((sum, [, size]) => sum + size, 0);
  say("memory-total", `${bytes(all)} in all, which is the budget`);
}
