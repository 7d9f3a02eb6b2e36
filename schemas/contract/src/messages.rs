//! Events, the coordinator's API, presence and placement.

mod past;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, Message, OldBody, Writer};
use crate::documents::{DatasetManifest, GateDecision, Release};
use crate::ids::{JobId, Name, RunNumber, TaskId, WorkerId};
use crate::jobs::{
    DeviceClass, GenerationRef, JobRequest, JobSpec, Priority, RequestOf, RequestV3, RunResult, SpecOf, SpecV3,
    TaskFailure, TaskKind, V1, V2,
};
use crate::schedules::{ScheduleDetail, ScheduleRequest, ScheduleStatus};
use crate::usage::{Estimate, JobUsage};

/// Something happened to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskEvent {
    /// Its job.
    pub job: JobId,
    /// The run of the message.
    pub run: RunNumber,
    /// Its task.
    pub task: TaskId,
    /// Who says so.
    pub worker: WorkerId,
    /// Names this attempt: unique, the same in all its events.
    pub attempt: String,
    /// When, milliseconds since 1970, by the worker's clock.
    pub at_ms: u64,
    /// What.
    pub what: TaskNews,
}

impl Message for TaskEvent {
    const NAME: &'static str = "task-event";
    const VERSION: u16 = 1;
}

/// What happened to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskNews {
    /// An attempt starts.
    Started,
    /// It goes on.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all.
        of: u64,
        /// For people: `loss 0.093`.
        note: String,
    },
    /// The record exists.
    Done {
        /// Whether this attempt made it, or found it made.
        adopted: bool,
        /// Time on the device thread, milliseconds.
        device_ms: u64,
    },
    /// The attempt failed.
    Failed {
        /// The error with its causes.
        error: String,
        /// Whether another attempt may help.
        retryable: bool,
    },
    /// The attempt gave the message back (drain): no failure.
    Released,
}

impl TaskNews {
    /// Last token of the event's subject.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Progress { .. } => "progress",
            Self::Done { .. } => "done",
            Self::Failed { .. } => "failed",
            Self::Released => "released",
        }
    }
}

/// Something happened to a job as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobEvent {
    /// The job.
    pub job: JobId,
    /// The run.
    pub run: RunNumber,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    pub what: JobNews,
}

impl Message for JobEvent {
    const NAME: &'static str = "job-event";
    const VERSION: u16 = 1;
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobNews {
    /// A run was opened.
    Submitted,
    /// A run was closed.
    Closed(RunResult),
}

impl JobNews {
    /// Last token of the event's subject.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Closed(_) => "closed",
        }
    }
}

/// A message that was given up, with the reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its job.
    pub job: JobId,
    /// The run.
    pub run: RunNumber,
    /// The task with its last error and counts.
    pub failure: TaskFailure,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
}

impl Message for DeadLetter {
    const NAME: &'static str = "dead-letter";
    const VERSION: u16 = 1;
}

/// A request to the coordinator; the verb is the last token of its subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApiRequest<R = JobRequest> {
    /// Accept a job.
    Submit(R),
    /// Close the open run as cancelled.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// Open a new run of a job that failed or was cancelled.
    Retry {
        /// The job.
        job: JobId,
    },
    /// List jobs, newest first.
    List {
        /// Most rows.
        limit: u32,
    },
    /// One job in full.
    Show {
        /// The job.
        job: JobId,
    },
    /// Make a release by hand, of a finished generation, without a gate.
    Promote {
        /// The alias.
        alias: Name,
        /// The generation; its model embeds the queries.
        generation: GenerationRef,
        /// The report that belongs to it.
        report: Option<JobId>,
    },
    /// Make a release that brings an older one back.
    Rollback {
        /// The alias.
        alias: Name,
        /// Number of the older release; the one before what serves without.
        to: Option<u64>,
    },
    /// All releases of an alias, oldest first; of every alias without.
    Releases {
        /// The alias.
        alias: Option<Name>,
    },
    /// All datasets with their newest version.
    Datasets,
    /// Workers, queues, placement.
    Status,
    /// Compare store and broker now and mend what is missing.
    Reconcile,
    /// What a job would take; nothing is done.
    Plan(R),
    /// What jobs used on devices.
    Usage {
        /// The jobs.
        jobs: Vec<JobId>,
        /// Also by phase, and with their estimates.
        in_full: bool,
    },
    /// When workers were last seen, also those that are gone.
    Sightings,
    /// Schedules.
    Schedule(ScheduleRequest),
}

impl Message for ApiRequest {
    const NAME: &'static str = "api-request";
    const VERSION: u16 = 6;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(old) = past::request_v1(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::request_v2(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::request_v3(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::request_v4(self) {
            return writer.newest(&old);
        }
        match past::request_v5(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<ApiRequest<RequestOf<V1>>>(Self::NAME).map(ApiRequest::upgraded),
            2 => body.read::<ApiRequest<RequestOf<V2>>>(Self::NAME).map(ApiRequest::upgraded),
            3 => body.read::<ApiRequest<RequestV3>>(Self::NAME).map(ApiRequest::upgraded),
            // Version 5 only added schedules, version 6 trainings in rounds.
            _ => body.read(Self::NAME),
        }
    }
}

impl ApiRequest {
    /// Last token of the subject.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Submit(_) => "submit",
            Self::Cancel { .. } => "cancel",
            Self::Retry { .. } => "retry",
            Self::List { .. } => "list",
            Self::Show { .. } => "show",
            Self::Promote { .. } => "promote",
            Self::Rollback { .. } => "rollback",
            Self::Releases { .. } => "releases",
            Self::Datasets => "datasets",
            Self::Status => "status",
            Self::Reconcile => "reconcile",
            Self::Plan(_) => "plan",
            Self::Usage { .. } => "usage",
            Self::Sightings => "sightings",
            Self::Schedule(_) => "schedule",
        }
    }
}

/// The coordinator's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApiReply<S = JobSpec> {
    /// Of submit, cancel, retry.
    Job(JobSummary),
    /// Of list.
    Jobs(Vec<JobSummary>),
    /// Of show.
    JobDetail(Box<JobDetail<S>>),
    /// Of promote and rollback.
    Release(Box<Release>),
    /// Of releases.
    Releases(Vec<Release>),
    /// Of datasets: the manifests without their skipped rows.
    Datasets(Vec<DatasetManifest>),
    /// Of status.
    Status(Status),
    /// Of reconcile: tasks that were published again.
    Reconciled {
        /// How many.
        republished: u64,
    },
    /// Nothing was done.
    Error(ApiError),
    /// Of plan.
    Estimate(Box<Estimate>),
    /// Of usage, in the order asked for; jobs that are not known are left out.
    Usage(Vec<JobUsage>),
    /// Of sightings, by worker.
    Sightings(Vec<Sighting>),
    /// Of a list of schedules, by name; of a change, that one.
    Schedules(Vec<ScheduleStatus>),
    /// Of one schedule.
    Schedule(Box<ScheduleDetail>),
}

impl Message for ApiReply {
    const NAME: &'static str = "api-reply";
    const VERSION: u16 = 6;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(old) = past::reply_v1(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::reply_v2(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::reply_v3(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::reply_v4(self) {
            return writer.newest(&old);
        }
        match past::reply_v5(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<ApiReply<SpecOf<V1>>>(Self::NAME).map(ApiReply::upgraded),
            2 => body.read::<ApiReply<SpecOf<V2>>>(Self::NAME).map(ApiReply::upgraded),
            3 => body.read::<ApiReply<SpecV3>>(Self::NAME).map(ApiReply::upgraded),
            // Version 5 only added schedules, version 6 trainings in rounds.
            _ => body.read(Self::NAME),
        }
    }
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What the caller can do about it.
    pub kind: ApiErrorKind,
    /// For people.
    pub message: String,
    /// The nearest names, when a name was wrong.
    pub nearest: Vec<String>,
}

/// Kinds of [`ApiError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ApiErrorKind {
    /// The request can't be met as it is.
    Invalid,
    /// A name is wrong.
    NotFound,
    /// Something else stands there already.
    Conflict,
    /// Store or broker can't be reached; try again.
    Unavailable,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// A run is open.
    Running,
    /// Done.
    Done,
    /// Done, and the gate refused the promotion.
    Refused,
    /// Failed.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl JobState {
    /// The state after a run that ended so.
    pub fn after(result: &RunResult) -> Self {
        match result {
            RunResult::Done { gate: Some(gate), .. } if !gate.passed => Self::Refused,
            RunResult::Done { .. } => Self::Done,
            RunResult::Failed { .. } => Self::Failed,
            RunResult::Cancelled => Self::Cancelled,
        }
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A job in one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobSummary {
    /// Its id.
    pub job: JobId,
    /// `ingest`, `train`, `embed`, `evaluate`, `pipeline`.
    pub kind: String,
    /// Where it stands.
    pub state: JobState,
    /// The newest run.
    pub run: RunNumber,
    /// Tasks with a record.
    pub done: u64,
    /// Tasks known so far; more may come when a stage is expanded.
    pub tasks: u64,
    /// When the newest run was opened, milliseconds since 1970.
    pub opened_ms: u64,
    /// When it was closed.
    pub closed_ms: Option<u64>,
}

/// A job in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "JobDetail")]
pub struct JobDetail<S = JobSpec> {
    /// In one line.
    pub summary: JobSummary,
    /// What was accepted.
    pub spec: S,
    /// Its stages.
    pub stages: Vec<StageProgress>,
    /// Tasks that are being worked on.
    pub active: Vec<ActiveTask>,
    /// Tasks that failed at least once, with their last error.
    pub troubles: Vec<TaskFailure>,
    /// Time on devices so far, milliseconds.
    pub device_ms: u64,
    /// How the last run ended.
    pub result: Option<RunResult>,
    /// What the gate said.
    pub gate: Option<GateDecision>,
}

/// A stage of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StageProgress {
    /// Its name.
    pub name: String,
    /// Tasks with a record.
    pub done: u64,
    /// Tasks; 0 while a stage waits for the task that tells its tasks.
    pub tasks: u64,
}

/// A task that is being worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActiveTask {
    /// Its id.
    pub task: TaskId,
    /// By whom.
    pub worker: WorkerId,
    /// Units done.
    pub progress: u64,
    /// Units in all, 0 when not known.
    pub of: u64,
    /// For people.
    pub note: String,
}

/// The system at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Id of the leading coordinator.
    pub leader: WorkerId,
    /// Live workers.
    pub workers: Vec<Presence>,
    /// Queues that are not empty.
    pub queues: Vec<Queue>,
    /// What searchers hold.
    pub placement: Vec<Placement>,
    /// Jobs with an open run.
    pub open_jobs: u64,
}

/// Messages of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Queue {
    /// Kind of task.
    pub kind: TaskKind,
    /// Device class.
    pub device: DeviceClass,
    /// Priority.
    pub priority: Priority,
    /// Not yet delivered.
    pub waiting: u64,
    /// Delivered and not acknowledged.
    pub running: u64,
}

/// A live worker; its entry in the presence bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Presence {
    /// Its id.
    pub worker: WorkerId,
    /// Kinds of tasks that it takes.
    pub roles: Vec<TaskKind>,
    /// Whether it serves searches.
    pub searches: bool,
    /// Its device: `cpu`, `cuda:0`.
    pub device: String,
    /// Class of its device.
    pub device_class: DeviceClass,
    /// Host name.
    pub host: String,
    /// Version of the program.
    pub version: String,
    /// The task at hand: `<job>/<task>`.
    pub task: Option<String>,
    /// Whether it takes no new tasks.
    pub draining: bool,
}

impl Message for Presence {
    const NAME: &'static str = "presence";
    const VERSION: u16 = 1;
}

/// When the leader last heard of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sighting {
    /// The worker.
    pub worker: WorkerId,
    /// Its host.
    pub host: String,
    /// How long ago, milliseconds.
    pub ago_ms: u64,
    /// Whether it counts as live.
    pub live: bool,
}

/// What a searcher holds; its entry in the placement bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    /// The searcher.
    pub worker: WorkerId,
    /// Generations of which it holds shards, ready to answer.
    pub held: Vec<HeldShards>,
    /// What it could not load, in words.
    pub troubles: Vec<String>,
}

impl Placement {
    /// How a trouble begins that concerns a generation as a whole, or one of its shards.
    pub fn trouble_with(generation: &GenerationRef, shard: Option<u32>) -> String {
        let of = format!("generation `{}`: ", generation.generation);
        shard.map_or(of.clone(), |shard| format!("shard {shard} of {of}"))
    }
}

impl Message for Placement {
    const NAME: &'static str = "placement";
    const VERSION: u16 = 1;
}

/// The entry of the leading coordinator in the lease bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Who leads.
    pub coordinator: WorkerId,
}

impl Message for Leader {
    const NAME: &'static str = "lease";
    const VERSION: u16 = 1;
}

/// Shards of one generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldShards {
    /// The generation.
    pub generation: GenerationRef,
    /// Its shards.
    pub shards: Vec<u32>,
    /// Whether the model that embeds its queries is loaded too.
    pub model_ready: bool,
}

/// Entry of an alias in the alias bucket: what searchers load and what roots serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasState {
    /// The newest release.
    pub serving: Option<Served>,
    /// What is to be loaded beside it before a switch.
    pub loading: Option<Served>,
}

impl Message for AliasState {
    const NAME: &'static str = "alias";
    const VERSION: u16 = 1;
}

/// What a release serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Number of the release; of one that is being loaded, the number that it will have.
    pub release: u64,
    /// Embeds the queries.
    pub model: JobId,
    /// Answers them.
    pub generation: GenerationRef,
}
