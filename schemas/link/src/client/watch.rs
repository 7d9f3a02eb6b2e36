//! Following one run of a job: its events from the run's opening on.
//!
//! Events may be lost with the broker, the outcome in the store can't be. So the watch ends when either says
//! that the run is closed. After a lost subscription the events are told again from the beginning.

use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use futures::{Stream, StreamExt};
use likeness_contract::codec::{self, CodecError, Encoding};
use likeness_contract::ids::{JobId, RunNumber};
use likeness_contract::jobs::Outcome;
use likeness_contract::messages::{JobEvent, JobNews, TaskEvent};
use likeness_contract::{keys, subjects};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Client, ClientResult};
use crate::error::{Error, ErrorKind, Result, chain};

/// Events that wait for a slow reader.
const BUFFERED: usize = 256;
/// The outcome is looked up so often, in case its event is lost.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pause before a broken subscription is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

/// Something that happened in the watched run.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// To a task.
    Task(TaskEvent),
    /// To the job as a whole. [`JobNews::Closed`] is the last one.
    Job(JobEvent),
}

impl Client {
    /// Events of a job's newest run, from its opening to its closing. Fails with `NotFound` when there is no
    /// such job.
    pub async fn watch(&self, job: &JobId) -> ClientResult<impl Stream<Item = Result<WatchEvent>> + Unpin + use<>> {
        let runs = self.store().list(&keys::job_runs(job)).await?;
        let Some(newest) = runs.iter().filter_map(|key| keys::number_of(key)).max() else {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no job `{job}`")).into());
        };
        let run = RunNumber(u32::try_from(newest).unwrap_or(u32::MAX));
        let (events, receiver) = mpsc::channel(BUFFERED);
        let watch = Watch { client: self.clone(), job: job.clone(), run, events };
        tokio::spawn(watch.run());
        Ok(receiver_stream(receiver))
    }
}

fn receiver_stream<T>(mut receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Unpin {
    futures::stream::poll_fn(move |cx| receiver.poll_recv(cx))
}

struct Watch {
    client: Client,
    job: JobId,
    run: RunNumber,
    events: mpsc::Sender<Result<WatchEvent>>,
}

/// Whether there is more to come.
#[derive(PartialEq)]
enum State {
    Open,
    Over,
}

impl Watch {
    async fn run(self) {
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut messages = match self.subscribe().await {
                Ok(messages) => Some(messages),
                Err(error) => {
                    tracing::debug!(job = %self.job, error = %chain(&error), "can't follow the events yet");
                    None
                }
            };
            while let Some(open) = &mut messages {
                let message = tokio::select! {
                    message = open.next() => message,
                    _ = look.tick() => {
                        if self.look_for_outcome().await == State::Over {
                            return;
                        }
                        continue;
                    }
                    () = self.events.closed() => return,
                };
                match message {
                    Some(Ok(message)) => {
                        if self.pass(&message.message).await == State::Over {
                            return;
                        }
                    }
                    _ => messages = None,
                }
            }
            if self.events.is_closed() || self.look_for_outcome().await == State::Over {
                return;
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }

    async fn subscribe(&self) -> Result<pull::Ordered> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Transient, "can't follow the events").because(e)
        };
        let config = pull::OrderedConfig {
            filter_subject: format!("likeness.v1.event.{}.>", self.job),
            deliver_policy: DeliverPolicy::All,
            ..Default::default()
        };
        let jetstream = self.client.bus().jetstream();
        let stream = jetstream.get_stream_no_info(subjects::EVENTS_STREAM).await.map_err(|e| failed(e.into()))?;
        let consumer = stream.create_consumer(config).await.map_err(|e| failed(e.into()))?;
        consumer.messages().await.map_err(|e| failed(e.into()))
    }

    async fn pass(&self, message: &async_nats::Message) -> State {
        match read(&message.subject, &message.payload) {
            Ok(event) if run_of(&event) == self.run => {
                let over = matches!(&event, WatchEvent::Job(JobEvent { what: JobNews::Closed(_), .. }));
                let lost = self.events.send(Ok(event)).await.is_err();
                if over || lost { State::Over } else { State::Open }
            }
            Ok(_) => State::Open,
            Err(error) => {
                tracing::debug!(subject = %message.subject, %error, "event left out");
                State::Open
            }
        }
    }

    async fn look_for_outcome(&self) -> State {
        let key = keys::job_outcome(&self.job, self.run);
        match self.client.store().document::<Outcome>(&key).await {
            Ok(Some(Outcome { job, run, closed_ms, result })) => {
                let event = JobEvent { job, run, at_ms: closed_ms, what: JobNews::Closed(result) };
                let _reader_gone = self.events.send(Ok(WatchEvent::Job(event))).await;
                State::Over
            }
            Ok(None) => State::Open,
            Err(error) if error.is_transient() => State::Open,
            Err(error) => {
                let _reader_gone = self.events.send(Err(error)).await;
                State::Over
            }
        }
    }
}

fn run_of(event: &WatchEvent) -> RunNumber {
    match event {
        WatchEvent::Task(event) => event.run,
        WatchEvent::Job(event) => event.run,
    }
}

/// Job events have `_` in the place of the task.
fn read(subject: &str, payload: &[u8]) -> std::result::Result<WatchEvent, CodecError> {
    let encoding = Encoding::detect(None, payload);
    if subject.split('.').nth(4) == Some("_") {
        codec::decode(payload, encoding).map(WatchEvent::Job)
    } else {
        codec::decode(payload, encoding).map(WatchEvent::Task)
    }
}
