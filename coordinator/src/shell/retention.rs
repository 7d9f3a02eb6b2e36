//! Retention over the store: what lies there, what holds it, and how it goes.
//!
//! `likeness_contract::retention` has the invariant that this and the acceptance of jobs and promotions keep. In short: mark, look
//! again, delete the manifest, delete the rest, take the mark away. A run that dies on the way leaves a mark, which counts for a day:
//! nothing can begin with what is marked; the next run deletes the rest, since what has lost its manifest is an orphan.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use likeness_contract::codec;
use likeness_contract::documents::Release;
use likeness_contract::ids::JobId;
use likeness_contract::jobs::{JobSpec, Outcome, RunResult};
use likeness_contract::keys;
use likeness_contract::retention::{Condemned, Hold};
use likeness_link::{Created, Error, ErrorKind, Listed, Result, Store};

use super::accept::RETRY_MS;
use super::context::now_ms;
use super::schedules;
use crate::core::retention::{
    BROUGHT, Holders, Judged, Kind, LiveJob, Policy, References, Unit, judge, name_of, place_of, texts,
};

/// Documents that are read, and objects that are deleted, at once.
const AT_ONCE: usize = 16;
/// A mark counts for so long; whoever made it stops long before.
const MARK_MS: u64 = 24 * 3600 * 1000;
/// A run deletes nothing by a mark that is older.
const DELETE_WITHIN_MS: u64 = 3600 * 1000;

/// Everything that may be deleted, judged.
pub async fn look(store: &Store, policy: Policy) -> Result<Vec<Judged>> {
    let found = inventory(store).await?;
    let holders = Holders { newest_versions: found.newest_versions, ..holders(store).await? };
    Ok(judge(found.units, &holders, &found.references, policy, now_ms()))
}

/// What became of something that was to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is gone.
    Deleted,
    /// It is held after all; in words.
    Kept(String),
}

/// Deletes what `look` said may go, unless it is held by now.
pub async fn apply(store: &Store, going: Vec<Unit>, policy: Policy) -> Result<Vec<(Unit, Fate)>> {
    let by = format!("{}-{:x}", std::process::id(), now_ms());
    let marked_ms = now_ms();
    let mut marked = Vec::new();
    let mut fates = Vec::new();
    for unit in going {
        match mark(store, &unit.place, &by).await? {
            true => marked.push(unit),
            false => fates.push((unit, Fate::Kept("somebody else is deleting it".into()))),
        }
    }
    // Looked at after the marks were written: whoever began before is seen now, whoever begins later sees the mark.
    let judged = look(store, policy).await?;
    let held: BTreeMap<&str, Option<&String>> =
        judged.iter().map(|judged| (&*judged.unit.place, judged.held.as_ref())).collect();
    for unit in marked {
        let fate = match held.get(&*unit.place) {
            Some(Some(why)) => Fate::Kept((*why).clone()),
            _ if now_ms() > marked_ms.saturating_add(DELETE_WITHIN_MS) => Fate::Kept("deleting took too long".into()),
            _ => {
                delete(store, &unit).await?;
                Fate::Deleted
            }
        };
        store.delete(&keys::condemned(&unit.place)).await?;
        fates.push((unit, fate));
    }
    Ok(fates)
}

/// Whether the mark is ours. One that is older than a day is of somebody who died.
async fn mark(store: &Store, place: &str, by: &str) -> Result<bool> {
    let key = keys::condemned(place);
    for _ in 0..2 {
        let ours = Condemned { place: place.into(), by: by.into(), at_ms: now_ms() };
        if store.create(&key, codec::encode_document(&ours).into()).await? == Created::New {
            return Ok(true);
        }
        match store.document::<Condemned>(&key).await? {
            Some(theirs) if theirs.at_ms.saturating_add(MARK_MS) > now_ms() => return Ok(theirs.by == by),
            _ => store.delete(&key).await?,
        }
    }
    Ok(false)
}

/// The manifest first: what has none can't be named any more.
async fn delete(store: &Store, unit: &Unit) -> Result<()> {
    if matches!(unit.kind, Kind::Brought) || place_of(&unit.place).is_some() {
        return store.delete(&unit.place).await;
    }
    store.delete(&manifest_key(&unit.place)).await?;
    let mut below = store.objects_below(&unit.place, |_| true).await?;
    if matches!(unit.kind, Kind::Report | Kind::Dataset) {
        below.extend(store.objects_below(&format!("{}/{}/data", keys::JOBS, name_of(&unit.place)), |_| true).await?);
    }
    let deletes = futures::stream::iter(below).map(|object| async move { store.delete(&object.key).await });
    deletes.buffer_unordered(AT_ONCE).try_collect::<()>().await
}

fn manifest_key(place: &str) -> String {
    let name = if place.starts_with(keys::MODELS) { "model.json" } else { "manifest.json" };
    format!("{place}/{name}")
}

/// What lies in the store.
struct Inventory {
    units: Vec<Unit>,
    references: References,
    newest_versions: Vec<String>,
}

async fn inventory(store: &Store) -> Result<Inventory> {
    let (mut units, mut references) = (Vec::new(), References::default());
    let kinds = [
        (keys::DATASETS, Kind::Dataset),
        (keys::MODELS, Kind::Model),
        (keys::GALLERIES, Kind::Generation),
        (keys::REPORTS, Kind::Report),
        (keys::SEARCHES, Kind::Answers),
    ];
    for (folder, kind) in kinds {
        let mut folders: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        for object in store.objects_below(folder, |_| true).await? {
            if let Some(place) = place_of(&object.key) {
                folders.entry(place.into()).or_default().push(object);
            }
        }
        let reads = futures::stream::iter(folders).map(|(place, objects)| unit(store, kind, place, objects));
        let read: Vec<Found> = reads.buffered(AT_ONCE).try_collect().await?;
        for Found { unit, orphans, manifest } in read {
            manifest.iter().for_each(|manifest| references.add_manifest(&unit.place, manifest));
            units.push(unit);
            units.extend(orphans);
        }
    }
    for folder in BROUGHT {
        let brought = store.objects_below(folder, |_| true).await?;
        units.extend(brought.into_iter().map(|object| single(Kind::Brought, object)));
    }
    let newest_versions = newest_versions(&units);
    Ok(Inventory { units, references, newest_versions })
}

fn single(kind: Kind, object: Listed) -> Unit {
    Unit { kind, place: object.key, objects: 1, bytes: object.bytes, modified_ms: object.modified_ms }
}

/// A folder, and what of it nothing refers to.
struct Found {
    unit: Unit,
    orphans: Vec<Unit>,
    manifest: Option<serde_json::Value>,
}

async fn unit(store: &Store, kind: Kind, place: String, objects: Vec<Listed>) -> Result<Found> {
    let manifest_key = manifest_key(&place);
    let newest = objects.iter().map(|object| object.modified_ms).max().unwrap_or_default();
    let sum = |objects: &[Listed]| (objects.len() as u64, objects.iter().map(|object| object.bytes).sum());
    let Some(written) = objects.iter().find(|object| object.key == manifest_key).map(|object| object.modified_ms)
    else {
        let (objects, bytes) = sum(&objects);
        let unit = Unit { kind: Kind::Orphans, place, objects, bytes, modified_ms: newest };
        return Ok(Found { unit, orphans: Vec::new(), manifest: None });
    };
    let manifest = document(store, &manifest_key).await?;
    let named = texts(&manifest);
    // Checkpoints are named by records, which nobody needs to read here: they go with their model. What a dataset version tells of
    // itself lies beside its manifest under a fixed name.
    let (rounds, about) = (format!("{place}/rounds/"), format!("{place}/about.json"));
    let is_part = |object: &Listed| {
        let key = &object.key;
        *key == manifest_key || *key == about || named.contains(key) || key.starts_with(&rounds)
    };
    let (parts, orphans): (Vec<Listed>, Vec<Listed>) = objects.into_iter().partition(is_part);
    let (objects, bytes) = sum(&parts);
    let unit = Unit { kind, place, objects, bytes, modified_ms: written };
    let orphans = orphans.into_iter().map(|object| single(Kind::Orphans, object)).collect();
    Ok(Found { unit, orphans, manifest: Some(manifest) })
}

/// A document of any version. One that can't be read ends retention: what it refers to is not known.
async fn document(store: &Store, key: &str) -> Result<serde_json::Value> {
    let bytes = store.get(key).await?.unwrap_or_default();
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("`{key}` can't be read, so what it refers to is not known"))
            .because(error)
    })
}

fn newest_versions(units: &[Unit]) -> Vec<String> {
    let mut newest: BTreeMap<&str, &Unit> = BTreeMap::new();
    for unit in units.iter().filter(|unit| unit.kind == Kind::Dataset) {
        let (dataset, _) = unit.place.rsplit_once('/').unwrap_or_default();
        let known = newest.entry(dataset).or_insert(unit);
        if (unit.modified_ms, &unit.place) > (known.modified_ms, &known.place) {
            *known = unit;
        }
    }
    newest.into_values().map(|unit| unit.place.clone()).collect()
}

async fn holders(store: &Store) -> Result<Holders> {
    let releases = documents::<Release>(store, store.list(keys::RELEASES).await?).await?;
    let promotions = documents::<Hold>(store, store.list(keys::HOLDS).await?).await?;
    let schedules = schedules::texts_of_all(store).await?;
    Ok(Holders { releases, jobs: live_jobs(store).await?, schedules, promotions, newest_versions: Vec::new() })
}

async fn documents<M: codec::Message>(store: &Store, keys: Vec<String>) -> Result<Vec<M>> {
    let reads = futures::stream::iter(keys).map(|key| async move { store.document::<M>(&key).await });
    let read: Vec<Option<M>> = reads.buffered(AT_ONCE).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}

/// Jobs whose run is open, that are being accepted, or that may be retried.
async fn live_jobs(store: &Store) -> Result<Vec<LiveJob>> {
    let is_of_a_run = |key: &str| {
        let mut parts = key.split('/').skip(2);
        matches!(parts.next(), Some("spec.json" | "runs" | "outcomes"))
    };
    let mut jobs: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
    for object in store.objects_below(keys::JOBS, is_of_a_run).await? {
        if let Some(job) = object.key.split('/').nth(1) {
            jobs.entry(job.into()).or_default().push(object);
        }
    }
    let looks = futures::stream::iter(jobs).map(|(job, objects)| live_job(store, job, objects));
    let live: Vec<Option<LiveJob>> = looks.buffered(AT_ONCE).try_collect().await?;
    Ok(live.into_iter().flatten().collect())
}

async fn live_job(store: &Store, job: String, objects: Vec<Listed>) -> Result<Option<LiveJob>> {
    let Ok(job) = JobId::new(job) else { return Ok(None) };
    let numbers = |folder: String| -> BTreeSet<u64> {
        let below = objects.iter().filter(|object| object.key.starts_with(&folder));
        below.filter_map(|object| keys::number_of(&object.key)).collect()
    };
    let (runs, outcomes) = (numbers(keys::job_runs(&job) + "/"), numbers(keys::job_outcomes(&job) + "/"));
    let spec_ms = objects.iter().find(|object| object.key == keys::job_spec(&job)).map(|spec| spec.modified_ms);
    let why = match runs.last() {
        None if spec_ms.is_none_or(|at| at.saturating_add(MARK_MS) < now_ms()) => return Ok(None),
        None => "is being accepted",
        Some(run) if !outcomes.contains(run) => "is running",
        Some(_) => match may_be_retried(store, &objects).await? {
            true => "may be retried",
            false => return Ok(None),
        },
    };
    let spec = document(store, &keys::job_spec(&job)).await;
    let texts = match spec {
        Ok(spec) => Some(texts(&spec)),
        Err(error) if error.is_transient() => return Err(error),
        Err(_) => None,
    };
    Ok(Some(LiveJob { job, why, texts }))
}

/// By its newest outcome. One that is long past need not be read; a day more than a retry allows, for one that is under way.
async fn may_be_retried(store: &Store, objects: &[Listed]) -> Result<bool> {
    let newest = objects.iter().rfind(|object| object.key.contains("/outcomes/"));
    let recent = |outcome: &&Listed| outcome.modified_ms.saturating_add(RETRY_MS + MARK_MS) > now_ms();
    let Some(newest) = newest.filter(recent) else {
        return Ok(false);
    };
    let outcome: Option<Outcome> = store.document(&newest.key).await?;
    Ok(outcome.is_some_and(|outcome| !matches!(outcome.result, RunResult::Done { .. })))
}

/// What a spec names of what is about to be deleted. Asked after the job's run was opened.
pub(super) async fn condemned_of(store: &Store, spec: &JobSpec) -> Result<Option<String>> {
    let marks = marks(store).await?;
    if marks.is_empty() {
        return Ok(None);
    }
    let spec = serde_json::from_slice(&codec::encode_document(spec)).unwrap_or_default();
    let named = texts(&spec);
    Ok(marks.into_iter().find(|place| named.contains(name_of(place))))
}

/// Places that are about to be deleted.
async fn marks(store: &Store) -> Result<Vec<String>> {
    let listed = store.list(keys::CONDEMNED).await?;
    let place = |key: &String| {
        let place = key.strip_prefix(keys::CONDEMNED)?.strip_prefix('/')?.strip_suffix(".json")?;
        Some(place.to_string())
    };
    Ok(listed.iter().filter_map(place).collect())
}

/// A promotion's hold. It is taken away by [`release`](Self::release).
#[derive(Debug)]
pub(super) struct Held {
    key: String,
}

impl Held {
    /// Holds some places, or says which of them is about to be deleted.
    pub(super) async fn take(
        store: &Store,
        name: &str,
        places: Vec<String>,
    ) -> Result<std::result::Result<Self, String>> {
        let at_ms = now_ms();
        let held = Self { key: keys::hold(&format!("{name}-{at_ms:x}-{:x}", std::process::id())) };
        store.create_document(&held.key, &Hold { places: places.clone(), at_ms }).await?;
        let marks = marks(store).await?;
        match places.into_iter().find(|place| marks.contains(place)) {
            None => Ok(Ok(held)),
            Some(condemned) => {
                held.release(store).await;
                Ok(Err(condemned))
            }
        }
    }

    /// Lets go. Should that be lost, the hold ends after a day.
    pub(super) async fn release(self, store: &Store) {
        if let Err(error) = store.delete(&self.key).await {
            tracing::warn!(key = %self.key, %error, "a hold is left behind");
        }
    }
}
