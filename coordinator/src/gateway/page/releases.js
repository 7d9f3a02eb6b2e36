// Releases: what served when; promote and roll back behind a question; two beside each other.
import { api, e, f, failed, h, link, n, sure, table, tag, toast, when } from "./base.js";

export async function releases(root, at, signal) {
  const all = await api("/v1/releases", { signal });
  root.append(h("h1", {}, "Releases"));
  if (!all.length) { root.append(h("p", {}, "No releases yet.")); return; }
  const aliases = [...new Set(all.map((r) => r.alias))];
  const act = async (title, text, word, path, json) => {
    if (!(await sure(title, text, word))) return;
    toast("Waiting until the searchers have loaded it …");
    try { await api(path, { json }); toast("It serves now."); root.replaceChildren(); await releases(root, at, signal); } catch (error) { root.append(failed(error)); }
  };
  for (const alias of aliases) {
    const own = all.filter((r) => r.alias === alias), newest = own.at(-1);
    const shown = own.toReversed().map((r) => [
      h("strong", {}, String(r.number)), r === newest ? tag("done") && h("span", { class: "tag good" }, "serves") : "", when(r.created_ms), h("a", { class: "mono", href: `#/models/${e(r.model)}` }, r.model), h("span", { class: "mono" }, `${r.generation.gallery}/${r.generation.generation}`),
      r.gate ? `mAP ${f(r.gate.candidate_map)} (${r.gate.difference >= 0 ? "+" : ""}${f(r.gate.difference)})` : r.rolls_back_to ? `brings ${r.rolls_back_to} back` : "by hand",
      r.report ? h("a", { href: `#/reports/${e(r.report)}` }, "report") : "",
      r === newest ? "" : h("span", { class: "row" },
        h("button", { "aria-label": `Roll back ${alias} to ${r.number}`, onclick: () => act(`Roll ${alias} back to release ${r.number}?`, `It becomes the newest release; ${newest.number} stays in the list.`, "Roll back", `/v1/releases/${e(alias)}/rollback`, { to: r.number }) }, "Roll back"),
        r.report && newest.report ? h("a", { class: "button", href: link("/releases/compare", { a: `${alias}@${r.number}`, b: `${alias}@${newest.number}` }) }, "Compare") : null)]);
    const others = aliases.filter((a) => a !== alias);
    root.append(h("section", { class: "card" }, h("div", { class: "row" }, h("h2", {}, alias), h("a", { class: "button", href: link("/search", { alias }) }, "Search it"),
      others.map((a) => h("button", { onclick: () => act(`Promote ${alias} to ${a}?`, `Release ${newest.number} of ${alias} will serve as ${a}, without a gate.`, "Promote", `/v1/releases/${e(a)}/promote`, { generation: newest.generation, report: newest.report }) }, `Promote to ${a}`))),
      table(["release", "", "made", "model", "generation", "gate", "", ""], shown, `Releases of ${alias}`), newest.warnings.map((w) => h("p", { class: "notice" }, w))));
  }
}

export async function compareReleases(root, at, signal) {
  const [a, b] = [at.query.get("a"), at.query.get("b")];
  const { comparison: c } = await api(`/v1/releases/compare?a=${e(a)}&b=${e(b)}`, { signal });
  root.append(h("p", { class: "small" }, h("a", { href: "#/releases" }, "All releases")), h("h1", {}, `${b} against ${a}`), comparison(c));
}

export function comparison(c) {
  const sign = (v) => `${v >= 0 ? "+" : ""}${f(v)}`;
  const groups = table(["queries", { num: "number" }, { num: "better" }, { num: "worse" }, "figure", { num: "a" }, { num: "b" }, { num: "b − a" }, { num: "95 % interval" }],
    c.groups.flatMap((g) => g.metrics.map((m, i) => [i ? "" : g.group, { num: i ? "" : n(g.queries) }, { num: i ? "" : n(g.better) }, { num: i ? "" : n(g.worse) }, m.metric, { num: f(m.a) }, { num: f(m.b) }, { num: sign(m.difference.mean) }, { num: m.difference.interval.map(sign).join(" … ") }])), "Means of both");
  const moved = [...c.queries].sort((x, y) => Math.abs(y.b - y.a) - Math.abs(x.b - x.a)).slice(0, 20);
  return h("div", {}, h("div", { class: "card" }, groups), h("h2", {}, "Queries that moved most"),
    h("div", { class: "card" }, table(["query", "set", { num: "relevant" }, { num: "AP a" }, { num: "AP b" }, { num: "b − a" }], moved.map((q) => [q.text, q.set, { num: n(q.relevant) }, { num: f(q.a) }, { num: f(q.b) }, { num: sign(q.b - q.a) }]), "Queries that moved most")));
}
