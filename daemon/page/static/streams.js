// A row for each request under way; a row stays where it is for as long as its request lives.

import { at, count, make, many, percent, rate, say, time } from "./words.js";

const PLAIN = ["slot", "state", "prompt", "progress", "reply", "tokens_s", "depth", "accepted", "age"];
const drawn = new Map();

export function showStreams(streams, counts, most) {
  const said = [`${many(counts.running, "stream")} running`];
  if (counts.waiting) said.push(`${count(counts.waiting)} waiting`);
  if (counts.parked) said.push(`${count(counts.parked)} parked`);
  const all = counts.running + counts.waiting + counts.parked;
  if (all > streams.length && streams.length >= most) said.push(`${streams.length} shown`);
  say("streams-total", all ? said.join(" · ") : "");
  at("streams-box").hidden = at("streams-legend").hidden = !streams.length;
  at("streams-empty").hidden = streams.length > 0;
  const still = new Set(streams.map((stream) => stream.id));
  for (const [id, row] of drawn) if (!still.has(id)) { row.remove(); drawn.delete(id); }
  const body = at("streams");
  let next = body.firstElementChild;
  for (const stream of sorted(streams)) {
    const row = drawn.get(stream.id) ?? begin(stream.id);
    fill(row, stream);
    if (row === next) next = next.nextElementSibling;
    else body.insertBefore(row, next);
  }
}

// Those with a slot by it, then those that wait in their order.
function sorted(streams) {
  return [...streams].sort((a, b) => (a.slot < 0) - (b.slot < 0) || (a.slot < 0 ? 0 : a.slot - b.slot));
}

function begin(id) {
  const row = make("tr");
  for (const name of PLAIN) row.append(make("td", name === "progress" ? "wide" : ""));
  const bar = make("div", "progress");
  for (const part of ["cached", "read", "reply"]) bar.append(make("i", part));
  row.children[3].append(bar);
  drawn.set(id, row);
  return row;
}

function fill(row, stream) {
  const texts = {
    slot: stream.slot < 0 ? "–" : String(stream.slot),
    state: stream.parks && stream.state === "prefill" ? "prefill again" : stream.state,
    prompt: count(stream.prompt),
    reply: count(stream.emitted),
    tokens_s: rate(stream.tokens_s),
    depth: stream.depth == null ? "–" : stream.depth.toFixed(1),
    accepted: percent(stream.accepted),
    age: time(stream.age_s),
  };
  PLAIN.forEach((name, place) => {
    const cell = row.children[place];
    if (name in texts && cell.textContent !== texts[name]) {
      cell.textContent = texts[name];
      cell.classList.toggle("no", texts[name] === "–");
    }
  });
  const parts = [stream.cached, Math.max(0, stream.processed - stream.cached), stream.emitted];
  const bar = row.children[3].firstChild;
  parts.forEach((part, place) => {
    bar.children[place].style.width = `${(100 * part) / stream.tokens_max}%`;
  });
  const read = `${count(stream.processed)} of ${count(stream.prompt)} prompt tokens, ${count(stream.cached)} of them found`;
  bar.title = `${read}; reply of ${count(stream.emitted)}, at most ${count(stream.tokens_max - stream.prompt)}`;
}
