// Numbers as people read them, and elements by name. Nothing here keeps anything.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
  let unit = 0;
  let value = count;
  while (value >= 1024 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

export function count(value) {
  return Math.round(value).toLocaleString("en");
}

export function rate(value) {
  return value == null ? "–" : value >= 100 ? count(value) : value.toFixed(1);
}

export function percent(share) {
  return share == null ? "–" : `${Math.round(100 * share)} %`;
}

export function many(number, one, more = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : more}`;
}

export function ms(value) {
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

export function time(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  const rest = Math.floor(seconds % 60);
  if (minutes < 60) return rest ? `${minutes} min ${rest} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function at(id) {
  return document.getElementById(id);
}

export function say(id, text) {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
}

export function make(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function shape(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

// Pairs of a term and what is said of it. `key`: class of a swatch before the term.
export function terms(id, pairs) {
  at(id).replaceChildren(...pairs.map(([term, said, key]) => {
    const pair = make("div");
    const name = make("dt");
    if (key) name.append(make("i", `key ${key}`));
    name.append(term);
    const value = make("dd");
    value.append(...[said].flat());
    pair.append(name, value);
    return pair;
  }));
}

// Rows of lists as objects, by the names of their columns.
export function rows(columns, lists) {
  return lists.map((list) => Object.fromEntries(columns.map((name, place) => [name, list[place]])));
}
