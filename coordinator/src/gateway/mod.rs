//! The HTTP gateway: searches, jobs, releases and reports as JSON over HTTP, and the web page that shows them.
//!
//! It is one more client of the coordinator, the searchers and the store: nothing is decided here, and what it keeps in memory are
//! copies of what never changes. So any number of gateways may run, and each may die at any moment. It knows no tensors; images are
//! decoded only to be shrunk. Its routes stand in one table ([`routes`]) from which both the router and the OpenAPI document are made.

mod access;
mod cache;
mod connections;
mod extract;
mod guard;
mod images;
mod jobs;
mod models;
mod openapi;
mod page;
mod problem;
mod releases;
mod reports;
mod routes;
mod schedules;
mod search;
mod served;
mod session;
mod system;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, header};
use axum::middleware;
use likeness_link::Client;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

pub use access::{DEFAULT_RATE, Keys, Role, new_key};
pub use connections::Limits;

use crate::command::exit::{Failure, Outcome};
use crate::gateway::access::Rates;
use crate::gateway::images::Pictures;
use crate::gateway::served::ServedAliases;
use crate::gateway::system::Readiness;

/// Streams of events that are open at once.
const MAX_STREAMS: usize = 256;
/// Images that are decoded at once: each may take some hundred MiB.
const DECODED_AT_ONCE: usize = 4;

/// How a gateway runs.
#[derive(Debug)]
pub struct Settings {
    /// Who may ask.
    pub keys: Keys,
    /// Pages of other hosts that browsers let ask.
    pub allow_origins: Vec<HeaderValue>,
    /// Largest body of a request, bytes.
    pub max_body_bytes: usize,
    /// Longest time for an answer; promotions and streams of events take longer.
    pub timeout: Duration,
    /// Of connections.
    pub limits: Limits,
}

/// What every handler has.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Inner>);

/// See [`Gateway`].
#[derive(Debug)]
pub struct Inner {
    client: Client,
    settings: Settings,
    rates: Rates,
    served: ServedAliases,
    pictures: Pictures,
    readiness: Readiness,
    streams: Arc<Semaphore>,
    decoding: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl std::ops::Deref for Gateway {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Gateway {
    /// Over a client's connections.
    pub fn new(client: Client, settings: Settings, stopping: CancellationToken) -> Self {
        let (streams, decoding) = (Semaphore::new(MAX_STREAMS), Semaphore::new(DECODED_AT_ONCE));
        Self(Arc::new(Inner {
            served: ServedAliases::new(client.store().clone()),
            pictures: Pictures::new(client.store().clone()),
            client,
            settings,
            rates: Rates::default(),
            readiness: Readiness::default(),
            streams: Arc::new(streams),
            decoding: Arc::new(decoding),
            stopping,
        }))
    }

    /// The client that it asks with.
    pub fn client(&self) -> &Client {
        &self.0.client
    }
}

/// The keys and the address that fit together: without keys only this machine may ask.
pub fn check_address(address: SocketAddr, keys: &Keys) -> Outcome<()> {
    if keys.is_local() && !address.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "`{address}` can be reached from other machines: give --keys FILE (`likeness gateway key` makes one), or an address such as \
             127.0.0.1:{}",
            address.port()
        )));
    }
    Ok(())
}

/// Answers until `stopping`; what is under way then is finished.
pub async fn serve(gateway: Gateway, listener: TcpListener) {
    let (limits, stopping) = (gateway.settings.limits, gateway.stopping.clone());
    connections::serve(router(gateway), listener, limits, stopping).await;
}

fn router(gateway: Gateway) -> Router {
    let mut router = Router::new();
    for route in routes::all() {
        router = router.route(route.path, route.guarded(&gateway));
    }
    let body = DefaultBodyLimit::max(gateway.settings.max_body_bytes);
    let router = router
        .fallback(page::nothing_there)
        .method_not_allowed_fallback(page::not_so)
        .layer(body)
        .layer(middleware::from_fn_with_state(gateway.clone(), guard::visitor));
    let router = if gateway.settings.allow_origins.is_empty() { router } else { router.layer(cors(&gateway.settings)) };
    router.layer(CompressionLayer::new().gzip(true)).layer(CatchPanicLayer::custom(guard::panicked)).with_state(gateway)
}

fn cors(settings: &Settings) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(settings.allow_origins.iter().cloned()))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, header::HeaderName::from_static("last-event-id")])
        .expose_headers([header::RETRY_AFTER, header::ETAG])
        .max_age(Duration::from_secs(600))
}
