// The frame: which part is shown, who asks.
import { address, api, failed, h } from "./base.js";
import { search } from "./search.js";
import { job, jobs } from "./jobs.js";
import { compareReleases, releases } from "./releases.js";
import { model, models, report, reports } from "./reports.js";
import { cluster } from "./cluster.js";

const main = document.getElementById("main");
let leave = new AbortController();

function part([first, second]) {
  if (first === "jobs") return second ? job : jobs;
  if (first === "releases") return second === "compare" ? compareReleases : releases;
  if (first === "reports") return second ? report : reports;
  if (first === "models") return second ? model : models;
  return { cluster }[first] || search;
}

async function show() {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const at = address();
  for (const a of document.querySelectorAll("nav a")) {
    if (a.getAttribute("href") === `#/${at.path[0]}`) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  document.title = `Likeness: ${at.path.join(" ")}`;
  const root = h("div");
  main.replaceChildren(root);
  try {
    await part(at.path)(root, at, signal);
  } catch (error) {
    if (signal.aborted) return;
    root.append(error.status === 401 ? login() : failed(error));
  }
}

function login() {
  const key = h("input", { type: "password", autocomplete: "off", required: true });
  const form = h("form", { class: "card", onsubmit: async (event) => {
    event.preventDefault();
    try {
      await api("/v1/session", { json: { key: key.value.trim() } });
      await who();
      show();
    } catch (error) { form.append(failed(error)); }
  } }, h("h1", {}, "A key is needed"), h("p", { class: "soft" }, "Keys are made with `likeness gateway key`."),
    h("div", { class: "row" }, h("label", { class: "field" }, "Key", key), h("button", { class: "main" }, "Go on")));
  return form;
}

async function who() {
  const session = await api("/v1/session").catch(() => ({}));
  const end = async () => { await api("/v1/session", { method: "DELETE" }); await who(); show(); };
  document.getElementById("who").replaceChildren(...(session.keys_needed && session.name
    ? [`${session.name} (${session.role}) `, h("button", { onclick: end }, "Sign out")]
    : [session.keys_needed ? "" : "this machine"]));
}

document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
addEventListener("hashchange", show);
who();
show();
