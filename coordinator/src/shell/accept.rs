//! Accepting, cancelling and retrying jobs. Each is one create-if-absent in the store; what follows from it any
//! leader can repeat.

use likeness_contract::ids::{JobId, RunNumber};
use likeness_contract::jobs::{JobRequest, JobSpec, Outcome, Plan, Run, RunResult};
use likeness_contract::keys;
use likeness_contract::messages::{JobEvent, JobNews, JobState, JobSummary};
use likeness_contract::subjects;

use super::api::{Answer, Api, conflict, unavailable};
use super::context::now_ms;
use super::leader::Input;
use super::recover::{self, Found};
use super::{facts, usage};
use crate::core::job::{Job, Progress};
use crate::core::planner;
use crate::core::reactor::Reactor;
use crate::core::resolve::{self, Resolved};

/// A failed job can be retried for so long; afterwards its data may be collected.
const RETRY_MS: u64 = 30 * 24 * 3600 * 1000;

/// Accepts a job: the answer comes when spec, plan, run and event are stored.
pub(super) async fn submit(api: &Api, request: &JobRequest) -> Answer<JobSummary> {
    let facts = facts::gather(&api.cx, &api.inbox, request).await?;
    let Resolved { id, spec } = resolve::resolve(request, &facts)?;
    let store = &api.cx.store;
    let accepted = store.create_document::<JobSpec>(&keys::job_spec(&id), &spec).await?;
    let spec_accepted = accepted.document;
    if !resolve::same_job(&spec_accepted, &spec) {
        return Err(conflict(format!("job `{id}` exists already and does something else: give another `--id`")));
    }
    let plan = store.create_document::<Plan>(&keys::job_plan(&id), &planner::plan(&id, &spec_accepted)).await?;
    let run = match recover::newest_run(store, &id).await? {
        Some(run) => run,
        None => {
            usage::keep_estimate(api, &id, &spec_accepted, &plan.document, &facts).await;
            open_run(api, &id, RunNumber(1)).await?
        }
    };
    announce(api, &id, run).await?;
    adopt(api, &id).await
}

/// Closes the open run as cancelled, unless it closed by itself just before.
pub(super) async fn cancel(api: &Api, id: &JobId) -> Answer<JobSummary> {
    let (state, run) = api.job(id, |job| (job.state(), job.run)).await?;
    if state != JobState::Running {
        return Err(conflict(format!("run {run} of job `{id}` has ended already: {}", state.name())));
    }
    let proposal = Outcome { job: id.clone(), run, closed_ms: now_ms(), result: RunResult::Cancelled };
    let outcome = api.cx.store.create_document(&keys::job_outcome(id, run), &proposal).await?.document;
    let state = JobState::after(&outcome.result);
    api.tell(Input::Outcome(outcome)).await?;
    if state != JobState::Cancelled {
        return Err(conflict(format!("run {run} of job `{id}` ended just before: {}", state.name())));
    }
    api.job(id, Job::summary).await
}

/// Opens a new run of a job that failed or was cancelled. Every record is kept.
pub(super) async fn retry(api: &Api, id: &JobId) -> Answer<JobSummary> {
    let (state, run, closed_ms) = api.job(id, |job| (job.state(), job.run, closed_ms(job))).await?;
    match state {
        JobState::Failed | JobState::Cancelled => {}
        JobState::Running => return Err(conflict(format!("job `{id}` is running, there is nothing to retry"))),
        JobState::Done | JobState::Refused => {
            return Err(conflict(format!("job `{id}` is {}, there is nothing to retry", state.name())));
        }
    }
    if closed_ms.saturating_add(RETRY_MS) < now_ms() {
        return Err(conflict(format!("job `{id}` ended more than 30 days ago, its data may be gone: submit it again")));
    }
    let next = open_run(api, id, RunNumber(run.0 + 1)).await?;
    announce(api, id, next).await?;
    adopt(api, id).await
}

fn closed_ms(job: &Job) -> u64 {
    match &job.progress {
        Progress::Open(_) => 0,
        Progress::Closed { outcome, .. } => outcome.closed_ms,
    }
}

/// The run is open when its document exists, whoever created it.
async fn open_run(api: &Api, id: &JobId, number: RunNumber) -> Answer<RunNumber> {
    let run = Run { job: id.clone(), run: number, opened_ms: now_ms() };
    Ok(api.cx.store.create_document(&keys::job_run(id, number), &run).await?.document.run)
}

async fn announce(api: &Api, id: &JobId, run: RunNumber) -> Answer<()> {
    let event = JobEvent { job: id.clone(), run, at_ms: now_ms(), what: JobNews::Submitted };
    let subject = subjects::job_event(id, event.what.name());
    Ok(api.cx.bus.publish_event(subject, &event).await?)
}

/// Gives the core what the store says of a job, and returns where it stands.
async fn adopt(api: &Api, id: &JobId) -> Answer<JobSummary> {
    match recover::job(&api.cx.store, id).await? {
        Found::Open(opened) => api.tell(Input::Opened(id.clone(), opened)).await?,
        Found::Closed(closed) => api.tell(Input::Closed(id.clone(), closed)).await?,
        Found::Unaccepted => return Err(unavailable(format!("the run of job `{id}` is not to be seen yet"))),
    }
    let asked = id.clone();
    let summary = api.ask(move |core: &Reactor| core.job(&asked).map(Job::summary)).await?;
    summary.ok_or_else(|| unavailable(format!("job `{id}` was accepted, the next leader takes it up")))
}
