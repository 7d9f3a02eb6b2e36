//! Jobs as the store knows them. The store is the truth: a new leader starts from here, and events only say where
//! to look next.

use std::collections::HashSet;

use futures::StreamExt;
use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{JobSpec, Outcome, Plan, Run, RunResult, TaskRecord};
use likeness_contract::keys;
use likeness_link::error::chain;
use likeness_link::{Error, ErrorKind, Result, Store};

use crate::core::job::{ClosedJob, OpenedJob, Tally};

/// Jobs that are read at once.
const AT_ONCE: usize = 16;

/// What the store says of a job.
#[derive(Debug)]
pub(super) enum Found {
    /// Its newest run is open.
    Open(Box<OpenedJob>),
    /// Its newest run is closed.
    Closed(Box<ClosedJob>),
    /// It was never accepted: no run was opened.
    Unaccepted,
}

/// Every job. One that can't be read is left out, loudly: the others must go on.
pub(super) async fn all_jobs(store: &Store) -> Result<Vec<(JobId, Found)>> {
    let names = store.children(keys::JOBS).await?;
    let reads = futures::stream::iter(names).map(|name| async move {
        let id = JobId::new(name).map_err(|e| Error::new(ErrorKind::Corrupt, "a folder below `jobs`").because(e))?;
        Ok((id.clone(), job(store, &id).await?))
    });
    let read: Vec<Result<(JobId, Found)>> = reads.buffer_unordered(AT_ONCE).collect().await;
    let mut jobs = Vec::with_capacity(read.len());
    for found in read {
        match found {
            Ok(found) => jobs.push(found),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => tracing::error!(error = %chain(&error), "a job is left out, somebody must mend it"),
        }
    }
    Ok(jobs)
}

/// One job.
pub(super) async fn job(store: &Store, id: &JobId) -> Result<Found> {
    let Some(number) = newest_run(store, id).await? else { return Ok(Found::Unaccepted) };
    let spec: JobSpec = store.require(&keys::job_spec(id)).await?;
    let run: Run = store.require(&keys::job_run(id, number)).await?;
    let accepted_ms = match number {
        RunNumber(1) => run.opened_ms,
        _ => store.require::<Run>(&keys::job_run(id, RunNumber(1))).await?.opened_ms,
    };
    if let Some(outcome) = store.document::<Outcome>(&keys::job_outcome(id, number)).await? {
        return Ok(Found::Closed(Box::new(ClosedJob { spec, accepted_ms, run, outcome })));
    }
    let (plan, records, tellers) = progress(store, id).await?;
    Ok(Found::Open(Box::new(OpenedJob { spec, plan, accepted_ms, run, records, tellers })))
}

/// The newest run; none of a job that was not accepted.
pub(super) async fn newest_run(store: &Store, id: &JobId) -> Result<Option<RunNumber>> {
    let runs = store.list(&keys::job_runs(id)).await?;
    let numbers = runs.iter().filter_map(|key| keys::number_of(key)).filter_map(|n| u32::try_from(n).ok());
    Ok(numbers.max().map(RunNumber))
}

pub(super) async fn progress(store: &Store, id: &JobId) -> Result<(Plan, HashSet<TaskId>, Vec<TaskRecord>)> {
    let plan: Plan = store.require(&keys::job_plan(id)).await?;
    let records = records(store, id).await?;
    let mut tellers = Vec::new();
    let told: HashSet<&TaskId> = plan.stages.iter().filter_map(|stage| stage.expands.as_ref()).collect();
    for task in told.into_iter().filter(|task| records.contains(task)) {
        // One that can't be read is looked for again by the core, which then fails its task by name.
        match store.require(&keys::task_record(id, task)).await {
            Ok(record) => tellers.push(record),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => tracing::warn!(job = %id, %task, error = %chain(&error), "a record can't be read"),
        }
    }
    Ok((plan, records, tellers))
}

/// Tasks with a record.
pub(super) async fn records(store: &Store, id: &JobId) -> Result<HashSet<TaskId>> {
    let listed = store.list(&keys::task_records(id)).await?;
    let task = |key: &String| TaskId::new(key.rsplit('/').next()?.strip_suffix(".json")?).ok();
    Ok(listed.iter().filter_map(task).collect())
}

/// What was done in a job that ended before this leader began. Only `in_full` every record is read.
pub(super) async fn tally(store: &Store, id: &JobId, closed: ClosedJob, in_full: bool) -> Result<Tally> {
    let (plan, records, tellers) = progress(store, id).await?;
    let device_ms = if in_full { Some(device_ms(store, id, &records).await) } else { None };
    let ClosedJob { spec, accepted_ms, run, outcome } = closed;
    let (_, run) = OpenedJob { spec, plan, accepted_ms, run, records, tellers }.open();
    let mut tally = Tally::of(&run, device_ms);
    if let RunResult::Failed { failures } = outcome.result {
        tally.troubles = failures;
    }
    Ok(tally)
}

/// Time on devices by the records; a record that can't be read counts nothing.
async fn device_ms(store: &Store, id: &JobId, records: &HashSet<TaskId>) -> u64 {
    let keys: Vec<String> = records.iter().map(|task| keys::task_record(id, task)).collect();
    let reads = futures::stream::iter(keys).map(|key| async move { store.document::<TaskRecord>(&key).await });
    let times = reads.buffer_unordered(AT_ONCE).map(|record| record.ok().flatten().map_or(0, |r| r.device_ms));
    times.fold(0, |sum, ms| async move { sum + ms }).await
}
