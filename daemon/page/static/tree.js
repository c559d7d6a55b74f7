// The prefix tree as an icicle: a node is as wide as all that is stored in it and below it, and lies
// under the node that it goes on from. Siblings keep their order, so that nothing jumps.

import { at, bytes, count, make, many, say, terms } from "./words.js";

const ROW = 28;
const SLIM_PX = 40;
const SHORT_PX = 92;
const GONE_PX = 1.2;

let nodes = new Map(); // by id: what was told, with place, children and parent
let tops = [];
let unseen = 0; // bytes that were not looked at
let focus = null; // id of the node that is as wide as the page
let chosen = null; // id of the node that the keyboard is at
let drawn = new Map(); // by id: its element

export function showTree(told, total) {
  nodes = new Map(told.map((node) => [node.id, { ...node, kids: [] }]));
  const roots = [];
  for (const node of nodes.values()) {
    if (node.parent === null) roots.push(node);
    else nodes.get(node.parent).kids.push(node);
  }
  const seen = roots.reduce((sum, root) => sum + root.below, 0);
  unseen = Math.max(0, total.full + total.sliding - seen);
  const alone = roots.length === 1;
  tops = alone ? roots[0].kids : roots;
  if (alone) for (const node of tops) node.parent = null;
  unseen += alone ? roots[0].below - sum(tops) : 0;
  let place = 0;
  for (const node of tops) { lay(node, place, 0); place += node.below; }
  if (!nodes.has(focus)) focus = null;
  if (!nodes.has(chosen) || (alone && chosen === roots[0].id)) chosen = null;
  at("tree").hidden = !tops.length;
  at("node").hidden = at("tree-foot").hidden = !tops.length;
  at("tree-empty").hidden = tops.length > 0;
  draw();
}

function sum(some) {
  return some.reduce((total, node) => total + node.below, 0);
}

function lay(node, place, level) {
  node.x = place;
  node.level = level;
  for (const kid of node.kids) { lay(kid, place, level + 1); place += kid.below; }
  node.rest = Math.max(0, node.below - node.full - node.sliding - sum(node.kids));
  node.restAt = place;
}

function view() {
  const whole = { x: 0, below: sum(tops) + unseen || 1 };
  return focus === null ? whole : nodes.get(focus);
}

export function draw() {
  const box = at("tree");
  if (box.hidden) return;
  const { x, below } = view();
  const px = box.clientWidth;
  const still = new Map();
  let levels = 1;
  const put = (key, from, size, level) => {
    const left = Math.max(from, x);
    const width = Math.min(from + size, x + below) - left;
    if (width <= 0 || (width / below) * px < GONE_PX) return null;
    const element = drawn.get(key) ?? make("div");
    element.style.left = `${(100 * (left - x)) / below}%`;
    element.style.width = `calc(${(100 * width) / below}% - 1px)`;
    element.style.top = `${ROW * level}px`;
    still.set(key, element);
    levels = Math.max(levels, level + 1);
    const shown = (width / below) * px;
    return { element, slim: shown < SLIM_PX, short: shown < SHORT_PX };
  };
  const visit = (node) => {
    const placed = put(node.id, node.x, node.below, node.level);
    if (placed === null) return;
    dress(placed.element, node, placed);
    node.kids.forEach(visit);
    dressRest(put(`rest ${node.id}`, node.restAt, node.rest, node.level + 1), node.hidden);
  };
  tops.forEach(visit);
  dressRest(put("rest", sum(tops), unseen, 0), null);
  for (const [key, element] of drawn) if (!still.has(key)) element.remove();
  drawn = still;
  order(box);
  box.style.height = `${ROW * levels}px`;
  trail();
  tell(chosen);
}

// In the order of the tree, for who hears the page; what stands where it should is left alone.
function order(box) {
  let next = box.firstElementChild;
  for (const element of drawn.values()) {
    if (element === next) next = next.nextElementSibling;
    else box.insertBefore(element, next);
  }
  const first = drawn.get(chosen) ?? box.querySelector("[role=treeitem]");
  for (const element of drawn.values()) if (element.role === "treeitem") element.tabIndex = -1;
  if (first) first.tabIndex = 0;
}

function dress(element, node, { slim, short }) {
  const age = node.age < 100 ? 1 : node.age < 1000 ? 2 : node.age < 10000 ? 3 : 4;
  const kinds = [
    node.end === 0 ? "root" : node.leases ? "used" : `age${age}`,
    node.pinned && "pin", node.sliding > 0 && "window", node.disk > 0 && "disk", slim && "slim",
    node.id === chosen && "chosen",
  ];
  element.className = kinds.filter(Boolean).join(" ");
  const tokens = node.end - node.start;
  const label = node.end === 0 ? "one tenant" : short ? count(tokens) : many(tokens, "token");
  const said = `${label} ${short ? 0 : node.leases}`;
  if (element.dataset.id !== String(node.id) || element.dataset.said !== said) {
    element.dataset.id = node.id;
    element.dataset.said = said;
    element.replaceChildren(label);
    if (node.leases > 1 && !short) element.append(make("b", "by", `×${node.leases}`));
  }
  element.role = "treeitem";
  element.ariaLevel = node.level + 1;
  element.ariaSelected = node.id === chosen;
  element.ariaLabel = spoken(node);
}

function dressRest(placed, hidden) {
  if (placed === null) return;
  placed.element.className = "rest";
  placed.element.ariaHidden = "true";
  placed.element.title = hidden ? `${many(hidden, "branch", "branches")}, not drawn` : "not drawn";
}

function spoken(node) {
  if (node.end === 0) return `one tenant's tree, ${bytes(node.below)}`;
  const said = [`tokens ${node.start} to ${node.end}`, `${bytes(node.below)} from here on`];
  if (node.leases) said.push(`in use by ${many(node.leases, "stream")}`);
  if (node.pinned) said.push("pinned");
  said.push(many(node.kids.length + node.hidden, "branch", "branches"));
  return said.join(", ");
}

function tell(id) {
  const node = nodes.get(id);
  if (!node) {
    terms("node", [["No node", "Point at a part of the tree, or move into it with the keyboard."]]);
    return;
  }
  const own = `${bytes(node.full)} full, ${bytes(node.sliding)} sliding`;
  const pairs = [
    ["Tokens", `[${count(node.start)}, ${count(node.end)})`],
    ["Stored here", node.end === 0 ? "–" : own],
    ["With all below", bytes(node.below)],
    ["On disk", node.disk ? bytes(node.disk) : "–"],
    ["Streams on it", count(node.leases)],
    ["Read in place by", count(node.readers)],
    ["Prompts served", count(node.hits)],
    ["Last used", node.age ? `${many(node.age, "step")} ago` : "now"],
  ];
  if (node.pinned) pairs.push(["Pinned", "yes"]);
  if (node.hidden) pairs.push(["Not drawn below", many(node.hidden, "branch", "branches")]);
  terms("node", pairs);
}

function trail() {
  const box = at("trail");
  box.hidden = focus === null;
  if (box.hidden) { box.replaceChildren(); return; }
  if (box.dataset.of === String(focus) && box.firstChild) return;
  box.dataset.of = focus;
  const back = make("button", "", "Whole tree");
  back.addEventListener("click", () => zoom(null));
  const node = nodes.get(focus);
  box.replaceChildren(back, `tokens [${count(node.start)}, ${count(node.end)}), at depth ${node.level + 1}`);
}

function zoom(id) {
  focus = id === focus ? null : id;
  draw();
  at("tree").scrollTop = 0;
}

function choose(id) {
  if (id === undefined || !drawn.has(id)) return;
  chosen = id;
  draw();
  drawn.get(id).focus();
}

function move(key) {
  const node = nodes.get(chosen) ?? tops[0];
  if (!node) return;
  const parent = nodes.get(node.parent);
  const peers = (parent ? parent.kids : tops).filter((peer) => drawn.has(peer.id));
  const place = peers.indexOf(node);
  const shown = (some) => some.find((kid) => drawn.has(kid.id))?.id;
  const way = {
    ArrowDown: () => shown(node.kids),
    ArrowUp: () => node.parent ?? undefined,
    ArrowLeft: () => peers[place - 1]?.id,
    ArrowRight: () => peers[place + 1]?.id,
    Home: () => shown(tops),
    End: () => shown([...tops].reverse()),
  }[key];
  choose(nodes.has(chosen) ? way() : node.id);
}

function idOf(event) {
  const element = event.target.closest("[data-id]");
  return element ? Number(element.dataset.id) : null;
}

export function listen() {
  const box = at("tree");
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") zoom(chosen);
    else if (event.key === "Escape") zoom(null);
    else if (/^(Arrow|Home|End)/.test(event.key)) move(event.key);
    else return;
    event.preventDefault();
  });
  box.addEventListener("focusin", (event) => {
    const id = idOf(event);
    if (id !== null && id !== chosen) { chosen = id; draw(); }
  });
  box.addEventListener("click", (event) => { const id = idOf(event); if (id !== null) { choose(id); zoom(id); } });
  box.addEventListener("pointerover", (event) => tell(idOf(event) ?? chosen));
  box.addEventListener("pointerleave", () => tell(chosen));
}

export function sayTotals(total, seen) {
  const held = bytes(total.full + total.sliding);
  const said = [many(total.nodes, "node"), held];
  if (total.disk) said.push(`${bytes(total.disk)} on disk`);
  if (total.leased) said.push(`${bytes(total.leased)} in use`);
  if (total.pinned) said.push(`${bytes(total.pinned)} pinned`);
  if (total.evicted) said.push(`${count(total.evicted)} evicted`);
  if (seen && seen.total > seen.seen) said.push(`${count(seen.seen)} looked at`);
  say("tree-total", said.join(" · "));
}
