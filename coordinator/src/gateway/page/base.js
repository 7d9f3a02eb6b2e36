// What all parts of the page share: elements, the API, the address.

/** Makes an element: `h("a", {href}, "text", child)`. Text is never read as HTML. */
export function h(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
    else if (value === true) e.setAttribute(name, "");
    else e.setAttribute(name, value);
  }
  e.append(...children.flat(9).filter((c) => c !== null && c !== undefined && c !== false));
  return e;
}

export const s = (tag, attributes = {}, ...children) => {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
};

/** A problem that the gateway answered with. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `status ${status}`);
    this.status = status;
    this.nearest = body.nearest || [];
  }
}

export async function api(path, options = {}) {
  const init = { ...options, headers: { ...(options.headers || {}) } };
  if (init.json !== undefined) {
    init.method ||= "POST";
    init.body = JSON.stringify(init.json);
    init.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The gateway does not answer." });
  }
  const text = await response.text();
  let body = {};
  try { body = text ? JSON.parse(text) : {}; } catch { body = { detail: text.slice(0, 200) }; }
  if (!response.ok) throw new Problem(response.status, body);
  return body;
}

/** Server-sent events over fetch, so that the end is seen; `on(name, data)`. */
export async function follow(path, on, signal) {
  const response = await fetch(path, { signal });
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let at; (at = rest.indexOf("\n\n")) >= 0; rest = rest.slice(at + 2)) {
      const lines = rest.slice(0, at).split("\n");
      const field = (name) => lines.filter((l) => l.startsWith(name + ":")).map((l) => l.slice(name.length + 1).trim()).join("\n");
      if (field("event")) on(field("event"), JSON.parse(field("data") || "{}"));
    }
  }
}

export const when = (ms) => (ms ? new Date(ms).toLocaleString() : "–");
export const n = (value) => Number(value).toLocaleString();
export const f = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value).toFixed(digits));
export const e = encodeURIComponent;

export function table(heads, rows, caption) {
  const cell = (tag, c) => (c && c.num !== undefined ? h(tag, { class: "n" }, String(c.num)) : h(tag, {}, c ?? ""));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "out" }, caption),
      h("thead", {}, h("tr", {}, heads.map((c) => { const th = cell("th", c); th.scope = "col"; return th; }))),
      h("tbody", {}, rows.map((r) => h("tr", {}, r.map((c) => cell("td", c)))))));
}

export function toast(text) {
  const t = document.getElementById("toast");
  t.textContent = text;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (t.textContent = ""), 6000);
}

export function failed(error) {
  return h("div", { class: "notice bad", role: "alert" }, error.message,
    error.nearest?.length ? ` Did you mean ${error.nearest.join(" or ")}?` : "");
}

/** Asks before something is changed. */
export function sure(title, text, word) {
  return new Promise((answer) => {
    const close = (value) => { d.close(); d.remove(); answer(value); };
    const d = h("dialog", { "aria-label": title, oncancel: () => close(false) }, h("h2", {}, title), h("p", {}, text),
      h("div", { class: "row" }, h("button", { class: "main", onclick: () => close(true) }, word), h("button", { onclick: () => close(false) }, "No")));
    document.body.append(d);
    d.showModal();
  });
}

/** `#/path?a=b`: the state that a link carries. */
export function address() {
  const [path, query] = location.hash.slice(1).split("?");
  return { path: (path || "/search").split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query || "") };
}

export function link(path, query) {
  const text = new URLSearchParams(Object.entries(query).flatMap(([k, v]) => (Array.isArray(v) ? v : [v]).filter((x) => x !== "" && x !== null && x !== undefined).map((x) => [k, x]))).toString();
  return `#${path}${text ? "?" + text : ""}`;
}

export const tag = (state) => h("span", { class: "tag " + ({ done: "good", failed: "bad", refused: "bad", cancelled: "warn", running: "warn" }[state] || "") }, state);

/** Lines over steps; each series: {name, x, y}. */
export function plot(title, series, { from = null } = {}) {
  const W = 560, H = 220, L = 52, B = 26, T = 10, R = 8;
  const xs = series.flatMap((l) => l.x), ys = series.flatMap((l) => l.y).filter((y) => Number.isFinite(y));
  if (!xs.length || !ys.length) return h("p", { class: "soft" }, `${title}: no figures`);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)], y0 = from ?? Math.min(...ys), y1 = Math.max(...ys, y0 + 1e-9);
  const X = (x) => L + ((x - x0) / (x1 - x0 || 1)) * (W - L - R), Y = (y) => H - B - ((y - y0) / (y1 - y0)) * (H - B - T);
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "plot", role: "img", "aria-label": title });
  for (let i = 0; i <= 4; i++) {
    const y = y0 + ((y1 - y0) * i) / 4;
    svg.append(s("line", { class: "axis", x1: L, x2: W - R, y1: Y(y), y2: Y(y) }), s("text", { x: L - 6, y: Y(y) + 4, "text-anchor": "end" }, y.toPrecision(3)));
  }
  svg.append(s("text", { x: L, y: H - 6 }, n(x0)), s("text", { x: W - R, y: H - 6, "text-anchor": "end" }, `step ${n(x1)}`));
  series.forEach((l, i) => svg.append(s("polyline", { class: `s${i % 4}`, points: l.x.map((x, j) => (Number.isFinite(l.y[j]) ? `${X(x).toFixed(1)},${Y(l.y[j]).toFixed(1)}` : "")).join(" ") })));
  return h("figure", { class: "card" }, h("figcaption", {}, h("strong", {}, title), " ", series.map((l, i) => h("span", { class: "small" }, h("span", { class: `k${i % 4}`, "aria-hidden": "true" }, " ▬ "), l.name))), svg);
}
