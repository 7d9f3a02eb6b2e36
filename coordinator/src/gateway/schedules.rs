//! Schedules: jobs that begin by themselves at set times.

use axum::Json;
use axum::extract::State;
use likeness_contract::ids::Name;
use likeness_contract::schedules::{ScheduleDetail, ScheduleRequest, ScheduleSettings, ScheduleStatus};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Gateway;
use super::extract::{Asked, At, Body, reply};
use super::problem::{Answer, Problem};

/// How many.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HowMany {
    /// Most times that are told; 50 without.
    #[schemars(range(min = 1, max = 500))]
    limit: Option<u32>,
}

/// Whether another one may be there.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// Take the place of a schedule of that name.
    #[serde(default)]
    replace: bool,
}

/// All of them, by name.
pub async fn list(State(gateway): State<Gateway>) -> Answer<Json<Vec<ScheduleStatus>>> {
    reply(gateway.client().schedules().await?)
}

/// One, with what became of its times.
pub async fn show(
    State(gateway): State<Gateway>,
    At(name): At<Name>,
    Asked(HowMany { limit }): Asked<HowMany>,
) -> Answer<Json<ScheduleDetail>> {
    let limit = limit.unwrap_or(50);
    if !(1..=500).contains(&limit) {
        return Err(Problem::malformed(format!("limit {limit} is not in 1–500")));
    }
    reply(gateway.client().schedule(&name, limit).await?)
}

/// Adds one.
pub async fn add(
    State(gateway): State<Gateway>,
    At(name): At<Name>,
    Asked(Replace { replace }): Asked<Replace>,
    Body(settings): Body<ScheduleSettings>,
) -> Answer<Json<ScheduleStatus>> {
    let settings = Box::new(settings);
    change(&gateway, ScheduleRequest::Add { name, settings, replace }).await
}

/// Lets one fire no more for now.
pub async fn pause(State(gateway): State<Gateway>, At(name): At<Name>) -> Answer<Json<ScheduleStatus>> {
    change(&gateway, ScheduleRequest::Pause { name }).await
}

/// Lets one fire again.
pub async fn resume(State(gateway): State<Gateway>, At(name): At<Name>) -> Answer<Json<ScheduleStatus>> {
    change(&gateway, ScheduleRequest::Resume { name }).await
}

/// Removes one.
pub async fn remove(State(gateway): State<Gateway>, At(name): At<Name>) -> Answer<Json<ScheduleStatus>> {
    change(&gateway, ScheduleRequest::Remove { name }).await
}

async fn change(gateway: &Gateway, change: ScheduleRequest) -> Answer<Json<ScheduleStatus>> {
    reply(gateway.client().change_schedule(change).await?)
}
