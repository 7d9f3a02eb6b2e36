//! Reports: their figures, their page, and two of them beside each other.

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt, stream};
use likeness_contract::documents::ReportManifest;
use likeness_contract::ids::JobId;
use likeness_contract::{keys, names};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::Gateway;
use super::extract::{Asked, At, reply};
use super::problem::{Answer, Problem};
use crate::command::report::compare;

/// Documents that are read at once.
const AT_ONCE: usize = 16;
/// The page is one file with styles and pictures in it; nothing in it may run or be fetched.
const PAGE_POLICY: &str =
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'self'";

/// All reports.
pub async fn list(State(gateway): State<Gateway>) -> Answer<Json<Vec<ReportManifest>>> {
    let store = gateway.client().store();
    let ids = store.children(keys::REPORTS).await?.into_iter().filter_map(|id| JobId::new(id).ok());
    let read = |id: JobId| async move { store.document::<ReportManifest>(&keys::report_manifest(&id)).await };
    let found: Vec<_> = stream::iter(ids).map(read).buffered(AT_ONCE).try_collect().await?;
    reply(found.into_iter().flatten().collect())
}

/// One of them with its headline.
pub async fn show(State(gateway): State<Gateway>, At(report): At<JobId>) -> Answer<Json<ReportManifest>> {
    reply(find(&gateway, &report).await?)
}

async fn find(gateway: &Gateway, report: &JobId) -> Answer<ReportManifest> {
    let store = gateway.client().store();
    if let Some(manifest) = store.document(&keys::report_manifest(report)).await? {
        return Ok(manifest);
    }
    let known = store.children(keys::REPORTS).await?;
    let nearest = names::nearest(report.as_str(), known.iter().map(String::as_str));
    Err(Problem::not_found(format!("there is no report `{report}`{}", names::hint(&nearest))).nearest(nearest))
}

/// All its figures.
pub async fn figures(State(gateway): State<Gateway>, At(report): At<JobId>) -> Answer<Response> {
    let manifest = find(&gateway, &report).await?;
    let bytes = gateway.client().store().read(&manifest.json).await?;
    Ok(([(CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// Its page with plots.
pub async fn page(State(gateway): State<Gateway>, At(report): At<JobId>) -> Answer<Response> {
    let manifest = find(&gateway, &report).await?;
    let bytes = gateway.client().store().read(&manifest.html).await?;
    let head = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, PAGE_POLICY)];
    Ok((head, bytes).into_response())
}

/// Which two.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TwoReports {
    /// The first.
    a: JobId,
    /// The second; differences are its figures less the first's.
    b: JobId,
    /// Seed of the bootstrap; 0 without.
    #[serde(default)]
    seed: u64,
}

/// Two reports query by query.
pub async fn compare(
    State(gateway): State<Gateway>,
    Asked(TwoReports { a, b, seed }): Asked<TwoReports>,
) -> Answer<Json<Value>> {
    reply(compared(&gateway, [&a, &b], seed).await?)
}

/// The same for two releases.
pub async fn compared(gateway: &Gateway, [a, b]: [&JobId; 2], seed: u64) -> Answer<Value> {
    find(gateway, a).await?;
    find(gateway, b).await?;
    let compared = compare::compared(gateway.client(), (a, b), seed).await?;
    serde_json::to_value(compared).map_err(|error| Problem::internal(error.to_string()))
}
