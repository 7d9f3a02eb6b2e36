// Search: chips, an image, an item; what was asked stands in the address.
import { address, api, e, f, failed, h, link, n, toast } from "./base.js";

// An image that was dropped is no part of the address.
let dropped = null;

const state = (query) => ({
  alias: query.get("alias") || "", with: query.getAll("with"), without: query.getAll("without"), like: query.get("like") || "",
  only: query.get("only") === "1", k: Number(query.get("k")) || 24, beside: query.get("beside") || "", weight: query.get("weight") || "",
});
const again = () => dispatchEvent(new HashChangeEvent("hashchange"));
const go = (next) => {
  const to = link("/search", { ...next, only: next.only ? "1" : "", k: next.k === 24 ? "" : next.k });
  if (location.hash === to) again();
  else location.hash = to;
};

function question(now, alias) {
  const terms = [], chips = now.with.length + now.without.length > 0, base = now.like || dropped;
  const weight = Number(now.weight) || (base ? 0.5 : 1);
  if (now.like) terms.push({ weight: 1, term: { item: { item: now.like } } });
  if (dropped) terms.push({ weight: 1, term: { image: { bytes: dropped.base64 } } });
  const attributes = { with: now.with, without: now.without };
  if (chips && !now.only) terms.push({ weight, term: { attributes } });
  const request = { alias, terms, k: now.k, paged: true, deadline_ms: 10000 };
  if (now.only && chips) { request.filter = attributes; if (!terms.length) terms.push({ weight: 1, term: { attributes } }); }
  if (terms.some((t) => t.term.attributes)) request.explain = true;
  return terms.length ? request : null;
}

export async function search(root, at, signal) {
  const now = state(at.query);
  const all = [...new Set((await api("/v1/releases", { signal })).map((r) => r.alias))];
  if (!all.length) {
    root.append(h("h1", {}, "Search"), h("p", {}, "Nothing is served yet: ", h("span", { class: "mono" }, "likeness pipeline"), " makes a release."));
    return;
  }
  const alias = now.alias || (all.includes("main") ? "main" : all[0]);
  const vocabulary = await api(`/v1/aliases/${e(alias)}/vocabulary`, { signal });
  const found = h("section", { "aria-label": "Results", "aria-live": "polite" });
  root.append(h("h1", {}, "Search"), form(now, alias, all, vocabulary), found);
  const aliases = now.beside ? [alias, now.beside] : [alias];
  if (aliases.length > 1) found.className = "two";
  if (!question(now, alias)) {
    found.append(h("p", { class: "soft" }, `Choose what the image shows, or drop one. ${n(vocabulary.rows)} images, release ${vocabulary.release}.`));
    return;
  }
  await Promise.all(aliases.map(async (one) => {
    const column = h("div");
    found.append(column);
    if (aliases.length > 1) column.append(h("h2", {}, one));
    await answers(column, question(now, one), now, signal);
  }));
}

function form(now, alias, all, vocabulary) {
  const chosen = (name) => (now.with.includes(name) ? 1 : now.without.includes(name) ? -1 : 0);
  const chip = (name) => {
    const v = chosen(name), word = { 1: "has", "-1": "has not", 0: "not said" }[v];
    const next = v === 1 ? -1 : v === -1 ? 0 : 1;
    return h("button", { type: "button", class: "chip", "data-v": v, "data-name": name, "aria-label": `${name}: ${word}`, onclick: () => {
      sessionStorage.chip = name;
      const without = (list) => list.filter((x) => x !== name);
      go({ ...now, with: next === 1 ? [...without(now.with), name] : without(now.with), without: next === -1 ? [...without(now.without), name] : without(now.without) });
    } }, v === 1 ? "+ " : v === -1 ? "− " : "", name.replaceAll("_", " "));
  };
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Attributes: press once for has, twice for has not" }, vocabulary.attributes.map(chip));
  const narrow = h("input", { type: "search", placeholder: "find an attribute", "aria-label": "Find an attribute", oninput: () => {
    const wanted = narrow.value.toLowerCase();
    for (const c of chips.children) c.hidden = !c.textContent.toLowerCase().includes(wanted);
  } });
  queueMicrotask(() => { if (sessionStorage.chip) { chips.querySelector(`[data-name="${CSS.escape(sessionStorage.chip)}"]`)?.focus({ preventScroll: true }); delete sessionStorage.chip; } });
  const pick = h("select", { onchange: () => go({ ...now, alias: pick.value }) }, all.map((a) => h("option", { value: a, selected: a === alias }, a)));
  const beside = h("select", { onchange: () => go({ ...now, beside: beside.value }) }, h("option", { value: "" }, "nothing"), all.filter((a) => a !== alias).map((a) => h("option", { value: a, selected: a === now.beside }, a)));
  const count = h("select", { onchange: () => go({ ...now, k: Number(count.value) }) }, [12, 24, 48, 96].map((k) => h("option", { value: k, selected: k === now.k }, k)));
  const only = h("input", { type: "checkbox", checked: now.only, onchange: () => go({ ...now, only: only.checked }) });
  const weight = h("input", { type: "range", min: "0.1", max: "2", step: "0.1", value: now.weight || "0.5", onchange: () => go({ ...now, weight: weight.value }) });
  return h("div", { class: "card" },
    h("div", { class: "row" }, h("label", { class: "field" }, "Alias", pick), h("label", { class: "field" }, "Beside it", beside), h("label", { class: "field" }, "Results a page", count), narrow,
      h("button", { class: "end", type: "button", onclick: () => { dropped = null; go({ alias: now.alias, with: [], without: [], like: "", only: false, k: now.k, beside: now.beside }); } }, "Clear")),
    h("h2", {}, "What it shows"), chips,
    h("label", { class: "row small" }, only, "only images whose stored labels are so"),
    (now.like || dropped) && now.with.length + now.without.length > 0 && !now.only ? h("label", { class: "row small" }, "weight of the attributes beside the image", weight) : null,
    vocabulary.embeds ? drop(() => go({ ...state(address().query), like: "" })) : null,
    now.like ? h("p", { class: "row" }, "More like ", h("strong", {}, now.like), now.with.length + now.without.length ? ", but as chosen above" : "; choose attributes for “this, but with…”", h("button", { onclick: () => go({ ...now, like: "" }) }, "Let go")) : null);
}

function drop(search) {
  const take = async (file) => {
    if (!file) return;
    if (file.size > 15e6) return toast("The image is larger than 15 MB.");
    const url = await new Promise((done, no) => { const r = new FileReader(); r.onload = () => done(r.result); r.onerror = no; r.readAsDataURL(file); });
    dropped = { url, name: file.name, base64: url.slice(url.indexOf(",") + 1) };
    search();
  };
  const input = h("input", { type: "file", accept: "image/jpeg,image/png,image/webp", "aria-label": "An image to search with", onchange: () => take(input.files[0]) });
  const zone = h("div", { class: "drop" }, dropped ? h("img", { src: dropped.url, alt: `Searched with: ${dropped.name}` }) : null, h("span", { class: "soft" }, "Drop an image here, or"), input,
    dropped ? h("button", { type: "button", onclick: () => { dropped = null; search(); } }, "Remove the image") : null);
  for (const name of ["dragover", "dragleave", "drop"]) zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.toggle("over", name === "dragover"); if (name === "drop") take(event.dataTransfer.files[0]); });
  return zone;
}

async function answers(column, request, now, signal) {
  const grid = h("ul", { class: "grid" }), more = h("button", { onclick: () => next() }, "More");
  let cursor = null, first = true;
  async function next() {
    more.disabled = true;
    try {
      const asked = cursor ? { alias: request.alias, k: request.k, deadline_ms: request.deadline_ms, cursor } : request;
      const found = await api("/v1/search", { json: asked, signal });
      if (first) column.append(...head(found), grid, h("p", {}, more));
      first = false;
      grid.append(...found.hits.map((hit, i) => show(hit, found, found.explanation?.hits[i], now)));
      cursor = found.next;
      more.hidden = !cursor;
    } catch (error) {
      if (signal.aborted) return;
      column.append(failed(error));
      cursor = null;
    }
    more.disabled = false;
  }
  await next();
}

function head(found) {
  const { coverage } = found, share = coverage.total_rows ? coverage.rows / coverage.total_rows : 1;
  const total = found.timings_ms.find(([stage]) => stage === "total");
  return [
    share < 1 ? h("div", { class: "notice" }, `Only ${(100 * share).toFixed(1)} % of the gallery was searched (${coverage.shards} of ${coverage.total_shards} shards). `, coverage.reasons.join("; ")) : null,
    h("p", { class: "soft small" }, `release ${found.release}, ${n(coverage.rows)} images searched`, total ? ` in ${total[1].toFixed(1)} ms` : "", found.matching !== null ? `; ${n(found.matching)} fit the labels` : ""),
    found.hits.length ? null : h("p", {}, "No image fits."),
  ].filter(Boolean);
}

function show(hit, found, explained, now) {
  const query = new URLSearchParams({ part: hit.image.part, row: hit.image.row });
  const picture = hit.image.part
    ? h("a", { href: `/v1/images/${e(hit.item)}?${query}`, target: "_blank", rel: "noopener" }, h("img", { loading: "lazy", alt: hit.item, src: `/v1/thumbnails/${e(hit.item)}?${query}&size=240` }))
    : h("div", { class: "none" }, "no image");
  const tags = (explained?.attributes || []).map((a, i) => {
    const asked = found.explanation.attributes[i];
    const told = a.label ? "label" : a.estimate !== null ? `estimated ${Math.round(100 * a.estimate)} %` : "not known";
    return h("span", { class: `tag ${a.agrees === true ? "good" : a.agrees === false ? "bad" : ""}`, title: told }, `${a.agrees === true ? "✓" : a.agrees === false ? "✗" : "?"} ${asked.wanted > 0 ? "" : "not "}${asked.name.replaceAll("_", " ")}`);
  });
  return h("li", { class: "hit" }, picture, h("div", { class: "body" },
    h("div", { class: "row" }, h("span", { class: "id grow", title: hit.item }, hit.item), h("span", { class: "soft", title: "distance: smaller is closer" }, f(hit.distance))),
    tags.length ? h("div", { class: "tags" }, explained ? h("span", { class: "tag" }, `${explained.agrees} of ${explained.attributes.length}`) : null, tags) : null,
    h("div", { class: "row" },
      h("button", { "aria-label": `More like this: ${hit.item}`, onclick: () => { dropped = null; go({ ...now, like: hit.item, with: [], without: [] }); } }, "More like this"),
      h("button", { "aria-label": `But with… other attributes: ${hit.item}`, onclick: () => { dropped = null; go({ ...now, like: hit.item }); scrollTo({ top: 0 }); } }, "But with…"))));
}
