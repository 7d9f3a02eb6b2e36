//! What every request passes: whose page it comes from, who asks, how often, how long it may take.

use std::any::Any;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::Role;
use super::problem::Problem;
use super::session::COOKIE_NAME;
use super::{Gateway, Settings};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Whoever has a key with at least this role.
    Needs(Role),
}

/// How a route is guarded.
#[derive(Debug, Clone, Copy)]
pub struct Guarded {
    /// Who may use it.
    pub access: Access,
    /// Whether its answer may take longer than others.
    pub unhurried: bool,
}

/// Before routing: refuses what a page of another host has a browser send, and says how answers may be used.
pub async fn visitor(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let refused = foreign(&gateway.settings, request.method(), request.headers(), request.uri());
    let mut response = match refused {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Why a request is not answered whoever sends it.
///
/// Without keys, whatever a browser on this machine sends would be obeyed. So the address must be one of this machine (a name of
/// elsewhere that was made to point here is refused), and a change must not be sent by a page of another host.
fn foreign(settings: &Settings, method: &Method, headers: &HeaderMap, uri: &Uri) -> Option<Problem> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(HOST).or(uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
    if settings.keys.is_local() && !is_this_machine(host) {
        return Some(Problem::forbidden(format!("`{host}` is not this machine: without --keys only it may ask")));
    }
    if method.is_safe() {
        return None;
    }
    let origin = text(header::ORIGIN);
    let allowed = |origin: &str| settings.allow_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes());
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, from)| from == host);
    match origin {
        Some(origin) if !own(origin) && !allowed(origin) => {
            Some(Problem::forbidden(format!("pages of `{origin}` may not ask here (--allow-origin)")))
        }
        _ => None,
    }
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// On a route: who asks, how often, how long.
pub async fn pass(State((gateway, guarded)): State<(Gateway, Guarded)>, mut request: Request, next: Next) -> Response {
    if let Access::Needs(role) = guarded.access {
        match admitted(&gateway, role, &request) {
            Ok(caller) => request.extensions_mut().insert(caller),
            Err(problem) => return problem.into_response(),
        };
    }
    if guarded.unhurried {
        return next.run(request).await;
    }
    let limit = gateway.settings.timeout;
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Problem::too_slow(format!("there is no answer after {} s (--timeout)", limit.as_secs())).into_response()
        }
    }
}

fn admitted(gateway: &Gateway, role: Role, request: &Request) -> Result<super::access::Caller, Problem> {
    let key = key_of(request.headers());
    let Some(caller) = gateway.settings.keys.caller(key) else {
        let what = if key.is_some() { "the key is not known" } else { "say `Authorization: Bearer KEY`" };
        return Err(Problem::unauthorized(what));
    };
    gateway.rates.take(&caller, Instant::now()).map_err(|seconds| {
        let detail = format!("key `{}` asks more than {} times a second", caller.name, caller.rate);
        Problem::too_many(detail, seconds)
    })?;
    if caller.role < role {
        let (name, has, needed) = (&caller.name, caller.role.name(), role.name());
        return Err(Problem::forbidden(format!("key `{name}` is of a {has}, this needs the role {needed}")));
    }
    if !request.method().is_safe() {
        tracing::info!(caller = %caller.name, method = %request.method(), path = request.uri().path(), "asked");
    }
    Ok(caller)
}

/// The key of the header, else of the page's session.
pub fn key_of(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then_some(key.trim());
    }
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|value| value.split(';')).find_map(|cookie| {
        let (name, value) = cookie.trim().split_once('=')?;
        (name == COOKIE_NAME).then_some(value)
    })
}

/// A handler that broke: its request gets an answer, and others go on.
pub fn panicked(error: Box<dyn Any + Send>) -> Response {
    let text = error.downcast_ref::<String>().map(String::as_str).or(error.downcast_ref::<&str>().copied());
    tracing::error!(error = text.unwrap_or("unknown"), "a handler broke");
    Problem::internal("the gateway has a fault; its log says more").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::access::Keys;

    fn settings(keys: Keys, origins: &[&'static str]) -> Settings {
        Settings {
            keys,
            allow_origins: origins.iter().map(|origin| HeaderValue::from_static(origin)).collect(),
            max_body_bytes: 1,
            timeout: std::time::Duration::from_secs(1),
            limits: crate::gateway::Limits { connections: 1, header: std::time::Duration::from_secs(1) },
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn refused(settings: &Settings, method: Method, pairs: &[(&'static str, &'static str)]) -> bool {
        foreign(settings, &method, &headers(pairs), &Uri::from_static("/v1/status")).is_some()
    }

    #[test]
    fn without_keys_only_names_of_this_machine_are_answered() {
        let local = settings(Keys::Local { rate: 1.0 }, &[]);
        for host in ["localhost:8484", "127.0.0.1:1", "[::1]:8484", "127.0.0.1", "LOCALHOST"] {
            assert!(!refused(&local, Method::GET, &[("host", host)]), "{host}");
        }
        for host in ["evil.example", "evil.example:8484", "127.0.0.1.evil.example", "10.0.0.1:1", ""] {
            assert!(refused(&local, Method::GET, &[("host", host)]), "{host}");
        }
    }

    #[test]
    fn pages_of_other_hosts_change_nothing_unless_they_are_named() {
        let local = settings(Keys::Local { rate: 1.0 }, &["https://ours.example"]);
        let from = |origin| [("host", "localhost:8484"), ("origin", origin)];
        assert!(refused(&local, Method::POST, &from("https://evil.example")));
        assert!(refused(&local, Method::POST, &from("null")));
        assert!(!refused(&local, Method::POST, &from("http://localhost:8484")));
        assert!(!refused(&local, Method::POST, &from("https://ours.example")));
        assert!(!refused(&local, Method::GET, &from("https://evil.example")), "it can't read the answer");
        assert!(!refused(&local, Method::POST, &[("host", "localhost:8484")]), "not a browser");
    }

    #[test]
    fn a_key_comes_in_the_header_or_as_the_session_of_the_page() {
        assert_eq!(key_of(&headers(&[("authorization", "bearer  k1 ")])), Some("k1"));
        assert_eq!(key_of(&headers(&[("cookie", "a=b; likeness-key=k2")])), Some("k2"));
        assert_eq!(key_of(&headers(&[("authorization", "Basic x"), ("cookie", "likeness-key=k2")])), None);
        assert_eq!(key_of(&headers(&[("cookie", "xlikeness-key=k2")])), None);
    }
}
