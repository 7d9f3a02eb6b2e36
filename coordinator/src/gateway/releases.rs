//! Releases: what served when, two of them beside each other, and how to change what serves.

use axum::Json;
use axum::extract::State;
use likeness_contract::documents::Release;
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::GenerationRef;
use likeness_contract::names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Gateway;
use super::extract::{Asked, At, Body, reply};
use super::problem::{Answer, Problem};
use super::reports;

/// Of which alias.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfAlias {
    /// The alias; all of them without.
    alias: Option<Name>,
}

/// Releases, oldest first.
pub async fn list(
    State(gateway): State<Gateway>,
    Asked(OfAlias { alias }): Asked<OfAlias>,
) -> Answer<Json<Vec<Release>>> {
    reply(gateway.client().releases(alias).await?)
}

/// One of them.
pub async fn show(State(gateway): State<Gateway>, At((alias, number)): At<(Name, u64)>) -> Answer<Json<Release>> {
    reply(find(&gateway, &alias, number).await?)
}

async fn find(gateway: &Gateway, alias: &Name, number: u64) -> Answer<Release> {
    let all = gateway.client().releases(Some(alias.clone())).await?;
    let known: Vec<String> = all.iter().map(|release| release.number.to_string()).collect();
    all.into_iter().find(|release| release.number == number).ok_or_else(|| {
        let nearest = names::nearest(&number.to_string(), known.iter().rev().map(String::as_str));
        let text = format!("alias `{alias}` has no release {number}{}", names::hint(&nearest));
        Problem::not_found(text).nearest(nearest)
    })
}

/// What is to serve.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Promotion {
    /// A finished generation.
    generation: GenerationRef,
    /// The report that belongs to it.
    #[serde(default)]
    report: Option<JobId>,
}

/// Serves a generation, without a gate.
pub async fn promote(
    State(gateway): State<Gateway>,
    At(alias): At<Name>,
    Body(Promotion { generation, report }): Body<Promotion>,
) -> Answer<Json<Release>> {
    reply(gateway.client().promote(alias, generation, report).await?)
}

/// Which release is brought back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Its number; the one before what serves without.
    #[serde(default)]
    to: Option<u64>,
}

/// Serves an older release again.
pub async fn roll_back(
    State(gateway): State<Gateway>,
    At(alias): At<Name>,
    Body(Rollback { to }): Body<Rollback>,
) -> Answer<Json<Release>> {
    reply(gateway.client().rollback(alias, to).await?)
}

/// Which two.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TwoReleases {
    /// The first, `ALIAS@NUMBER`.
    a: String,
    /// The second; differences are its figures less the first's.
    b: String,
    /// Seed of the bootstrap; 0 without.
    #[serde(default)]
    seed: u64,
}

/// Two releases query by query.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ComparedReleases {
    /// The first.
    a: Release,
    /// The second.
    b: Release,
    /// See `/v1/reports/compare`.
    comparison: Value,
}

/// Compares the reports of two releases.
pub async fn compare(
    State(gateway): State<Gateway>,
    Asked(TwoReleases { a, b, seed }): Asked<TwoReleases>,
) -> Answer<Json<ComparedReleases>> {
    let (a, b) = (named(&gateway, &a).await?, named(&gateway, &b).await?);
    let comparison = reports::compared(&gateway, [&own_report(&a)?, &own_report(&b)?], seed).await?;
    reply(ComparedReleases { a, b, comparison })
}

async fn named(gateway: &Gateway, text: &str) -> Answer<Release> {
    let parts = text.split_once('@').and_then(|(alias, number)| Some((Name::new(alias).ok()?, number.parse().ok()?)));
    let (alias, number) =
        parts.ok_or_else(|| Problem::malformed(format!("`{text}` is no release: say ALIAS@NUMBER")))?;
    find(gateway, &alias, number).await
}

fn own_report(release: &Release) -> Answer<JobId> {
    let Release { alias, number, report, .. } = release;
    let none = || Problem::invalid(format!("{alias} release {number} has no report to compare"));
    report.clone().ok_or_else(none)
}
