// The cluster: workers, queues, and which searcher holds which shard.
import { api, h, n, table } from "./base.js";

export async function cluster(root, at, signal) {
  const body = h("div");
  root.append(h("h1", {}, "Cluster"), body);
  async function draw() {
    const { status, sightings } = await api("/v1/status", { signal });
    body.replaceChildren(...parts(status, sightings));
  }
  await draw();
  const timer = setInterval(() => draw().catch(() => {}), 3000);
  signal.addEventListener("abort", () => clearInterval(timer));
}

function parts(status, sightings) {
  const ago = (worker) => { const s = sightings.find((x) => x.worker === worker); return s ? `${(s.ago_ms / 1000).toFixed(0)} s ago` : ""; };
  const out = [h("p", { class: "soft" }, `coordinator ${status.leader} leads; ${n(status.open_jobs)} jobs open`),
    h("h2", {}, "Workers"), status.workers.length ? table(["worker", "roles", "device", "host", "version", "seen", "task"], status.workers.map((w) => [h("span", { class: "mono" }, w.worker), [...w.roles, ...(w.searches ? ["search"] : [])].join(", "), w.device, w.host, w.version, ago(w.worker), w.draining ? "draining" : w.task || ""]), "Workers") : h("p", {}, "none")];
  const gone = sightings.filter((x) => !x.live);
  if (gone.length) out.push(h("p", { class: "notice" }, "Gone in the last hour: ", gone.map((x) => x.worker).join(", ")));
  out.push(h("h2", {}, "Queues"), status.queues.length ? table(["kind", "device", "priority", { num: "waiting" }, { num: "running" }], status.queues.map((q) => [q.kind, q.device, q.priority, { num: n(q.waiting) }, { num: n(q.running) }]), "Queues") : h("p", { class: "soft" }, "No tasks are queued."));
  out.push(h("h2", {}, "Shards"));
  const generations = new Map();
  for (const p of status.placement) for (const held of p.held) {
    const name = `${held.generation.gallery}/${held.generation.generation}`;
    if (!generations.has(name)) generations.set(name, []);
    generations.get(name).push({ worker: p.worker, ...held });
  }
  if (!generations.size) out.push(h("p", { class: "soft" }, "No searcher holds a shard."));
  for (const [name, holders] of generations) {
    const shards = [...new Set(holders.flatMap((x) => x.shards))].sort((a, b) => a - b);
    const count = (shard) => holders.filter((x) => x.shards.includes(shard)).length;
    out.push(h("div", { class: "card" }, h("h3", { class: "mono" }, name), table(["searcher", ...shards.slice(0, 64).map(String), "model"], [
      ...holders.map((x) => [h("span", { class: "mono" }, x.worker), ...shards.slice(0, 64).map((s) => (x.shards.includes(s) ? h("span", { class: "tag good" }, "●", h("span", { class: "out" }, "held")) : "")), x.model_ready ? "ready" : "loading"]),
      [h("strong", {}, "replicas"), ...shards.slice(0, 64).map((s) => h("span", { class: count(s) < 2 && status.placement.length > 1 ? "tag warn" : "" }, String(count(s)))), ""]], `Who holds the shards of ${name}`)));
  }
  for (const p of status.placement) for (const t of p.troubles) out.push(h("p", { class: "notice bad" }, `${p.worker}: ${t}`));
  return out;
}
