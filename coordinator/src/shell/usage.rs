//! What jobs used on devices, and what they are expected to use.
//!
//! What a job used is the sum over the records that it has. It is written down once when a run is closed, so that
//! nobody has to read ten thousand records to know it; of a job that was closed before that was done it is found
//! when somebody asks.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt};
use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{JobRequest, JobSpec, JobWork, Plan, TaskRecord};
use likeness_contract::keys;
use likeness_contract::messages::JobState;
use likeness_contract::usage::{Estimate, JobUsage, PhaseUsage, Usage};
use likeness_link::error::chain;
use likeness_link::{Result, Store};

use super::api::{Answer, Api};
use super::context::Context;
use super::{facts, recover};
use crate::core::job::{Job, OpenedJob, Progress};
use crate::core::planner;
use crate::core::reactor::Reactor;
use crate::core::resolve::{self, Facts, Resolved};
use crate::core::usage::{self, Grounds, Known};

/// Records or documents that are read at once.
const AT_ONCE: usize = 32;
/// Most jobs of one question.
const MAX_ASKED: usize = 1000;
/// Jobs of a list whose records are added up at most; the next question does the next.
const MOST_ADDED_UP: usize = 8;
/// Earlier jobs that an estimate is made from at most, the newest.
const HISTORY: usize = 64;

/// What was found once of closed runs: a line of a list must not cost two reads every time.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<HashMap<(JobId, RunNumber), Line>>);

#[derive(Debug, Clone, Copy)]
struct Line {
    device_ms: u64,
    planned_ms: Option<u64>,
}

impl Found {
    fn line(&self, job: &JobId, run: RunNumber) -> Option<Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(job.clone(), run)).copied()
    }

    fn keep(&self, job: &JobId, run: RunNumber, line: Line) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((job.clone(), run), line);
    }
}

/// A job as far as its usage goes.
enum Asked {
    /// What was heard of its run.
    Open {
        device_ms: u64,
        phases: Vec<PhaseUsage>,
    },
    Closed {
        spec: Box<JobSpec>,
        run: RunNumber,
    },
}

/// Answers `usage`.
pub(super) async fn usage(api: &Api, jobs: Vec<JobId>, in_full: bool) -> Answer<Vec<JobUsage>> {
    let ask = move |core: &Reactor| {
        let known = jobs.into_iter().take(MAX_ASKED).filter_map(|id| core.job(&id));
        known.map(|job| (job.id.clone(), asked(job))).collect::<Vec<_>>()
    };
    let asked = api.ask(ask).await?;
    // Records are read for a few jobs at most, so that a question after an upgrade is answered in time.
    let may_add_up = &std::sync::atomic::AtomicUsize::new(MOST_ADDED_UP);
    let answers = futures::stream::iter(asked)
        .map(|(id, asked)| async move { of_job(&api.cx, id, asked, in_full, may_add_up).await })
        .buffered(AT_ONCE);
    Ok(answers.try_collect().await?)
}

fn asked(job: &Job) -> Asked {
    match &job.progress {
        Progress::Closed { .. } => Asked::Closed { spec: Box::new((*job.spec).clone()), run: job.run },
        Progress::Open(run) => {
            let done = run.works().filter_map(|(_, work, device_ms)| Some((work, device_ms?)));
            let phases = usage::by_phase(&job.id, &job.spec, &Known::default(), done);
            Asked::Open { device_ms: job.device_ms(), phases }
        }
    }
}

async fn of_job(
    cx: &Context,
    job: JobId,
    asked: Asked,
    in_full: bool,
    may_add_up: &std::sync::atomic::AtomicUsize,
) -> Result<JobUsage> {
    let estimate = || async { readable(&job, cx.store.document::<Estimate>(&keys::job_estimate(&job)).await) };
    let (spec, run) = match asked {
        Asked::Open { device_ms, phases } => {
            let estimate = estimate().await?;
            let planned_ms = estimate.as_ref().and_then(Estimate::device_ms);
            let usage = JobUsage { device_ms: Some(device_ms), planned_ms, phases, estimate, job };
            return Ok(if in_full { usage } else { JobUsage { phases: Vec::new(), estimate: None, ..usage } });
        }
        Asked::Closed { spec, run } => (spec, run),
    };
    if let Some(Line { device_ms, planned_ms }) = cx.used.line(&job, run).filter(|_| !in_full) {
        return Ok(JobUsage { job, device_ms: Some(device_ms), planned_ms, phases: Vec::new(), estimate: None });
    }
    let estimate = estimate().await?;
    let planned_ms = estimate.as_ref().and_then(Estimate::device_ms);
    let used = match cx.store.document::<Usage>(&keys::job_usage(&job, run)).await {
        Ok(None) if in_full || take_one(may_add_up) => {
            readable(&job, add_up(&cx.store, &job, &spec, run).await.map(Some))?
        }
        read => readable(&job, read)?,
    };
    let device_ms = used.as_ref().map(Usage::device_ms);
    if let Some(device_ms) = device_ms {
        cx.used.keep(&job, run, Line { device_ms, planned_ms });
    }
    let phases = used.map_or(Vec::new(), |used| used.phases);
    let (phases, estimate) = if in_full { (phases, estimate) } else { (Vec::new(), None) };
    Ok(JobUsage { job, device_ms, planned_ms, phases, estimate })
}

fn take_one(left: &std::sync::atomic::AtomicUsize) -> bool {
    use std::sync::atomic::Ordering::Relaxed;
    left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// What is damaged for one job must not hide what the others used.
fn readable<T>(job: &JobId, read: Result<Option<T>>) -> Result<Option<T>> {
    match read {
        Err(error) if !error.is_transient() => {
            tracing::warn!(%job, error = %chain(&error), "what a job used can't be read");
            Ok(None)
        }
        read => read,
    }
}

/// Writes down what a job used, when its run is closed. Whoever asks finds out by himself if that does not work.
pub(super) async fn keep(cx: &Context, job: &JobId, spec: &JobSpec, run: RunNumber) {
    if let Err(error) = add_up(&cx.store, job, spec, run).await {
        tracing::warn!(%job, error = %chain(&error), "what a job used is not written down yet");
    }
}

/// Adds up the records of a job, and writes the sum down for its closed run.
async fn add_up(store: &Store, job: &JobId, spec: &JobSpec, run: RunNumber) -> Result<Usage> {
    let (plan, records, tellers) = recover::progress(store, job).await?;
    let times = times(store, job, records.iter().cloned()).await?;
    let (spec, newest, accepted_ms) = (spec.clone(), opened(job, run), 0);
    let (spec, open) = OpenedJob { spec, plan, accepted_ms, run: newest, records, tellers }.open();
    let done = open.works().filter_map(|(task, work, _)| Some((work, *times.get(task)?)));
    let phases = usage::by_phase(job, &spec, &known(store, &spec).await?, done);
    let usage = Usage { job: job.clone(), run, phases };
    Ok(store.create_document(&keys::job_usage(job, run), &usage).await?.document)
}

/// Only its number matters here.
fn opened(job: &JobId, run: RunNumber) -> likeness_contract::jobs::Run {
    likeness_contract::jobs::Run { job: job.clone(), run, opened_ms: 0 }
}

/// Time on devices by the records; one that can't be read counts nothing.
async fn times(store: &Store, job: &JobId, tasks: impl Iterator<Item = TaskId>) -> Result<HashMap<TaskId, u64>> {
    let reads = futures::stream::iter(tasks).map(|task| async move {
        match store.document::<TaskRecord>(&keys::task_record(job, &task)).await {
            Ok(record) => Ok(record.map(|record| (task, record.device_ms))),
            Err(error) if error.is_transient() => Err(error),
            Err(_damaged) => Ok(None),
        }
    });
    let read: Vec<Option<(TaskId, u64)>> = reads.buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}

/// What a spec names and does not say itself. What is not there any more is not known.
async fn known(store: &Store, spec: &JobSpec) -> Result<Known> {
    match &spec.work {
        JobWork::Embed { model, .. } | JobWork::EmbedAnew { model, .. } => {
            let manifest = facts::model(store, model).await?;
            let attributes = manifest.as_ref().map(|manifest| manifest.vocabulary.len() as u64);
            Ok(Known { model: manifest.map(|manifest| manifest.settings), gallery_rows: None, attributes })
        }
        JobWork::Evaluate { generation, .. } => {
            let Some(manifest) = facts::generation_manifest(store, generation).await? else {
                return Ok(Known::default());
            };
            let model = facts::model(store, manifest.model_name()).await?;
            Ok(Known {
                model: model.map(|model| model.settings),
                gallery_rows: Some(manifest.shards.iter().map(|shard| shard.rows).sum()),
                attributes: Some(manifest.vocabulary.len() as u64),
            })
        }
        _ => Ok(Known::default()),
    }
}

/// Answers `plan`: nothing is stored.
pub(super) async fn plan(api: &Api, request: &JobRequest) -> Answer<Estimate> {
    let facts = facts::gather(&api.cx, &api.inbox, request).await?;
    let Resolved { id, spec } = resolve::resolve(request, &facts)?;
    let plan = planner::plan(&id, &spec);
    estimate(api, &id, &spec, &plan, &facts).await
}

/// Stores what a job is expected to take before its first run opens: later it would be no estimate. A job is
/// accepted without one rather than not.
pub(super) async fn keep_estimate(api: &Api, id: &JobId, spec: &JobSpec, plan: &Plan, facts: &Facts) {
    let kept = async {
        let estimate = estimate(api, id, spec, plan, facts).await.map_err(|refusal| refusal.0.message)?;
        let created = api.cx.store.create_document(&keys::job_estimate(id), &estimate).await;
        created.map_err(|error| chain(&error))
    };
    if let Err(error) = kept.await {
        tracing::warn!(job = %id, error, "no estimate is kept");
    }
}

async fn estimate(api: &Api, id: &JobId, spec: &JobSpec, plan: &Plan, facts: &Facts) -> Answer<Estimate> {
    let known = known(&api.cx.store, spec).await?;
    let history = history(api, id).await?;
    let replicas = u32::try_from(api.cx.settings.replicas).unwrap_or(u32::MAX);
    let grounds = Grounds { known: &known, datasets: &facts.datasets, history: &history, replicas };
    Ok(usage::estimate(id, spec, plan, grounds))
}

/// What the newest jobs used that ended well.
async fn history(api: &Api, but: &JobId) -> Answer<Vec<Usage>> {
    let but = but.clone();
    let newest = move |core: &Reactor| {
        let ended = |job: &&Job| matches!(job.state(), JobState::Done | JobState::Refused) && job.id != but;
        let mut jobs: Vec<&Job> = core.jobs().filter(ended).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.opened_ms));
        jobs.truncate(HISTORY);
        jobs.into_iter().map(|job| (job.id.clone(), job.run)).collect::<Vec<_>>()
    };
    let jobs = api.ask(newest).await?;
    let store = &api.cx.store;
    let reads = futures::stream::iter(jobs)
        .map(|(job, run)| async move { readable(&job, store.document::<Usage>(&keys::job_usage(&job, run)).await) });
    let read: Vec<Option<Usage>> = reads.buffered(AT_ONCE).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}
