// The live page: hears what the daemon tells, and draws it. It sends nothing and keeps nothing.
//
// - No connection while nobody can see the page: the daemon looks for nobody then.
// - What was drawn last stays, paler, while the daemon does not answer; when it does, it goes on.

import { showHistory, showMemory, showSteps } from "./charts.js";
import { showStreams } from "./streams.js";
import * as tree from "./tree.js";
import { at, bytes, count, make, many, percent, rate, rows, say, time } from "./words.js";

const LOST_S = 5;
const AGAIN_MS = 2000;
const BUSY_S = 5;
const LINKS = {
  connecting: "connecting", live: "live", loading: "loading", ending: "draining",
  lost: "reconnecting", full: "too many viewers",
};

let source = null;
let columns = {};
let periodS = 1;
let streamsMost = Infinity;
let history = [];
let told = null; // the newest `now`
let seen = null; // of the newest `tree`: how many nodes were looked at, and how many there are
let heardAt = null;
let again = 0;

function connect() {
  clearTimeout(again);
  source?.close();
  source = new EventSource("/page/events");
  source.addEventListener("hello", (event) => greeted(JSON.parse(event.data)));
  source.addEventListener("now", (event) => showNow(JSON.parse(event.data)));
  source.addEventListener("tree", (event) => showTree(JSON.parse(event.data)));
  source.addEventListener("full", () => link("full", "As many people look at this page as may. It tries again every few seconds."));
  source.addEventListener("error", () => {
    if (document.body.dataset.link !== "full") lost();
    if (source.readyState === EventSource.CLOSED) again = setTimeout(connect, AGAIN_MS);
  });
}

function link(state, banner = "", said = LINKS[state]) {
  document.body.dataset.link = state;
  say("link", said);
  say("banner", banner);
  at("banner").hidden = !banner;
}

function lost() {
  const when = heardAt === null ? "" : ` What is shown is from ${heardAt.toLocaleTimeString()}.`;
  link("lost", `The daemon does not answer.${when} Trying again.`);
}

function greeted(hello) {
  columns = hello.columns;
  periodS = hello.period_s;
  streamsMost = hello.streams_max;
  const points = rows(columns.history, hello.history);
  // Of a daemon before this one the page still knows; its clock is the machine's.
  const first = points[0]?.at ?? Infinity;
  history = history.filter((point) => point.at < first).concat(points);
  say("version", `Sapwood ${hello.version}`);
  if (hello.model) showModel(hello.model);
}

function showModel(model) {
  const parts = [model.quantization.split(";")[0], model.device, `${count(model.context)} tokens of context`];
  const said = model.drafter ? `drafted by ${model.drafter}` : "no drafter";
  at("model").replaceChildren(make("b", "", model.name), ` ${[said, ...parts].filter(Boolean).join(" · ")}`);
}

function showNow(now) {
  const wasLoading = told?.state === "loading" || told === null;
  heardAt = new Date();
  told = now;
  if (now.state === "loading") return link("loading", "The model is being loaded.");
  if (now.state === "ending") link("ending", "The daemon drains: what runs may finish, nothing new begins.");
  else if (now.quiet_s > BUSY_S) link("busy", "", `in one step for ${time(now.quiet_s)}`);
  else link("live");
  if (wasLoading && at("model").firstChild?.nodeName !== "B") connect(); // the model's name is in the greeting
  if (!now.counts) return undefined;
  if (now.point && now.at > (history.at(-1)?.at ?? -1)) {
    history = [...history, ...rows(columns.history, [now.point])].slice(-1200);
  }
  showFigures(now);
  showAll();
  return undefined;
}

function showAll() {
  showStreams(rows(columns.streams, told.streams), told.counts, streamsMost);
  showHistory(history, periodS);
  showSteps(rows(columns.steps, told.steps));
  showMemory(told.memory);
  tree.sayTotals(told.tree, seen);
}

function showTree(sketch) {
  seen = { seen: sketch.seen, total: sketch.total };
  tree.showTree(rows(columns.nodes, sketch.nodes), told.tree);
}

function showFigures({ rates, counts, memory, uptime_s: uptimeS }) {
  const free = memory.kinds.find(([kind]) => kind === "free")[1];
  figure("f-tokens", rate(rates.tokens_s));
  say("f-prompt", `${rate(rates.prompt_s)} prompt tokens a second`);
  figure("f-cached", percent(rates.cached));
  figure("f-accepted", percent(rates.accepted));
  say("f-depth", rates.depth == null ? "nothing drafted" : `${rates.depth.toFixed(1)} drafted in a round`);
  figure("f-running", count(counts.running));
  say("f-waiting", counts.waiting || counts.parked ? `${count(counts.waiting)} waiting, ${count(counts.parked)} parked` : "running, none waiting");
  figure("f-free", bytes(free));
  say("f-budget", `of ${bytes(memory.budget)}`);
  say("uptime", `up ${time(uptimeS)}`);
  document.title = counts.running ? `${rate(rates.tokens_s)} tokens/s · Sapwood` : "Sapwood";
}

// A number, and its unit smaller.
function figure(id, text) {
  const [value, unit] = text.split(" ");
  const element = at(id);
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(value);
  if (unit) element.append(make("span", "", unit));
}

function watch() {
  const sinceS = heardAt === null ? 0 : (new Date() - heardAt) / 1000;
  if (sinceS > LOST_S && source?.readyState !== EventSource.CLOSED && document.body.dataset.link !== "full") lost();
  if (sinceS > 4 * LOST_S && source !== null) { heardAt = new Date(new Date() - LOST_S * 1000); connect(); }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) { source?.close(); source = null; clearTimeout(again); } else connect();
});
let wide = 0;
new ResizeObserver(([{ contentRect }]) => {
  if (contentRect.width === wide) return;
  wide = contentRect.width;
  if (told?.counts) { showAll(); tree.draw(); }
}).observe(document.querySelector("main"));
tree.listen();
setInterval(watch, 1000);
connect();
