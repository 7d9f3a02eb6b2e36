//! The OpenAPI 3.1 document, made from the table of routes and the types themselves.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use likeness_contract::ids::{JobId, Name};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::Gateway;
use super::guard::Access;
use super::problem::{PROBLEM_JSON, Problem};
use super::routes::{self, Reply, Route};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| document(false).to_string());
/// Of a gateway that asks nobody for a key.
static LOCAL_DOCUMENT: LazyLock<String> = LazyLock::new(|| document(true).to_string());

/// The document.
pub async fn served(State(gateway): State<Gateway>) -> impl IntoResponse {
    let document = if gateway.settings.keys.is_local() { &LOCAL_DOCUMENT } else { &DOCUMENT };
    ([(CONTENT_TYPE, "application/json")], document.as_str())
}

/// `local`: a key may be given and need not be.
fn document(local: bool) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    generator.subschema_for::<Problem>();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes::all() {
        let mut operation = operation(&route, &mut generator);
        if let Some(security) = operation.get_mut("security").and_then(Value::as_array_mut).filter(|_| local) {
            security.push(json!({}));
        }
        paths.entry(route.path).or_insert_with(|| json!({}))[route.method] = operation;
    }
    let mut schemas = Value::Object(generator.take_definitions(true));
    plain_words(&mut schemas);
    let problem = json!({
        "description": "A problem (RFC 9457); wrong names come with the nearest ones, 429 and 503 with `Retry-After`.",
        "content": { PROBLEM_JSON: { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Likeness",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Finds images by what they show. Keys are sent as `Authorization: Bearer KEY`; a gateway without a file of keys answers everybody on its own machine.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": { "Problem": problem },
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let (status, reply) = route.reply;
    let mut good = json!({ "description": "Done." });
    match reply {
        Reply::Json(schema) => good["content"] = json!({ "application/json": { "schema": schema(generator) } }),
        Reply::Bytes(media_type) => good["content"] = json!({ media_type: { "schema": {} } }),
        Reply::Nothing => {}
    }
    let mut responses = json!({ "default": { "$ref": "#/components/responses/Problem" } });
    responses[status.to_string()] = good.clone();
    if route.path == "/readyz" {
        responses["503"] = good;
    }
    let id = format!("{} {}", route.method, route.path);
    let id: String = id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut operation = json!({
        "operationId": id.trim_matches('_'),
        "summary": route.summary,
        "tags": [tag(route.path)],
        "parameters": parameters(route, generator),
        "responses": responses,
    });
    if !route.description.is_empty() {
        operation["description"] = route.description.into();
    }
    if let Some((media_type, schema)) = route.body {
        operation["requestBody"] =
            json!({ "required": true, "content": { media_type: { "schema": schema(generator) } } });
    }
    if let Access::Needs(role) = route.guarded.access {
        operation["security"] = json!([{ "key": [] }]);
        operation["x-role"] = role.name().into();
    }
    operation
}

fn tag(path: &str) -> &str {
    match path.strip_prefix("/v1/").and_then(|rest| rest.split('/').next()) {
        Some("aliases") => "search",
        Some("images" | "thumbnails") => "images",
        Some(first) => first,
        None => "page",
    }
}

fn parameters(route: &Route, generator: &mut SchemaGenerator) -> Vec<Value> {
    let in_path = route.path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let mut all: Vec<Value> = in_path.map(|name| path_parameter(name, generator)).collect();
    let Some(query) = route.query else { return all };
    let schema = query(generator).to_value();
    // The type itself is no part of the document: its fields are.
    let name = schema["$ref"].as_str().and_then(|at| at.rsplit('/').next()).unwrap_or_default().to_string();
    let schema = generator.definitions_mut().remove(&name).unwrap_or(schema);
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let (mut field, description) = (field.clone(), field["description"].clone());
        field.as_object_mut().map(|field| field.remove("description"));
        without_null(&mut field);
        plain_words(&mut field);
        let required = required.contains(&Value::from(name.as_str()));
        all.push(
            json!({ "name": name, "in": "query", "required": required, "description": description, "schema": field }),
        );
    }
    all
}

/// What is left out of an address is not null.
fn without_null(field: &mut Value) {
    if let Some(first) = field["type"].as_array().and_then(|types| types.iter().find(|kind| *kind != "null")).cloned() {
        field["type"] = first;
    }
    let other = field["anyOf"].as_array().and_then(|all| all.iter().find(|one| one["type"] != "null")).cloned();
    if let (Some(other), Some(field)) = (other, field.as_object_mut()) {
        field.remove("anyOf");
        field.extend(other.as_object().cloned().unwrap_or_default());
    }
    field.as_object_mut().map(|field| {
        field
            .remove("default")
            .filter(|default| !default.is_null())
            .map(|default| field.insert("default".into(), default))
    });
}

fn path_parameter(name: &str, generator: &mut SchemaGenerator) -> Value {
    let (schema, description) = match name {
        "job" => (generator.subschema_for::<JobId>(), "Id of a job."),
        "model" => (generator.subschema_for::<JobId>(), "Id of the job that trained the model."),
        "report" => (generator.subschema_for::<JobId>(), "Id of the job that made the report."),
        "alias" => (generator.subschema_for::<Name>(), "An alias."),
        "schedule" => (generator.subschema_for::<Name>(), "A schedule."),
        "dataset" => (generator.subschema_for::<Name>(), "A dataset."),
        "number" => (u64::json_schema(generator), "Number of a release, from 1."),
        "item" => (String::json_schema(generator), "Id of an item; `/` in it as `%2F`."),
        _ => (String::json_schema(generator), "A name."),
    };
    let mut schema = schema.to_value();
    if name == "item" {
        schema["minLength"] = 1.into();
    }
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": schema })
}

/// Links of the documentation of code are words elsewhere.
fn plain_words(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "description" => *text = text.replace("[`", "`").replace("`]", "`"),
                    other => plain_words(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain_words),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        let document = document(false);
        let told: BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
            })
            .collect();
        let served: BTreeSet<String> =
            routes::all().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
        assert_eq!(told, served);
        assert_eq!(served.len(), routes::all().len(), "no route stands twice");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str).map(String::from));
                    fields.values().for_each(|field| references(field, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = document(false);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50);
        for reference in found {
            let at = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(at).is_some(), "{reference}");
        }
        assert!(document.pointer("/components/schemas/TrainSettings/properties/margin/description").is_some());
        assert!(document.pointer("/components/schemas/WhichImage").is_none(), "it stands as parameters");
    }

    #[test]
    fn whoever_needs_a_key_is_told_which() {
        let document = document(false);
        let of = |path: &str, method: &str| document["paths"][path][method].clone();
        assert_eq!(of("/v1/jobs", "post")["x-role"], "operator");
        assert_eq!(of("/v1/jobs", "get")["x-role"], "reader");
        assert_eq!(of("/v1/reconcile", "post")["x-role"], "admin");
        assert!(of("/healthz", "get").get("security").is_none());
        assert_eq!(self::document(true)["paths"]["/v1/search"]["post"]["security"], json!([{ "key": [] }, {}]));
        let size = &of("/v1/thumbnails/{item}", "get")["parameters"];
        assert!(size.as_array().unwrap().iter().any(|p| p["name"] == "size" && p["schema"]["maximum"] == 512));
    }
}
