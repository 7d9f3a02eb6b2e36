//! Schedules: the loop of the leader that lets them fire.
//!
//! The core's `Keeper` of each schedule says what to do; here it is done, and the store says what counts. The loop looks when a time is due,
//! when a schedule is changed here, and every sweep for what another leader may have changed. It loses nothing when it dies: the next leader's
//! loop reads the newest record of every schedule and goes on from there.

mod answers;
mod stored;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use likeness_contract::ids::Name;
use likeness_contract::jobs::DatasetRef;
use likeness_contract::keys;
use likeness_contract::messages::{ApiError, ApiErrorKind};
use likeness_contract::schedules::{Became, Firing, Schedule, Unmet};
use likeness_link::Result;
use likeness_link::error::chain;
use likeness_link::telemetry::metrics::metrics;
use tokio::time::Instant;

pub(super) use self::answers::answer;
pub(super) use self::stored::texts_of_all;
use super::api::{Answer, Api, Refusal};
use super::backoff::Backoff;
use super::context::now_ms;
use super::{accept, facts};
use crate::core::resolve;
use crate::core::schedule::{FiredJob, Keeper, Step};

/// Longest sleep: clocks are set.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How soon it is looked again for the end of a job that a firing waits for.
const WAIT_FOR_JOB: Duration = Duration::from_millis(500);
/// Pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// Lets schedules fire; for ever.
pub(super) async fn keep(api: Api) {
    let mut kept = BTreeMap::new();
    let mut backoff = Backoff::default();
    loop {
        match load(&api, kept).await {
            Ok(loaded) => (kept, backoff) = (loaded, Backoff::default()),
            Err(error) => {
                kept = BTreeMap::new();
                backoff.wait("the schedules can't be read", &error).await;
                continue;
            }
        }
        let sweep = Instant::now() + api.cx.bus.timings().sweep_every;
        while Instant::now() < sweep {
            let pauses = join_all(kept.values_mut().map(|keeper| go_on(&api, keeper))).await;
            let pause = pauses.into_iter().fold(LOOK_EVERY, Duration::min);
            tokio::select! {
                () = api.cx.schedules_changed.notified() => break,
                () = tokio::time::sleep_until(sweep.min(Instant::now() + pause)) => {}
            }
        }
    }
}

/// All schedules; those that have not changed go on as they were.
async fn load(api: &Api, mut known: BTreeMap<Name, Keeper>) -> Result<BTreeMap<Name, Keeper>> {
    let mut kept = BTreeMap::new();
    for schedule in stored::all(&api.cx.store).await? {
        let name = schedule.name.clone();
        let known = known.remove(&name).filter(|keeper| *keeper.schedule() == schedule);
        let keeper = match known {
            Some(keeper) => Ok(keeper),
            None => match keeper(api, schedule).await {
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => Err(chain(&error)),
                Ok(keeper) => keeper,
            },
        };
        match keeper {
            Ok(keeper) => drop(kept.insert(name, keeper)),
            Err(error) => tracing::error!(schedule = %name, error, "a schedule can't fire, somebody must mend it"),
        }
    }
    metrics().schedules.set(i64::try_from(kept.len()).unwrap_or(i64::MAX));
    Ok(kept)
}

/// The keeper of a schedule, as the store knows of its firings.
async fn keeper(api: &Api, schedule: Schedule) -> Result<std::result::Result<Keeper, String>> {
    let newest = stored::newest_firing(&api.cx.store, &schedule.name, now_ms()).await?;
    let unfinished = match &newest {
        Some(newest) => stored::unmet(&api.cx.store, newest).await?.is_none(),
        None => false,
    };
    Ok(Keeper::new(schedule, newest, unfinished))
}

/// Does what is due, and says how long there is nothing to do.
async fn go_on(api: &Api, keeper: &mut Keeper) -> Duration {
    match try_go_on(api, keeper).await {
        Ok(pause) => pause,
        Err(Refusal(error)) => {
            let schedule = keeper.schedule().name.as_str();
            tracing::warn!(schedule, error = %error.message, "a schedule can't fire yet, it is tried again");
            AFTER_FAILURE
        }
    }
}

async fn try_go_on(api: &Api, keeper: &mut Keeper) -> Answer<Duration> {
    loop {
        if let Some(Step::Wait(until)) = keeper.sleeps_until(now_ms()) {
            return Ok(pause_until(until));
        }
        let jobs = fired_jobs(api, keeper.schedule()).await?;
        let newest = newest_versions(api, keeper.schedule()).await?;
        match keeper.step(now_ms(), &jobs, newest.as_deref()) {
            Step::Wait(until) => return Ok(pause_until(until)),
            Step::WaitForJob => return Ok(WAIT_FOR_JOB),
            Step::Record(firings) => {
                for firing in firings {
                    if !keeper.on_recorded(record(api, firing).await?) {
                        break;
                    }
                }
            }
            Step::CarryOut(firing) => {
                carry_out(api, keeper.schedule(), &firing).await?;
                keeper.on_carried_out();
            }
        }
    }
}

fn pause_until(until_ms: Option<u64>) -> Duration {
    until_ms.map_or(LOOK_EVERY, |until| Duration::from_millis(until.saturating_sub(now_ms())))
}

async fn fired_jobs(api: &Api, schedule: &Schedule) -> Answer<Vec<FiredJob>> {
    let schedule = schedule.clone();
    api.ask(move |core| core.jobs().filter_map(|job| FiredJob::of(&schedule, job)).collect()).await
}

/// The newest versions of the datasets that the job names, if they matter; none when a name is wrong, which is for the job to say.
async fn newest_versions(api: &Api, schedule: &Schedule) -> Answer<Option<Vec<DatasetRef>>> {
    if !schedule.settings.only_if_changed {
        return Ok(None);
    }
    let named = resolve::named_datasets(&schedule.settings.job.work);
    let names: Vec<&Name> = named.iter().map(|selector| &selector.dataset).collect();
    let versions = facts::versions(&api.cx.store, &api.inbox, &names).await?;
    Ok(named.iter().map(|selector| resolve::chosen_version(&versions, selector).ok()).collect())
}

/// What counts of a time: what is proposed, or what somebody wrote before.
async fn record(api: &Api, proposed: Firing) -> Answer<Firing> {
    let counts = stored::create(&api.cx.store, &proposed).await?;
    let Firing { schedule, scheduled_ms, decided_ms, became, .. } = &counts;
    if counts == proposed {
        let lag_ms = decided_ms.saturating_sub(*scheduled_ms);
        metrics().firings.get_or_create(&[("outcome", became.name())]).inc();
        metrics().firing_lag_seconds.set(lag_ms as f64 / 1000.0);
        tracing::info!(%schedule, scheduled_ms, lag_ms, became = became.name(), "a schedule fired");
    }
    Ok(counts)
}

/// Cancels and submits what a firing says. Done twice it is done once.
async fn carry_out(api: &Api, schedule: &Schedule, firing: &Firing) -> Answer<()> {
    let Became::Submitted { job, cancels } = &firing.became else { return Ok(()) };
    for old in cancels {
        match accept::cancel(api, old).await {
            // It ended by itself.
            Err(Refusal(error)) if error.kind == ApiErrorKind::Unavailable => return Err(error.into()),
            Ok(_) | Err(_) => {}
        }
    }
    match accept::submit_as(api, job, &schedule.settings.job).await {
        Ok(_) => Ok(()),
        Err(Refusal(error)) if error.kind == ApiErrorKind::Unavailable => Err(error.into()),
        Err(Refusal(error)) => unmet(api, firing, error).await,
    }
}

async fn unmet(api: &Api, firing: &Firing, error: ApiError) -> Answer<()> {
    let Firing { schedule, scheduled_ms, .. } = firing;
    let unmet =
        Unmet { schedule: schedule.clone(), scheduled_ms: *scheduled_ms, at_ms: now_ms(), error: error.message };
    tracing::error!(%schedule, error = %unmet.error, "the job of a schedule can't be accepted");
    metrics().firings.get_or_create(&[("outcome", "unmet")]).inc();
    api.cx.store.create_document(&keys::unmet(schedule, *scheduled_ms), &unmet).await?;
    Ok(())
}

/// What can't be read is left out, loudly.
fn left_out(key: &str, error: &likeness_link::Error) {
    tracing::error!(key, error = %chain(error), "left out, somebody must mend it");
}
