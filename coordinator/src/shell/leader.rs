//! One loop that owns the core: news goes in, in order, and what must happen goes to the executor.
//!
//! The loop itself never waits for the store or the broker, so no slow answer of either holds up the news.

use std::collections::HashSet;
use std::sync::Arc;

use likeness_contract::documents::GateDecision;
use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{Outcome, TaskRecord};
use likeness_contract::messages::TaskEvent;
use likeness_link::Result;
use likeness_link::telemetry::metrics::metrics;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::{Context, now_ms};
use super::events::{self, Follow};
use super::executor::Executor;
use super::recover::Found;
use super::{api, recover, releases, schedules, watchdog};
use crate::core::job::{ClosedJob, OpenedJob, Tally};
use crate::core::reactor::Reactor;
use crate::core::workers::Workers;

/// News that wait for the loop; more make their bringers wait.
const INBOX: usize = 1024;

/// News for the core.
pub(super) enum Input {
    /// Something happened to a task.
    Event(TaskEvent),
    /// All past events were read.
    Replayed,
    /// The live workers, counted.
    Workers(Workers),
    /// Time passed.
    Tick,
    /// Less time passed: the deadline of a round may be over.
    Deadlines,
    /// The broker may have lost everything.
    BrokerDoubted,
    /// A job has an open run.
    Opened(JobId, Box<OpenedJob>),
    /// A job has no open run.
    Closed(JobId, Box<ClosedJob>),
    /// A run is closed.
    Outcome(Outcome),
    /// A record was read.
    Record(Box<TaskRecord>),
    /// There is no record.
    NoRecord(JobId, RunNumber, TaskId),
    /// There is a record that can't be read.
    Unreadable(JobId, RunNumber, TaskId, String),
    /// The records of a job.
    Records(JobId, RunNumber, HashSet<TaskId>),
    /// The promotion of a pipeline ended.
    Promoted(JobId, RunNumber, Box<GateDecision>, std::result::Result<u64, String>),
    /// What was done in a job that ended before this leader began.
    Tally(JobId, RunNumber, Tally),
    /// A question about the state, answered through whatever the closure holds.
    Ask(Box<dyn FnOnce(&Reactor) + Send>),
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

/// The way into the loop. Cheap to clone.
pub(super) type Inbox = mpsc::Sender<Input>;

/// Leads until `stop`. Fails only while it takes over; afterwards losses are waited out.
pub(super) async fn lead(cx: Arc<Context>, stop: CancellationToken) -> Result<()> {
    let taking_over = take_over(&cx);
    let (core, follow) = tokio::select! {
        done = taking_over => done?,
        () = stop.cancelled() => return Ok(()),
    };
    let (inbox, news) = mpsc::channel(INBOX);
    let tasks = TaskTracker::new();
    let executor = Executor::new(cx.clone(), inbox.clone(), tasks.clone(), stop.clone());
    let serving = api::serve(cx.clone(), inbox.clone()).await?;
    tasks.spawn(stop.clone().run_until_cancelled_owned(events::follow(cx.clone(), inbox.clone(), follow.clone())));
    tasks.spawn(stop.clone().run_until_cancelled_owned(watchdog::watch(cx.clone(), inbox.clone(), follow)));
    let of_schedules = api::Api { cx: cx.clone(), inbox: inbox.clone() };
    tasks.spawn(stop.clone().run_until_cancelled_owned(schedules::keep(of_schedules)));
    tasks.spawn(stop.clone().run_until_cancelled_owned(watchdog::count_workers(cx.clone(), inbox)));
    core.jobs().filter(|job| !job.spec.options.notify.is_empty()).for_each(|job| executor.tell_of_past_runs(job));
    run(core, executor, news, &stop).await;
    drop(serving);
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// The state by the store, and where to follow the events from.
async fn take_over(cx: &Context) -> Result<(Reactor, Arc<Follow>)> {
    let follow = Arc::new(Follow::from_now_on(&cx.bus).await?);
    releases::rebuild_aliases(cx).await?;
    let jobs = recover::all_jobs(&cx.store).await?;
    let patience_ms = 2 * u64::try_from(cx.bus.timings().ack_wait.as_millis()).unwrap_or(u64::MAX / 2);
    let mut core = Reactor::new(patience_ms);
    let mut unannounced = Vec::new();
    let mut held = Vec::new();
    for (id, found) in jobs {
        match found {
            Found::Open(opened) => {
                follow.reach_back_to(opened.run.opened_ms);
                core.on_opened(&id, *opened, now_ms(), &mut held);
            }
            Found::Closed(closed) => {
                unannounced.push(closed.outcome.clone());
                core.on_found_closed(&id, *closed);
            }
            Found::Unaccepted => tracing::debug!(job = %id, "left out: it was never accepted"),
        }
    }
    events::announce_missing(cx, unannounced).await;
    tracing::info!(jobs = core.jobs().count(), open = core.open_jobs().count(), "state read from the store");
    Ok((core, follow))
}

async fn run(mut core: Reactor, mut executor: Executor, mut news: mpsc::Receiver<Input>, stop: &CancellationToken) {
    for job in core.open_jobs() {
        executor.note_open(&job.id, job.run);
    }
    loop {
        let input = tokio::select! {
            () = stop.cancelled() => return,
            input = news.recv() => input,
        };
        let Some(input) = input else { return };
        take(&mut core, &mut executor, input);
    }
}

fn take(core: &mut Reactor, executor: &mut Executor, input: Input) {
    let now_ms = now_ms();
    metrics().open_jobs.set(i64::try_from(core.open_jobs().count()).unwrap_or(i64::MAX));
    match input {
        Input::Event(event) => {
            metrics().task_events.get_or_create(&[("event", event.what.name())]).inc();
            core.on_event(&event, now_ms, executor);
        }
        Input::Replayed => core.on_replayed(now_ms, executor),
        Input::Workers(workers) => core.on_workers(workers, now_ms, executor),
        Input::Tick => core.on_tick(now_ms, executor),
        Input::Deadlines => core.on_deadlines(now_ms, executor),
        Input::BrokerDoubted => core.on_broker_doubted(now_ms, executor),
        Input::Opened(job, opened) => {
            let run = opened.run.run;
            if core.job(&job).is_none_or(|known| known.run < run) {
                executor.note_open(&job, run);
            }
            core.on_opened(&job, *opened, now_ms, executor);
        }
        Input::Closed(job, closed) => core.on_found_closed(&job, *closed),
        Input::Outcome(outcome) => {
            executor.note_closed(&outcome.job, outcome.run);
            if let Some(job) = core.job(&outcome.job).filter(|job| core.is_open(&job.id, outcome.run)) {
                executor.follow_up(job, &outcome);
            }
            core.on_outcome(outcome, now_ms, executor);
        }
        Input::Record(record) => core.on_record(&record, now_ms, executor),
        Input::NoRecord(job, run, task) => core.on_no_record(&job, run, &task, now_ms, executor),
        Input::Unreadable(job, run, task, error) => core.on_unreadable(&job, run, &task, error, now_ms, executor),
        Input::Records(job, run, records) => core.on_records(&job, run, &records, now_ms, executor),
        Input::Promoted(job, run, gate, result) => core.on_promoted(&job, run, &gate, result, executor),
        Input::Tally(job, run, tally) => core.on_tally(&job, run, tally),
        Input::Ask(question) => question(core),
    }
}
