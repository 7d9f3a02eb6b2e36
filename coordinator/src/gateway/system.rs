//! The system as a whole: health, readiness, status, datasets, and what only an administrator does.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use likeness_contract::datasets::{Removal, RemovalChange};
use likeness_contract::documents::{DatasetManifest, Release};
use likeness_contract::ids::Name;
use likeness_contract::messages::{Placement, Sighting, Status};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::Gateway;
use super::extract::{At, Body, reply};
use super::problem::{Answer, Problem};

/// What was found out counts so long: probes come often and must not be a load.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A probe that takes longer is answered with no.
const PROBE_WITHIN: Duration = Duration::from_secs(3);

/// This process answers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Health {
    /// `alive`.
    status: &'static str,
    /// Version of the gateway.
    version: &'static str,
}

/// Says that this process answers, and nothing about others.
pub async fn health() -> Json<Health> {
    Json(Health { status: "alive", version: env!("CARGO_PKG_VERSION") })
}

/// Whether searches can be answered.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Ready {
    /// Whether all that follows is so, the coordinator left aside: searches do not need it.
    ready: bool,
    /// Whether there is a connection to NATS.
    broker: bool,
    /// Whether the store answers.
    store: bool,
    /// Whether a coordinator answers.
    coordinator: bool,
    /// Whether a searcher answers.
    searcher: bool,
    /// Whether an alias has a release; where a coordinator says who holds what, one that searchers hold as a whole.
    release: bool,
}

/// What was last found out.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<Option<(Instant, Ready)>>);

/// Says whether searches can be answered.
pub async fn ready(State(gateway): State<Gateway>) -> (StatusCode, Json<Ready>) {
    let mut known = gateway.readiness.0.lock().await;
    let ready = match &*known {
        Some((at, ready)) if at.elapsed() < PROBE_EVERY => ready.clone(),
        _ => {
            let ready = probe(&gateway).await;
            *known = Some((Instant::now(), ready.clone()));
            ready
        }
    };
    let ready = Ready { ready: ready.ready && !gateway.stopping.is_cancelled(), ..ready };
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ready))
}

async fn probe(gateway: &Gateway) -> Ready {
    let client = gateway.client();
    let broker = client.bus().is_connected();
    let within = |probe| tokio::time::timeout(PROBE_WITHIN, probe);
    let store = async { within(client.store().children(likeness_contract::keys::RELEASES)).await.ok()?.ok() };
    let searcher = tokio::time::timeout(PROBE_WITHIN, client.has_searcher());
    let status = tokio::time::timeout(PROBE_WITHIN, client.status());
    let releases = tokio::time::timeout(PROBE_WITHIN, client.releases(None));
    let (aliases, searcher, status, releases) = tokio::join!(store, searcher, status, releases);
    let (searcher, status, releases) =
        (searcher.unwrap_or(false), status.ok().and_then(Result::ok), releases.ok().and_then(Result::ok));
    let release = match (&status, &releases) {
        (Some(status), Some(releases)) => releases.iter().any(|release| is_held(release, &status.placement)),
        _ => aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()),
    };
    let (store, coordinator) = (aliases.is_some(), status.is_some());
    Ready { ready: broker && store && searcher && release, broker, store, coordinator, searcher, release }
}

/// Whether searchers hold shards of a release, and its model.
fn is_held(release: &Release, placement: &[Placement]) -> bool {
    let held = placement.iter().flat_map(|searcher| &searcher.held);
    held.into_iter().any(|held| held.generation == release.generation && held.model_ready && !held.shards.is_empty())
}

/// Workers, queues, placement, and when workers were last seen.
#[derive(Debug, Serialize, JsonSchema)]
pub struct WholeStatus {
    /// What the coordinator says.
    status: Status,
    /// When it last heard of each worker, also of those that are gone.
    sightings: Vec<Sighting>,
}

/// The system at a glance.
pub async fn status(State(gateway): State<Gateway>) -> Answer<Json<WholeStatus>> {
    let status = gateway.client().status().await?;
    // A coordinator of an older version can't tell.
    let sightings = gateway.client().sightings().await.unwrap_or_default();
    reply(WholeStatus { status, sightings })
}

/// Datasets with their newest version.
pub async fn datasets(State(gateway): State<Gateway>) -> Answer<Json<Vec<DatasetManifest>>> {
    reply(gateway.client().datasets().await?)
}

/// Items that are taken out of a dataset, or put back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangedItems {
    /// What is done.
    change: RemovalChange,
    /// Their ids.
    #[schemars(length(min = 1, max = 100_000))]
    items: Vec<String>,
}

/// Takes items out of a dataset, or puts them back.
pub async fn change_items(
    State(gateway): State<Gateway>,
    At(dataset): At<Name>,
    Body(ChangedItems { change, items }): Body<ChangedItems>,
) -> Answer<Json<Removal>> {
    if items.is_empty() || items.iter().any(String::is_empty) {
        return Err(Problem::invalid("name at least one item, and none that is empty"));
    }
    let known = gateway.client().store().children(likeness_contract::keys::DATASETS).await?;
    if !known.iter().any(|known| known == dataset.as_str()) {
        let nearest = likeness_contract::names::nearest(dataset.as_str(), known.iter().map(String::as_str));
        return Err(Problem::not_found(format!("there is no dataset `{dataset}`")).nearest(nearest));
    }
    reply(gateway.client().change_items(&dataset, change, items).await?)
}

/// What was mended.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Reconciled {
    /// Tasks that were published again.
    republished: u64,
}

/// Compares store and broker now.
pub async fn reconcile(State(gateway): State<Gateway>) -> Answer<Json<Reconciled>> {
    reply(Reconciled { republished: gateway.client().reconcile().await? })
}
