// Reports with their own page of plots, and models with their training curves.
import { api, e, f, h, n, plot, table } from "./base.js";

export async function reports(root, at, signal) {
  const all = await api("/v1/reports", { signal });
  root.append(h("h1", {}, "Reports"));
  root.append(all.length ? table(["report", "generation", { num: "images" }, { num: "mAP singles" }, { num: "pairs" }, { num: "triples" }], all.map((r) => [
    h("a", { class: "mono", href: `#/reports/${e(r.report)}` }, r.report), h("span", { class: "mono" }, `${r.generation.gallery}/${r.generation.generation}`), { num: n(r.items) },
    ...["singles", "pairs", "triples"].map((s) => ({ num: f(r.headline.find((row) => row.set === s)?.map) }))]), "Reports") : h("p", {}, "No reports yet."));
}

export async function report(root, at, signal) {
  const id = at.path[1], r = await api(`/v1/reports/${e(id)}`, { signal }), page = `/v1/reports/${e(id)}/page`;
  root.append(h("p", { class: "small" }, h("a", { href: "#/reports" }, "All reports")), h("h1", { class: "mono" }, id),
    h("div", { class: "card" }, table(["queries", { num: "number" }, { num: "mAP" }, { num: "chance" }, { num: "P@1" }, { num: "P@5" }, { num: "P@10" }, { num: "P@100" }], r.headline.map((row) => [row.set, { num: n(row.queries) }, { num: f(row.map) }, { num: f(row.chance) }, ...row.p_at.map((p) => ({ num: f(p) }))]), "Headline"),
      h("p", { class: "row" }, h("a", { class: "button", href: page, target: "_blank", rel: "noopener" }, "Open the page by itself"), h("a", { class: "button", href: `/v1/reports/${e(id)}/figures` }, "All figures (JSON)"), h("a", { class: "button", href: `#/models/${e(r.model)}` }, "Model"))),
    h("iframe", { src: page, title: `Plots of report ${id}`, sandbox: "" }));
}

export async function models(root, at, signal) {
  const all = await api("/v1/models", { signal });
  root.append(h("h1", {}, "Models"), all.length ? table(["model", "architecture", { num: "D" }, { num: "px" }, "dataset", { num: "steps" }, { num: "loss" }, { num: "mAP" }, "serves"], all.map(({ model: m, serves }) => [
    h("a", { class: "mono", href: `#/models/${e(m.model)}` }, m.model), m.settings.architecture, { num: m.settings.embedding_dim }, { num: m.settings.preprocessing.input_px }, m.dataset.dataset, { num: n(m.steps) }, { num: f(m.validation_loss, 4) }, { num: f(m.validation_map, 4) }, serves.join(", ")]), "Models") : h("p", {}, "No models yet."));
}

export async function model(root, at, signal) {
  const id = at.path[1], path = `/v1/models/${e(id)}`;
  const [m, { phases }] = await Promise.all([api(path, { signal }), api(`${path}/training`, { signal })]);
  const names = Object.keys(phases), of = (column, label) => names.filter((p) => phases[p][column]).map((p) => ({ name: label || p, x: phases[p].step, y: phases[p][column] }));
  const train = phases.train || phases[names[0]] || { step: [] };
  const shares = ["easy", "semi_hard", "hard", "correct"].filter((c) => train[c]).map((c) => ({ name: c.replace("_", "-"), x: train.step, y: train[c] }));
  const distances = ["dp_mean", "dn_mean"].filter((c) => train[c]).map((c) => ({ name: c === "dp_mean" ? "to the positive" : "to the negative", x: train.step, y: train[c] }));
  root.append(h("p", { class: "small" }, h("a", { href: "#/models" }, "All models")), h("h1", { class: "mono" }, id),
    h("p", { class: "soft" }, `${m.settings.architecture}, ${m.settings.embedding_dim} dimensions, ${n(m.steps)} steps on ${m.dataset.dataset}; validation loss ${f(m.validation_loss, 4)}, mAP ${f(m.validation_map, 4)}`),
    h("div", { class: "two" }, plot("Loss", of("loss"), { from: 0 }), plot("Shares of triplets", shares, { from: 0 }), plot("Mean distances", distances, { from: 0 }), plot("Learning rate", [{ name: "lr", x: train.step, y: train.lr || [] }], { from: 0 }), histogram(train)),
    h("details", {}, h("summary", {}, "Description of the model"), h("pre", { tabindex: "0" }, JSON.stringify(m, null, 2))));
}

/** Distances at the last step: 20 bins over 0–2. */
function histogram(train) {
  const last = (c) => train[c]?.at(-1), [p, q] = [last("dp_histogram"), last("dn_histogram")];
  if (!p || !q) return "";
  const x = p.map((_, i) => i * 0.1 + 0.05);
  const figure = plot("Distances at the last step, counts by distance 0–2", [{ name: "to the positive", x, y: p }, { name: "to the negative", x, y: q }], { from: 0 });
  figure.querySelectorAll("text").forEach((t) => { if (t.textContent.startsWith("step ")) t.textContent = "distance 2"; else if (t.textContent === "0.05") t.textContent = "0"; });
  return figure;
}
