//! The session of the web page: the key in a cookie that scripts can't read and other hosts' pages can't send.
//!
//! Pictures and reports are asked for by the browser itself, which can't be told to send a header.

use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Gateway;
use super::access::Role;
use super::extract::Body;
use super::guard::key_of;
use super::problem::{Answer, Problem};

/// Name of the cookie.
pub const COOKIE_NAME: &str = "likeness-key";

/// Characters of the longest key.
const MAX_KEY: usize = 200;

/// A key to begin a session with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// The key.
    #[schemars(length(min = 1, max = MAX_KEY))]
    key: String,
}

/// Who asks.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Session {
    /// Name of the key; none where no key is given that is known.
    name: Option<String>,
    /// What it may do.
    role: Option<Role>,
    /// Whether keys are asked for at all.
    keys_needed: bool,
    /// Version of the gateway.
    version: &'static str,
}

fn session(gateway: &Gateway, key: Option<&str>) -> Session {
    let (name, role) = gateway.settings.keys.caller(key).map(|caller| (caller.name, caller.role)).unzip();
    Session { name, role, keys_needed: !gateway.settings.keys.is_local(), version: env!("CARGO_PKG_VERSION") }
}

/// Who asks.
pub async fn show(State(gateway): State<Gateway>, headers: HeaderMap) -> Json<Session> {
    Json(session(&gateway, key_of(&headers)))
}

/// Begins one.
pub async fn begin(State(gateway): State<Gateway>, Body(NewSession { key }): Body<NewSession>) -> Answer<Response> {
    let began = session(&gateway, Some(&key));
    let sized = (1..=MAX_KEY).contains(&key.len());
    let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~' | '+' | '/'));
    if !sized || !plain || began.role.is_none() {
        return Err(Problem::unauthorized("the key is not known"));
    }
    let cookie = format!("{COOKIE_NAME}={key}; Path=/; HttpOnly; SameSite=Strict");
    Ok((AppendHeaders([(SET_COOKIE, cookie)]), Json(began)).into_response())
}

/// Ends it.
pub async fn end() -> impl IntoResponse {
    let cookie = format!("{COOKIE_NAME}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    (StatusCode::NO_CONTENT, AppendHeaders([(SET_COOKIE, cookie)]))
}
