// The reference of the API, drawn from the document that the gateway serves.
import { api, failed, h } from "./base.js";

const main = document.getElementById("main");
const name = (ref) => ref.split("/").at(-1);

function words(schema) {
  if (!schema || schema === true) return "anything";
  if (schema.$ref) return h("a", { href: `#type-${name(schema.$ref)}` }, name(schema.$ref));
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" or ");
  const any = schema.anyOf || schema.oneOf || schema.allOf;
  if (any) return any.flatMap((one, i) => (i ? [" or ", words(one)] : [words(one)]));
  const type = Array.isArray(schema.type) ? schema.type.join(" or ") : schema.type;
  if (schema.items) return [h("span", {}, "list of "), words(schema.items)];
  if (schema.properties) return h("ul", {}, fields(schema));
  const range = schema.minimum !== undefined && schema.maximum !== undefined ? ` ${schema.minimum}–${schema.maximum}` : "";
  return `${type || "anything"}${range}`;
}

const fields = (schema) => Object.entries(schema.properties).map(([key, value]) => h("li", {}, h("code", {}, key), schema.required?.includes(key) ? "" : h("span", { class: "soft" }, " (may be left out)"), ": ", words(value), value.description ? h("span", { class: "soft" }, " – ", value.description) : ""));

function operation(method, path, o) {
  const good = Object.entries(o.responses).filter(([status]) => status !== "default");
  return h("section", { class: "card", id: o.operationId }, h("h3", {}, h("span", { class: "tag verb" }, method), " ", h("code", {}, path)),
    h("p", {}, h("strong", {}, o.summary), o["x-role"] ? h("span", { class: "soft" }, ` · needs the role ${o["x-role"]}`) : ""), o.description ? h("p", {}, o.description) : "",
    o.parameters.length ? h("ul", {}, o.parameters.map((p) => h("li", {}, h("code", {}, p.name), p.required ? "" : h("span", { class: "soft" }, " (may be left out)"), ": ", words(p.schema), h("span", { class: "soft" }, " – ", p.description || "")))) : "",
    o.requestBody ? Object.entries(o.requestBody.content).map(([type, c]) => h("p", {}, "takes ", h("code", {}, type), ": ", words(c.schema))) : "",
    good.map(([status, r]) => Object.entries(r.content || { nothing: {} }).map(([type, c]) => h("p", {}, `${status}: `, h("code", {}, type), " ", c.schema && Object.keys(c.schema).length ? words(c.schema) : ""))));
}

try {
  const document_ = await api("/openapi.json");
  const tags = new Map();
  for (const [path, methods] of Object.entries(document_.paths)) for (const [method, o] of Object.entries(methods)) {
    if (!tags.has(o.tags[0])) tags.set(o.tags[0], []);
    tags.get(o.tags[0]).push(operation(method, path, o));
  }
  main.replaceChildren(h("h1", {}, "API"), h("p", {}, document_.info.description), h("p", {}, "Whatever goes wrong is answered as ", h("code", {}, "application/problem+json"), ": ", h("a", { href: "#type-Problem" }, "Problem"), "."),
    h("nav", { "aria-label": "Sections" }, [...tags.keys()].map((t) => h("a", { href: `#tag-${t}` }, t))),
    ...[...tags].map(([t, all]) => h("div", {}, h("h2", { id: `tag-${t}` }, t), all)),
    h("h2", {}, "Types"), ...Object.entries(document_.components.schemas).map(([key, schema]) => h("section", { class: "card", id: `type-${key}` }, h("h3", {}, key), schema.description ? h("p", { class: "soft" }, schema.description) : "", h("div", {}, words(schema)))));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
} catch (error) {
  main.replaceChildren(failed(error));
}
