//! Schedules and their firings as they lie in the store.

use std::collections::BTreeSet;

use futures::StreamExt;
use likeness_contract::codec;
use likeness_contract::ids::Name;
use likeness_contract::keys;
use likeness_contract::schedules::{Became, Firing, Schedule, ScheduleState, Unmet};
use likeness_link::{Result, Store};

use super::left_out;
use crate::core::retention::texts;

/// Documents that are read at once.
const AT_ONCE: usize = 16;

/// Names of all schedules, also of those that were removed.
pub(super) async fn names(store: &Store) -> Result<Vec<Name>> {
    let folders = store.children(keys::SCHEDULES).await?;
    Ok(folders.into_iter().filter_map(|folder| Name::new(folder).ok()).collect())
}

/// A schedule as its newest change has it.
pub(super) async fn newest(store: &Store, name: &Name) -> Result<Option<Schedule>> {
    let changes = store.list(&keys::schedule_changes(name)).await?;
    match changes.iter().filter(|key| keys::number_of(key).is_some()).max() {
        Some(newest) => store.require(newest).await.map(Some),
        None => Ok(None),
    }
}

/// All schedules that are there, by name. One that can't be read must not keep the others from firing.
pub(super) async fn all(store: &Store) -> Result<Vec<Schedule>> {
    let reads = futures::stream::iter(names(store).await?)
        .map(|name| async move { (keys::schedule_changes(&name), newest(store, &name).await) });
    let read: Vec<(String, Result<Option<Schedule>>)> = reads.buffered(AT_ONCE).collect().await;
    let mut all = Vec::new();
    for (folder, schedule) in read {
        match schedule {
            Ok(schedule) => all.extend(schedule.filter(|schedule| schedule.state != ScheduleState::Removed)),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => left_out(&folder, &error),
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Every schedule with every text in it: what they name is needed again.
pub(in crate::shell) async fn texts_of_all(store: &Store) -> Result<Vec<(Name, BTreeSet<String>)>> {
    let texts = |schedule: Schedule| {
        let document = serde_json::from_slice(&codec::encode_document(&schedule)).unwrap_or_default();
        (schedule.name, texts(&document))
    };
    let mut all = Vec::new();
    for name in names(store).await? {
        // What one that can't be read needs is not known.
        let schedule = newest(store, &name).await?;
        all.extend(schedule.filter(|schedule| schedule.state != ScheduleState::Removed).map(texts));
    }
    Ok(all)
}

/// Days with firings of a schedule, newest first.
async fn days(store: &Store, schedule: &Name) -> Result<Vec<String>> {
    let mut days = store.children(&keys::firings(schedule)).await?;
    days.sort_by(|a, b| b.cmp(a));
    Ok(days)
}

/// Keys of the firings of a day with their times, newest first.
async fn of_day(store: &Store, schedule: &Name, day: &str) -> Result<Vec<(u64, String)>> {
    let listed = store.list(&format!("{}/{day}", keys::firings(schedule))).await?;
    let mut times: Vec<(u64, String)> =
        listed.into_iter().filter_map(|key| Some((keys::scheduled_ms_of(&key)?, key))).collect();
    times.sort_by(|a, b| b.cmp(a));
    Ok(times)
}

/// The newest firing up to a time.
pub(super) async fn newest_firing(store: &Store, schedule: &Name, until_ms: u64) -> Result<Option<Firing>> {
    for day in days(store, schedule).await? {
        let times = of_day(store, schedule, &day).await?;
        if let Some((_, key)) = times.into_iter().find(|(time, _)| *time <= until_ms) {
            return store.require(&key).await.map(Some);
        }
    }
    Ok(None)
}

/// The newest firings, newest first.
pub(super) async fn firings(store: &Store, schedule: &Name, limit: usize) -> Result<Vec<Firing>> {
    let mut keys: Vec<String> = Vec::new();
    for day in days(store, schedule).await? {
        keys.extend(of_day(store, schedule, &day).await?.into_iter().map(|(_, key)| key));
        if keys.len() >= limit {
            break;
        }
    }
    keys.truncate(limit);
    let reads = futures::stream::iter(keys).map(|key| async move { (key.clone(), store.require(&key).await) });
    let read: Vec<(String, Result<Firing>)> = reads.buffered(AT_ONCE).collect().await;
    let mut firings = Vec::new();
    for (key, firing) in read {
        match firing {
            Ok(firing) => firings.push(firing),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => left_out(&key, &error),
        }
    }
    Ok(firings)
}

/// The firing of a time as it is there: this one, or that of whoever came first.
pub(super) async fn create(store: &Store, firing: &Firing) -> Result<Firing> {
    let key = keys::firing(&firing.schedule, firing.scheduled_ms);
    Ok(store.create_document(&key, firing).await?.document)
}

/// Why the job of a firing can't be accepted, if it is to be a job.
pub(super) async fn unmet(store: &Store, firing: &Firing) -> Result<Option<String>> {
    let Firing { schedule, scheduled_ms, became, .. } = firing;
    if !matches!(became, Became::Submitted { .. }) {
        return Ok(None);
    }
    let found: Option<Unmet> = store.document(&keys::unmet(schedule, *scheduled_ms)).await?;
    Ok(found.map(|unmet| unmet.error))
}
