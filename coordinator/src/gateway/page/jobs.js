// Jobs: the list, and one with its progress as it happens.
import { api, e, f, failed, follow, h, link, n, sure, table, tag, toast, when } from "./base.js";

export async function jobs(root, at, signal) {
  const body = h("div"), planned = h("div");
  root.append(h("h1", {}, "Jobs"), body, planned);
  async function draw() {
    const [all, schedules] = await Promise.all([api("/v1/jobs?limit=100", { signal }), api("/v1/schedules", { signal }).catch(() => [])]);
    planned.replaceChildren(...ofSchedules(schedules));
    body.replaceChildren(all.length ? table(["job", "kind", "state", { num: "tasks" }, "opened", "closed"], all.map((j) => [
      h("a", { href: `#/jobs/${e(j.job)}`, class: "mono" }, j.job), j.kind, tag(j.state), { num: `${n(j.done)} / ${n(j.tasks)}` }, when(j.opened_ms), when(j.closed_ms)]), "Jobs, newest first") : h("p", {}, "No jobs yet."));
  }
  await draw();
  const timer = setInterval(() => draw().catch(() => {}), 3000);
  signal.addEventListener("abort", () => clearInterval(timer));
}

function ofSchedules(schedules) {
  if (!schedules.length) return [];
  const became = ({ firing, unmet, job }) => {
    const [word, what] = Object.entries(firing.became)[0];
    if (word !== "submitted") return tag(word);
    return unmet ? [tag("failed"), ` ${unmet}`] : [h("a", { href: `#/jobs/${e(what.job)}`, class: "mono" }, what.job), " ", job ? tag(job.state) : ""];
  };
  return [h("h2", {}, "Schedules"), table(["schedule", "state", "pattern", "zone", "next", "last time", "became"], schedules.map(({ schedule, next_ms, last }) => [
    schedule.name, tag(schedule.state), h("span", { class: "mono" }, schedule.settings.cron), schedule.settings.zone, when(next_ms[0]), when(last?.firing.scheduled_ms), last ? became(last) : ""]), "Schedules")];
}

export async function job(root, at, signal) {
  const id = at.path[1], path = `/v1/jobs/${e(id)}`;
  const body = h("div", { "aria-live": "polite" });
  root.append(h("p", { class: "small" }, h("a", { href: "#/jobs" }, "All jobs")), h("h1", { class: "mono" }, id), body);
  let due = false, busy = false, last = null;
  async function draw() {
    if (busy) { due = true; return; }
    busy = true;
    try {
      const [detail, tasks] = await Promise.all([api(path, { signal }), api(`${path}/tasks`, { signal })]);
      last = detail;
      body.replaceChildren(...parts(id, detail, tasks, act));
    } finally { busy = false; }
    if (due) { due = false; setTimeout(() => draw().catch(() => {}), 400); }
  }
  async function act(verb) {
    if (!(await sure(`${verb === "cancel" ? "Cancel" : "Retry"} this job?`, verb === "cancel" ? "Tasks that are done stay done; a retry goes on from there." : "What is done stays done.", verb === "cancel" ? "Cancel it" : "Retry it"))) return;
    try { await api(`${path}/${verb}`, { method: "POST" }); toast("Done."); await draw(); if (verb === "retry") listen(); } catch (error) { body.append(failed(error)); }
  }
  async function listen() {
    try { await follow(`${path}/events`, () => draw().catch(() => {}), signal); } catch (error) { if (!signal.aborted) toast(error.message); }
    if (!signal.aborted) draw().catch(() => {});
  }
  await draw();
  if (last.summary.state === "running") listen();
}

function parts(id, detail, tasks, act) {
  const { summary, result, gate } = detail;
  const made = { pipeline: [["report", `#/reports/${e(id)}`], ["model and training curves", `#/models/${e(id)}`]], evaluate: [["report", `#/reports/${e(id)}`]], train: [["model and training curves", `#/models/${e(id)}`]] }[summary.kind] || [];
  const out = [h("div", { class: "card" }, h("div", { class: "row" }, tag(summary.state), h("strong", {}, summary.kind), h("span", { class: "soft" }, `run ${summary.run}, opened ${when(summary.opened_ms)}; ${f(detail.device_ms / 3.6e6, 2)} device-hours`),
    h("span", { class: "end row" }, summary.state === "running" ? h("button", { class: "danger", onclick: () => act("cancel") }, "Cancel") : null, ["failed", "cancelled"].includes(summary.state) ? h("button", { onclick: () => act("retry") }, "Retry") : null)),
    h("p", {}, h("progress", { max: summary.tasks || 1, value: summary.done, "aria-label": "Tasks done" }), ` ${n(summary.done)} of ${n(summary.tasks)} tasks`),
    summary.state !== "running" && made.length ? h("p", {}, made.map(([word, href]) => [h("a", { href }, word), " "])) : null)];
  if (gate) out.push(h("div", { class: gate.passed ? "card" : "notice bad" }, `Gate ${gate.passed ? "passed" : "refused"}: mAP ${f(gate.candidate_map)} against ${f(gate.baseline_map)}, difference ${f(gate.difference)} [${f(gate.interval[0])}, ${f(gate.interval[1])}] over ${n(gate.queries)} queries`));
  if (detail.active.length) out.push(h("h2", {}, "At work"), table(["task", "worker", "progress", ""], detail.active.map((a) => [h("span", { class: "mono" }, a.task), a.worker, a.of ? h("progress", { max: a.of, value: a.progress, "aria-label": a.task }) : "", a.note]), "Tasks at work"));
  const dead = result?.failed?.failures || [];
  if (dead.length) out.push(h("h2", {}, "Dead letters"), table(["task", "last error", { num: "failures" }, { num: "silent ends" }], dead.map((t) => [h("span", { class: "mono" }, t.task), t.error, { num: t.reported }, { num: t.silent }]), "Tasks that were given up"));
  else if (detail.troubles.length) out.push(h("h2", {}, "Troubles"), table(["task", "last error", { num: "failures" }], detail.troubles.map((t) => [h("span", { class: "mono" }, t.task), t.error, { num: t.reported }]), "Tasks that failed at least once"));
  out.push(h("h2", {}, "Tasks"), h("div", { class: "card" }, tasks.stages.map((stage) => {
    const done = stage.tasks.filter((t) => t.state === "done").length;
    return h("div", {}, h("h3", {}, stage.name, " ", h("span", { class: "soft small" }, stage.tasks.length ? `${n(done)} of ${n(stage.tasks.length)}` : "waits to be told its tasks")),
      h("div", { class: "tasks", role: "img", "aria-label": `${stage.name}: ${done} of ${stage.tasks.length} done` }, stage.tasks.slice(0, 2000).map((t) => h("span", { class: t.state, title: `${t.task}: ${t.state}` }))));
  }), tasks.truncated ? h("p", { class: "soft" }, "There are more tasks than are shown.") : null));
  out.push(h("details", {}, h("summary", {}, "What was accepted"), h("pre", { tabindex: "0" }, JSON.stringify(detail.spec, null, 2))));
  return out;
}
