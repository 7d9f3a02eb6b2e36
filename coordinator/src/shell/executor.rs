//! Does what the core wants done, again and again until it is done, the run is closed or this process no longer
//! leads.
//!
//! What concerns the broker is done in order for each job: a purge comes before the publishes that follow it. What
//! concerns the store has no order, for whatever comes of it is decided by a create-if-absent. Everything is lost
//! without harm when the process dies: the next leader comes to the same wants from the same store.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use likeness_contract::codec::{self, Encoding};
use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{Outcome, RunResult, TaskMessage, TaskRecord};
use likeness_contract::messages::{DeadLetter, JobEvent, JobNews, JobState};
use likeness_contract::{keys, subjects};
use likeness_link::error::chain;
use likeness_link::telemetry::metrics::metrics;
use likeness_link::{ErrorKind, Published, Result};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backoff::Backoff;
use super::context::{Context, now_ms};
use super::leader::{Inbox, Input};
use super::{notify, promote, recover, usage};
use crate::core::job::Job;
use crate::core::outbox::{Effect, Outbox};

/// Reads and writes of the store that are under way at once.
const STORE_AT_ONCE: usize = 32;

/// See the module.
pub(super) struct Executor {
    hands: Hands,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What the tasks of the executor share.
#[derive(Clone)]
struct Hands {
    cx: Arc<Context>,
    inbox: Inbox,
    open: OpenRuns,
    /// Effects on the broker that wait, by job. A job has an entry while a task works on them; the window bounds
    /// their number.
    lanes: Arc<Mutex<HashMap<JobId, VecDeque<Effect>>>>,
    store_permits: Arc<Semaphore>,
}

/// Runs that are open, for those who wait to do something for them.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenRuns(Arc<Mutex<HashMap<JobId, RunNumber>>>);

impl OpenRuns {
    /// Whether this run is open.
    pub(super) fn contains(&self, job: &JobId, run: RunNumber) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(job) == Some(&run)
    }
}

impl Executor {
    pub(super) fn new(cx: Arc<Context>, inbox: Inbox, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let store_permits = Arc::new(Semaphore::new(STORE_AT_ONCE));
        let hands = Hands { cx, inbox, open: OpenRuns::default(), lanes: Arc::default(), store_permits };
        Self { hands, tasks, stop }
    }

    /// A run is open from now on.
    pub(super) fn note_open(&self, job: &JobId, run: RunNumber) {
        self.hands.open.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone(), run);
    }

    /// A run is closed from now on; a newer one stays open.
    pub(super) fn note_closed(&self, job: &JobId, run: RunNumber) {
        let mut open = self.hands.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(job) == Some(&run) {
            open.remove(job);
        }
    }

    /// What follows from the end of a run beside what the core wants: it is written down what the job used, and
    /// its URLs are told.
    pub(super) fn follow_up(&self, job: &Job, outcome: &Outcome) {
        let (cx, spec, outcome) = (self.hands.cx.clone(), job.spec.clone(), outcome.clone());
        self.spawn(async move {
            let (job, run) = (outcome.job.clone(), outcome.run);
            tokio::join!(usage::keep(&cx, &job, &spec, run), notify::run(cx.clone(), spec.clone(), outcome));
        });
    }

    /// URLs that an earlier leader may not have told. The end of a run that is open now comes by itself.
    pub(super) fn tell_of_past_runs(&self, job: &Job) {
        let open = u32::from(job.state() == JobState::Running);
        let newest = RunNumber(job.run.0 - open);
        self.spawn(notify::runs_of(self.hands.cx.clone(), job.id.clone(), job.spec.clone(), newest));
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(work));
    }

    fn on_broker(&self, job: JobId, effect: Effect) {
        let mut lanes = self.hands.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get_mut(&job) {
            lane.push_back(effect);
            return;
        }
        lanes.insert(job.clone(), VecDeque::from([effect]));
        self.spawn(self.hands.clone().work_off(job));
    }
}

impl Outbox for Executor {
    fn send(&mut self, effect: Effect) {
        let hands = self.hands.clone();
        match effect {
            Effect::Publish { ref message, .. } => self.on_broker(message.job.clone(), effect),
            Effect::PurgeTask { ref job, .. } | Effect::PurgeJob { ref job } => self.on_broker(job.clone(), effect),
            Effect::DeadLetter(ref letter) => self.on_broker(letter.job.clone(), effect),
            Effect::Announce(ref event) => self.on_broker(event.job.clone(), effect),
            Effect::FindRecord { job, run, task } => self.spawn(hands.find_record(job, run, task)),
            Effect::ListRecords { job, run } => self.spawn(hands.list_records(job, run)),
            Effect::FindOutcome { job, run } => self.spawn(hands.find_outcome(job, run)),
            Effect::Close { job, run, result } => self.spawn(hands.close(job, run, result)),
            Effect::Promote(promotion) => {
                let Hands { cx, inbox, open, .. } = hands;
                self.spawn(promote::of_pipeline(cx, inbox, open, promotion));
            }
        }
    }
}

impl Hands {
    async fn work_off(self, job: JobId) {
        while let Some(effect) = self.next(&job) {
            match effect {
                Effect::Publish { subject, message } => self.publish(subject, message).await,
                Effect::PurgeTask { job: _, subject } => self.purge(&subject).await,
                Effect::PurgeJob { job } => self.purge(&subjects::job_tasks(&job)).await,
                Effect::DeadLetter(letter) => self.dead_letter(letter).await,
                Effect::Announce(event) => self.announce(event).await,
                other => tracing::error!(effect = ?other, "no effect on the broker"),
            }
        }
    }

    fn next(&self, job: &JobId) -> Option<Effect> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let next = lanes.get_mut(job).and_then(VecDeque::pop_front);
        if next.is_none() {
            lanes.remove(job);
        }
        next
    }

    async fn tell(&self, news: Input) {
        // Nobody listens when this process no longer leads; then nobody needs to know.
        let _not_leading = self.inbox.send(news).await;
    }

    async fn publish(&self, subject: String, message: TaskMessage) {
        let mut backoff = Backoff::default();
        while self.open.contains(&message.job, message.run) {
            match self.cx.bus.publish_task(subject.clone(), &message).await {
                Ok(Published::New) => {
                    metrics().tasks_published.inc();
                    return;
                }
                Ok(Published::AlreadyThere) => {
                    tracing::debug!(%subject, "lies in the queue already");
                    return;
                }
                Err(error) if error.kind == ErrorKind::Invalid => {
                    let TaskMessage { job, run, task, .. } = message;
                    return self.tell(Input::Unreadable(job, run, task, chain(&error))).await;
                }
                Err(error) => {
                    backoff.wait("a task was not published", &error).await;
                    self.mend(error.kind).await;
                }
            }
        }
    }

    async fn purge(&self, subject: &str) {
        let mut backoff = Backoff::default();
        loop {
            match self.cx.bus.purge_subject(subjects::JOBS_STREAM, subject).await {
                Ok(purged) => return tracing::debug!(subject, purged, "purged"),
                Err(error) if error.kind == ErrorKind::NotFound => return,
                Err(error) => backoff.wait("a purge did not work", &error).await,
            }
        }
    }

    /// Once per run and task: a leader that comes to the same end again finds the letter.
    async fn dead_letter(&self, letter: DeadLetter) {
        let subject = subjects::dead(&letter.job, &letter.failure.task);
        let DeadLetter { job, run, failure, .. } = &letter;
        metrics().dead_letters.inc();
        tracing::error!(%job, task = %failure.task, run = run.0, error = %failure.error, "a task was given up");
        let mut backoff = Backoff::default();
        loop {
            let lies_there = self.last_dead_letter(&subject).await.is_some_and(|last| last.run == letter.run);
            if lies_there {
                return;
            }
            match self.cx.bus.publish_event(subject.clone(), &letter).await {
                Ok(()) => return,
                Err(error) => {
                    backoff.wait("a dead letter was not stored", &error).await;
                    self.mend(error.kind).await;
                }
            }
        }
    }

    async fn last_dead_letter(&self, subject: &str) -> Option<DeadLetter> {
        let stream = self.cx.bus.jetstream().get_stream_no_info(subjects::DEAD_STREAM).await.ok()?;
        let last = stream.get_last_raw_message_by_subject(subject).await.ok()?;
        codec::decode(&last.payload, Encoding::detect(None, &last.payload)).ok()
    }

    async fn announce(&self, event: JobEvent) {
        let JobEvent { job, run, what, .. } = &event;
        if let JobNews::Closed(result) = what {
            metrics().runs.get_or_create(&[("result", result_name(result))]).inc();
        }
        tracing::info!(%job, run = run.0, what = what.name(), "job");
        let subject = subjects::job_event(job, what.name());
        let mut backoff = Backoff::default();
        while let Err(error) = self.cx.bus.publish_event(subject.clone(), &event).await {
            backoff.wait("an event of a job was not stored", &error).await;
            self.mend(error.kind).await;
        }
    }

    /// A stream that is gone is made again.
    async fn mend(&self, kind: ErrorKind) {
        if kind == ErrorKind::NotFound
            && let Err(error) = self.cx.bus.remake_topology().await
        {
            tracing::warn!(error = %chain(&error), "streams and buckets can't be made yet");
        }
    }

    /// Repeats a piece of work on the store until it works, or until the run is closed. What can't be read and
    /// never will be comes back as text.
    async fn on_store<T, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        (job, run): (&JobId, RunNumber),
        work: impl Fn() -> F,
    ) -> Option<std::result::Result<T, String>> {
        let mut backoff = Backoff::default();
        while self.open.contains(job, run) {
            let permit = self.store_permits.acquire().await;
            let done = work().await;
            drop(permit);
            match done {
                Ok(done) => return Some(Ok(done)),
                Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Invalid) => {
                    return Some(Err(chain(&error)));
                }
                Err(error) => backoff.wait(what, &error).await,
            }
        }
        None
    }

    async fn find_record(self, job: JobId, run: RunNumber, task: TaskId) {
        let key = keys::task_record(&job, &task);
        let read = self.on_store("a record can't be read", (&job, run), || self.cx.store.document::<TaskRecord>(&key));
        let news = match read.await {
            None => return,
            Some(Ok(Some(record))) if record.job == job && record.task == task => Input::Record(Box::new(record)),
            Some(Ok(Some(_))) => Input::Unreadable(job, run, task, format!("`{key}` is the record of another task")),
            Some(Ok(None)) => Input::NoRecord(job, run, task),
            Some(Err(error)) => Input::Unreadable(job, run, task, error),
        };
        self.tell(news).await;
    }

    async fn list_records(self, job: JobId, run: RunNumber) {
        let list = || recover::records(&self.cx.store, &job);
        match self.on_store("the records of a job can't be listed", (&job, run), list).await {
            Some(Ok(records)) => self.tell(Input::Records(job, run, records)).await,
            Some(Err(error)) => tracing::error!(%job, error, "the records of a job can't be listed"),
            None => {}
        }
    }

    async fn find_outcome(self, job: JobId, run: RunNumber) {
        let key = keys::job_outcome(&job, run);
        let read = self.on_store("an outcome can't be read", (&job, run), || self.cx.store.document::<Outcome>(&key));
        match read.await {
            Some(Ok(Some(outcome))) => self.tell(Input::Outcome(outcome)).await,
            Some(Err(error)) => tracing::error!(%job, error, "an outcome can't be read, somebody must mend it"),
            Some(Ok(None)) | None => {}
        }
    }

    async fn close(self, job: JobId, run: RunNumber, result: RunResult) {
        let key = keys::job_outcome(&job, run);
        let proposal = Outcome { job: job.clone(), run, closed_ms: now_ms(), result };
        let create = || self.cx.store.create_document(&key, &proposal);
        match self.on_store("an outcome was not stored", (&job, run), create).await {
            Some(Ok(adopted)) => self.tell(Input::Outcome(adopted.document)).await,
            Some(Err(error)) => tracing::error!(%job, error, "an outcome can't be read, somebody must mend it"),
            None => {}
        }
    }
}

fn result_name(result: &RunResult) -> &'static str {
    match result {
        RunResult::Done { .. } => "done",
        RunResult::Failed { .. } => "failed",
        RunResult::Cancelled => "cancelled",
    }
}
