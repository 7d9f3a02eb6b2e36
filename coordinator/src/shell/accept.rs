//! Accepting, cancelling and retrying jobs. Each is one create-if-absent in the store; what follows from it any
//! leader can repeat.

use likeness_contract::ids::{JobId, RunNumber};
use likeness_contract::jobs::{JobRequest, JobSpec, JobWork, Outcome, Plan, Run, RunResult};
use likeness_contract::keys;
use likeness_contract::messages::{JobEvent, JobNews, JobState, JobSummary};
use likeness_contract::subjects;

use super::api::{Answer, Api, conflict, unavailable};
use super::context::now_ms;
use super::leader::Input;
use super::recover::{self, Found};
use super::{facts, retention, usage};
use crate::core::job::{Job, Progress};
use crate::core::planner;
use crate::core::reactor::Reactor;
use crate::core::resolve::{self, Facts, Resolved};

/// A failed job can be retried for so long; afterwards its data may be collected.
pub(super) const RETRY_MS: u64 = 30 * 24 * 3600 * 1000;

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
    begin(api, request, id, spec_accepted, &facts).await
}

/// The same under an id that follows from what asks for it, of a schedule's firing. Whatever the job was accepted as before, by whoever came to
/// it first, it is: a dataset may have a newer version since.
pub(super) async fn submit_as(api: &Api, id: &JobId, request: &JobRequest) -> Answer<JobSummary> {
    let (store, key) = (&api.cx.store, keys::job_spec(id));
    let facts = facts::gather(&api.cx, &api.inbox, request).await?;
    let spec = match store.document::<JobSpec>(&key).await? {
        Some(spec) => spec,
        None => {
            let Resolved { id: _, spec } = resolve::resolve(request, &facts)?;
            store.create_document::<JobSpec>(&key, &spec).await?.document
        }
    };
    begin(api, request, id.clone(), spec, &facts).await
}

/// What follows once the spec is stored.
async fn begin(
    api: &Api,
    request: &JobRequest,
    id: JobId,
    spec_accepted: JobSpec,
    facts: &Facts,
) -> Answer<JobSummary> {
    let store = &api.cx.store;
    let earlier = facts::earlier(store, &api.inbox, &id, &spec_accepted).await?;
    let plan = planner::copy_from(planner::plan(&id, &spec_accepted), &earlier);
    let plan = store.create_document::<Plan>(&keys::job_plan(&id), &plan).await?;
    let run = match recover::newest_run(store, &id).await? {
        Some(run) => {
            made_is_there(api, &id, &spec_accepted).await?;
            run
        }
        None => {
            usage::keep_estimate(api, &id, &spec_accepted, &plan.document, facts).await;
            let run = open_run(api, &id, RunNumber(1)).await?;
            let still = still_there(api, request, &spec_accepted).await;
            unless_condemned(api, &id, run, still).await?;
            run
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
    let spec = api.job(id, |job| job.spec.clone()).await?;
    let still = not_condemned(api, &spec).await;
    unless_condemned(api, id, next, still).await?;
    announce(api, id, next).await?;
    adopt(api, id).await
}

/// Whether what a job names is there, and stays: its run is open, so that from now on retention holds it. What was deleted just
/// before is missed here, what is being deleted is marked.
async fn still_there(api: &Api, request: &JobRequest, spec: &JobSpec) -> Answer<()> {
    not_condemned(api, spec).await?;
    let facts = facts::gather(&api.cx, &api.inbox, request).await?;
    resolve::resolve(request, &facts)?;
    Ok(())
}

async fn not_condemned(api: &Api, spec: &JobSpec) -> Answer<()> {
    match retention::condemned_of(&api.cx.store, spec).await? {
        None => Ok(()),
        Some(place) => {
            Err(conflict(format!("`{place}` is being deleted by `likeness retention`: the job can't begin")))
        }
    }
}

/// Closes a run again that can't begin; the job may be retried.
async fn unless_condemned(api: &Api, id: &JobId, run: RunNumber, still: Answer<()>) -> Answer<()> {
    if still.is_err() {
        let proposal = Outcome { job: id.clone(), run, closed_ms: now_ms(), result: RunResult::Cancelled };
        api.cx.store.create_document(&keys::job_outcome(id, run), &proposal).await?;
        adopt(api, id).await?;
    }
    still
}

/// What a job that is done has made may be deleted since: asked again, it would do nothing and leave nothing.
async fn made_is_there(api: &Api, id: &JobId, spec: &JobSpec) -> Answer<()> {
    let Some(made) = made(id, spec) else { return Ok(()) };
    let done = match recover::job(&api.cx.store, id).await? {
        Found::Closed(closed) => matches!(closed.outcome.result, RunResult::Done { .. }),
        Found::Open(_) | Found::Unaccepted => false,
    };
    if done && api.cx.store.size(&made).await?.is_none() {
        return Err(conflict(format!(
            "job `{id}` was done before, but what it made was deleted (`{made}`): give another `--id` to do it again"
        )));
    }
    Ok(())
}

/// The manifest that a job leaves behind.
fn made(id: &JobId, spec: &JobSpec) -> Option<String> {
    match &spec.work {
        JobWork::Ingest { dataset, .. } => Some(keys::dataset_manifest(dataset, id)),
        JobWork::Train(_) => Some(keys::model_manifest(id)),
        JobWork::Embed { embed, .. } | JobWork::EmbedAnew { embed, .. } | JobWork::Pipeline { embed, .. } => {
            Some(keys::generation_manifest(&embed.gallery, id))
        }
        JobWork::Import(import) => Some(keys::generation_manifest(&import.gallery, id)),
        JobWork::Evaluate { .. } => Some(keys::report_manifest(id)),
        JobWork::Search(_) => Some(keys::search_manifest(id)),
    }
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
