//! Jobs: submit, list, show, cancel, retry, and what happens in them as it happens.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt};
use likeness::core::planner;
use likeness_contract::ids::{JobId, TaskId};
use likeness_contract::jobs::{JobRequest, Plan, Stage};
use likeness_contract::keys;
use likeness_contract::messages::{JobDetail, JobSummary};
use likeness_contract::usage::{Estimate, JobUsage};
use likeness_link::WatchEvent;
use likeness_link::error::chain;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Gateway;
use super::extract::{Asked, At, Body, reply};
use super::problem::{Answer, Problem};

/// A connection without events is kept open by so many comments.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Most tasks of a job that are listed.
const MAX_TASKS: usize = 10_000;

/// How many.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HowMany {
    /// Most jobs that are listed; 50 without.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<u32>,
}

/// Jobs, newest first.
pub async fn list(
    State(gateway): State<Gateway>,
    Asked(HowMany { limit }): Asked<HowMany>,
) -> Answer<Json<Vec<JobSummary>>> {
    let limit = limit.unwrap_or(50);
    if !(1..=1000).contains(&limit) {
        return Err(Problem::malformed(format!("limit {limit} is not in 1–1000")));
    }
    reply(gateway.client().list(limit).await?)
}

/// Accepts a job.
pub async fn submit(
    State(gateway): State<Gateway>,
    Body(request): Body<JobRequest>,
) -> Answer<(StatusCode, Json<JobSummary>)> {
    Ok((StatusCode::ACCEPTED, Json(gateway.client().submit(request).await?)))
}

/// What it would take.
pub async fn plan(State(gateway): State<Gateway>, Body(request): Body<JobRequest>) -> Answer<Json<Estimate>> {
    reply(gateway.client().plan(request).await?)
}

/// One in full.
pub async fn show(State(gateway): State<Gateway>, At(job): At<JobId>) -> Answer<Json<JobDetail>> {
    reply(gateway.client().show(&job).await?)
}

/// Its time on devices.
pub async fn usage(State(gateway): State<Gateway>, At(job): At<JobId>) -> Answer<Json<JobUsage>> {
    let found = gateway.client().usage(vec![job.clone()], true).await?.pop();
    found.map(Json).ok_or_else(|| Problem::not_found(format!("nothing is known of the use of job `{job}`")))
}

/// Closes its open run.
pub async fn cancel(State(gateway): State<Gateway>, At(job): At<JobId>) -> Answer<Json<JobSummary>> {
    reply(gateway.client().cancel(&job).await?)
}

/// Opens a new run.
pub async fn retry(State(gateway): State<Gateway>, At(job): At<JobId>) -> Answer<Json<JobSummary>> {
    reply(gateway.client().retry(&job).await?)
}

/// The tasks of a job.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tasks {
    /// By stage, in the order of the plan.
    stages: Vec<StageTasks>,
    /// Whether there are more than are listed.
    truncated: bool,
}

/// The tasks of one stage.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StageTasks {
    /// Its name.
    name: String,
    /// Its tasks; empty while one has still to tell them.
    tasks: Vec<Task>,
}

/// Where a task stands.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Task {
    /// Its id.
    task: TaskId,
    /// Where it stands.
    state: TaskState,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// It waits.
    Waiting,
    /// A worker is at it.
    Running,
    /// It failed at least once.
    Troubled,
    /// It is done.
    Done,
}

/// The tasks of a job and where each stands.
pub async fn tasks(State(gateway): State<Gateway>, At(job): At<JobId>) -> Answer<Json<Tasks>> {
    let store = gateway.client().store();
    let detail = gateway.client().show(&job).await?;
    let plan: Plan = store.require(&keys::job_plan(&job)).await?;
    let records = store.list(&keys::task_records(&job)).await?;
    let state = |task: &TaskId| {
        if records.binary_search(&keys::task_record(&job, task)).is_ok() {
            TaskState::Done
        } else if detail.active.iter().any(|active| active.task == *task) {
            TaskState::Running
        } else if detail.troubles.iter().any(|trouble| trouble.task == *task) {
            TaskState::Troubled
        } else {
            TaskState::Waiting
        }
    };
    let (mut stages, mut left, mut truncated) = (Vec::new(), MAX_TASKS, false);
    for stage in &plan.stages {
        let ids = ids_of(&gateway, &detail, &job, stage).await?;
        truncated |= ids.len() > left;
        let tasks: Vec<Task> = ids.into_iter().take(left).map(|task| Task { state: state(&task), task }).collect();
        left -= tasks.len();
        stages.push(StageTasks { name: stage.name.clone(), tasks });
    }
    reply(Tasks { stages, truncated })
}

async fn ids_of(gateway: &Gateway, detail: &JobDetail, job: &JobId, stage: &Stage) -> Answer<Vec<TaskId>> {
    let Some(told_by) = &stage.expands else {
        return Ok(stage.tasks.iter().map(|task| task.id.clone()).collect());
    };
    let Some(record) = gateway.client().store().document(&keys::task_record(job, told_by)).await? else {
        return Ok(Vec::new());
    };
    let tasks =
        planner::expand(&detail.spec, job, stage, &record).map_err(|error| Problem::internal(error.to_string()))?;
    Ok(tasks.into_iter().map(|task| task.id).collect())
}

/// Events of a job's newest run as they happen, from its opening on, until it is closed.
pub async fn events(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    At(job): At<JobId>,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let permit = gateway.streams.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Problem::too_many("too many streams of events are open", 5))?;
    let watched = gateway.client().watch(&job).await?;
    let seen = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let stopping = gateway.stopping.clone();
    let events = watched.enumerate().skip(seen.map_or(0, |last| last.saturating_add(1))).map(move |(number, event)| {
        let _held_as_long_as_the_stream = &permit;
        match event {
            Ok(WatchEvent::Task(event)) => told(number, "task", &event),
            Ok(WatchEvent::Job(event)) => told(number, "job", &event),
            Err(error) => told(number, "broken", &Problem::internal(chain(&error))),
        }
    });
    let end = futures::stream::once(async { Ok(Event::default().event("end").data("{}")) });
    let events = events.chain(end).take_until(stopping.cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn told(number: usize, name: &str, what: &impl Serialize) -> Result<Event, Infallible> {
    let text = serde_json::to_string(what).unwrap_or_else(|error| format!("\"{error}\""));
    Ok(Event::default().id(number.to_string()).event(name).data(text))
}
