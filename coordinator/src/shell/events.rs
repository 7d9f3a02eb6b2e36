//! Following the events: first the past ones, from the opening of the oldest open run, then the new ones.
//!
//! An event tells where to look; a lost one is made up for by the sweep, one that comes twice changes nothing. A
//! message that is no event is logged and left out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::datetime::{self, DateTime};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures::StreamExt;
use likeness_contract::codec::{self, Encoding};
use likeness_contract::ids::{JobId, RunNumber};
use likeness_contract::jobs::Outcome;
use likeness_contract::messages::{JobEvent, JobNews, TaskEvent};
use likeness_contract::{keys, subjects};
use likeness_link::error::chain;
use likeness_link::{Bus, Error, ErrorKind, Result};
use tokio::sync::{Notify, oneshot};

use super::backoff::Backoff;
use super::context::{Context, now_ms};
use super::leader::{Inbox, Input};
use super::recover::{self, Found};

/// How far the clocks of coordinators and broker may differ.
const CLOCK_SLACK_MS: u64 = 60_000;
/// The client library forgets to wake its reader after a missed heartbeat, so it is asked again so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// An outcome younger than this whose event is missing is announced by a new leader.
const ANNOUNCE_MS: u64 = 3_600_000;

/// Where the events are followed from.
#[derive(Debug)]
pub(super) struct Follow {
    state: Mutex<Position>,
    moved: Notify,
}

#[derive(Debug, Clone)]
struct Position {
    /// When the stream was made: sequences of another stream mean nothing.
    stream_created: DateTime,
    start: Start,
}

#[derive(Debug, Clone, Copy)]
enum Start {
    Sequence(u64),
    TimeMs(u64),
}

impl Follow {
    /// From what is published after this call.
    pub(super) async fn from_now_on(bus: &Bus) -> Result<Self> {
        let info = stream_info(bus, subjects::EVENTS_STREAM).await?;
        let start = Start::Sequence(info.state.last_sequence + 1);
        let state = Mutex::new(Position { stream_created: info.created, start });
        Ok(Self { state, moved: Notify::new() })
    }

    /// Also events since this time.
    pub(super) fn reach_back_to(&self, ms: u64) {
        let from = ms.saturating_sub(CLOCK_SLACK_MS);
        let mut state = self.lock();
        state.start = match state.start {
            Start::TimeMs(earlier) if earlier <= from => Start::TimeMs(earlier),
            Start::TimeMs(_) | Start::Sequence(_) => Start::TimeMs(from),
        };
    }

    /// The stream was made at this time; if it is another one, it is followed from its beginning. Returns whether.
    pub(super) fn note_stream(&self, created: DateTime) -> bool {
        let mut state = self.lock();
        if state.stream_created == created {
            return false;
        }
        *state = Position { stream_created: created, start: Start::Sequence(1) };
        self.moved.notify_one();
        true
    }

    fn passed(&self, sequence: u64) {
        self.lock().start = Start::Sequence(sequence + 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Position> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Start {
    fn policy(self) -> Result<DeliverPolicy> {
        match self {
            Self::Sequence(start_sequence) => Ok(DeliverPolicy::ByStartSequence { start_sequence }),
            Self::TimeMs(ms) => {
                let start_time = datetime::from_nanos(i128::from(ms) * 1_000_000);
                let start_time = start_time.map_err(|e| failed("no such time").because(e))?;
                Ok(DeliverPolicy::ByStartTime { start_time })
            }
        }
    }
}

fn failed(what: &str) -> Error {
    Error::new(ErrorKind::Transient, what)
}

/// What the broker says of a stream; `NotFound` when there is none.
pub(super) async fn stream_info(bus: &Bus, name: &str) -> Result<jetstream::stream::Info> {
    let found = bus.jetstream().get_stream(name).await;
    let stream = found.map_err(|e| {
        let gone = matches!(e.kind(), jetstream::context::GetStreamErrorKind::JetStream(ref e)
            if e.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND);
        let kind = if gone { ErrorKind::NotFound } else { ErrorKind::Transient };
        Error::new(kind, format!("can't ask about the stream `{name}`")).because(e)
    })?;
    Ok(stream.cached_info().clone())
}

/// Follows for ever. Tells the core once that the past was read.
pub(super) async fn follow(cx: Arc<Context>, inbox: Inbox, from: Arc<Follow>) {
    let mut follower = Follower { cx, inbox, from, replayed: false };
    let mut backoff = Backoff::default();
    loop {
        match follower.follow_once().await {
            Ok(()) => backoff = Backoff::default(),
            Err(error) => backoff.wait("the events can't be followed", &error).await,
        }
    }
}

struct Follower {
    cx: Arc<Context>,
    inbox: Inbox,
    from: Arc<Follow>,
    replayed: bool,
}

impl Follower {
    /// Until the stream of events breaks or is another one.
    async fn follow_once(&mut self) -> Result<()> {
        let start = self.from.lock().start;
        let config = pull::OrderedConfig { deliver_policy: start.policy()?, ..Default::default() };
        let jetstream = self.cx.bus.jetstream();
        let opening = "can't follow the events";
        let stream = jetstream.get_stream(subjects::EVENTS_STREAM).await.map_err(|e| failed(opening).because(e))?;
        let past = stream.cached_info().state.last_sequence;
        let consumer = stream.create_consumer(config).await.map_err(|e| failed(opening).because(e))?;
        if consumer.cached_info().num_pending == 0 {
            self.on_replayed().await;
        }
        let mut messages = consumer.messages().await.map_err(|e| failed(opening).because(e))?;
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = self.from.moved.notified() => return Ok(()),
                () = tokio::time::sleep(LOOK_AGAIN) => continue,
            };
            let broke = || failed("the events broke off");
            let message = message.ok_or_else(broke)?.map_err(|e| broke().because(e))?;
            let (sequence, pending) = match message.info() {
                Ok(info) => (info.stream_sequence, info.pending),
                Err(error) => return Err(broke().because(error)),
            };
            self.on_message(&message).await;
            self.from.passed(sequence);
            if sequence >= past || pending == 0 {
                self.on_replayed().await;
            }
        }
    }

    async fn on_replayed(&mut self) {
        if !std::mem::replace(&mut self.replayed, true) {
            self.tell(Input::Replayed).await;
        }
    }

    async fn tell(&self, news: Input) {
        let _not_leading = self.inbox.send(news).await;
    }

    async fn on_message(&self, message: &async_nats::Message) {
        let encoding = Encoding::detect(None, &message.payload);
        // Events of jobs have `_` in the place of the task.
        let of_job = message.subject.split('.').nth(4) == Some("_");
        let read = if of_job {
            match codec::decode::<JobEvent>(&message.payload, encoding) {
                Ok(event) => return self.on_job_event(event).await,
                Err(error) => Err(error),
            }
        } else {
            codec::decode::<TaskEvent>(&message.payload, encoding)
        };
        match read {
            Ok(event) => self.tell(Input::Event(event)).await,
            Err(error) => tracing::warn!(subject = %message.subject, %error, "no event, left out"),
        }
    }

    /// What another coordinator did while both believed to lead, or just before this one took over.
    async fn on_job_event(&self, event: JobEvent) {
        let JobEvent { job, run, at_ms: _, what } = event;
        let mut backoff = Backoff::default();
        loop {
            let done = match what {
                JobNews::Submitted => self.on_submitted(&job, run).await,
                JobNews::Closed(_) => self.on_closed(&job, run).await,
            };
            match done {
                Ok(()) => return,
                Err(error) if error.is_transient() => backoff.wait("a job can't be read", &error).await,
                Err(error) => return tracing::error!(%job, error = %chain(&error), "a job can't be read, left out"),
            }
        }
    }

    async fn on_submitted(&self, job: &JobId, run: RunNumber) -> Result<()> {
        let asked = job.clone();
        let known = ask(&self.inbox, move |core| core.job(&asked).is_some_and(|job| job.run >= run)).await;
        if known.unwrap_or(true) {
            return Ok(());
        }
        if let Found::Open(opened) = recover::job(&self.cx.store, job).await? {
            tracing::debug!(%job, run = run.0, "a run was opened elsewhere");
            self.tell(Input::Opened(job.clone(), opened)).await;
        }
        Ok(())
    }

    async fn on_closed(&self, job: &JobId, run: RunNumber) -> Result<()> {
        let asked = job.clone();
        let open = ask(&self.inbox, move |core| core.is_open(&asked, run)).await;
        if !open.unwrap_or(false) {
            return Ok(());
        }
        if let Some(outcome) = self.cx.store.document::<Outcome>(&keys::job_outcome(job, run)).await? {
            self.tell(Input::Outcome(outcome)).await;
        }
        Ok(())
    }
}

/// Asks the loop about its state; none when it is gone.
pub(super) async fn ask<T: Send + 'static>(
    inbox: &Inbox,
    question: impl FnOnce(&crate::core::reactor::Reactor) -> T + Send + 'static,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let question = Box::new(move |core: &crate::core::reactor::Reactor| {
        let _asker_gone = answer.send(question(core));
    });
    inbox.send(Input::Ask(question)).await.ok()?;
    answered.await.ok()
}

/// A coordinator may die between an outcome and its event. Whoever watches finds the outcome by itself; this keeps
/// the events complete.
pub(super) async fn announce_missing(cx: &Context, outcomes: Vec<Outcome>) {
    let young = now_ms().saturating_sub(ANNOUNCE_MS);
    for outcome in outcomes.into_iter().filter(|outcome| outcome.closed_ms >= young) {
        let Outcome { job, run, closed_ms, result } = outcome;
        let event = JobEvent { job, run, at_ms: closed_ms, what: JobNews::Closed(result) };
        let subject = subjects::job_event(&event.job, event.what.name());
        if last_announced(&cx.bus, &subject).await.is_some_and(|last| last >= run) {
            continue;
        }
        if let Err(error) = cx.bus.publish_event(subject, &event).await {
            tracing::warn!(job = %event.job, error = %chain(&error), "the end of a job was not announced");
        }
    }
}

async fn last_announced(bus: &Bus, subject: &str) -> Option<RunNumber> {
    let stream = bus.jetstream().get_stream_no_info(subjects::EVENTS_STREAM).await.ok()?;
    let last = stream.get_last_raw_message_by_subject(subject).await.ok()?;
    let event: JobEvent = codec::decode(&last.payload, Encoding::detect(None, &last.payload)).ok()?;
    Some(event.run)
}
