//! Taking tasks from the work queue, one at a time.
//!
//! One pull request asks for one message and stands for a limited time; the broker says by heartbeats that it
//! still stands. Two missing heartbeats, or an error that says so, mean that the consumer is gone: it is made
//! again, loudly, because a deleted consumer is the usual cause of a worker that waits for ever.
//!
//! The client library's own batches are not used: they ask for heartbeats but do not miss them.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, pull};
use async_nats::jetstream::{self, AckKind, ErrorCode};
use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use likeness_contract::codec::{self, Encoding};
use likeness_contract::jobs::TaskMessage;
use likeness_contract::subjects;

use crate::bus::{Bus, CONTENT_TYPE, server_code};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::topology;

/// Allowance for a heartbeat that is a little late.
const HEARTBEAT_SLACK: Duration = Duration::from_millis(500);

/// Longest wait for what is on its way when a request is given up.
const PARK_WAIT: Duration = Duration::from_millis(500);

/// Messages of one consumer.
pub struct Pull {
    bus: Bus,
    config: pull::Config,
    standing: Option<Subscriber>,
}

impl fmt::Debug for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pull").field("consumer", &self.consumer()).finish_non_exhaustive()
    }
}

/// How the broker answered a pull request.
enum Answer {
    Task(Delivery),
    StillWaiting,
    NothingCame,
    ConsumerGone(String),
    Failed(Error),
}

impl Pull {
    pub(crate) fn new(bus: Bus, config: pull::Config) -> Self {
        Self { bus, config, standing: None }
    }

    fn consumer(&self) -> &str {
        self.config.durable_name.as_deref().unwrap_or_default()
    }

    /// The next message; none when the request expired without one. Cancelling the call loses nothing: the
    /// request stands, and the next call goes on waiting for its answer. Who will not call again soon calls
    /// [`Pull::park`].
    pub async fn next(&mut self) -> Result<Option<Delivery>> {
        let expires = self.bus.timings().pull_expires();
        if self.standing.is_none() {
            self.ask(Some(expires)).await?;
        }
        self.answer().await
    }

    /// A message that lies ready; none when there is none.
    pub async fn try_next(&mut self) -> Result<Option<Delivery>> {
        self.park().await;
        self.ask(None).await?;
        self.answer().await
    }

    /// Gives up the standing request. A message that has arrived for it, or is on its way, goes back to the queue;
    /// without a connection it comes back after `ack_wait`.
    pub async fn park(&mut self) {
        let Some(mut standing) = self.standing.take() else { return };
        if standing.drain().await.is_err() {
            return;
        }
        // What the server sent before it heard of the end comes, then the end.
        let rest = async {
            while let Some(message) = standing.next().await {
                self.give_back(message).await;
            }
        };
        let _ = tokio::time::timeout(PARK_WAIT, rest).await;
    }

    async fn give_back(&self, message: async_nats::Message) {
        let Answer::Task(delivery) = self.read(message) else { return };
        if let Err(error) = delivery.nak(None).await {
            let consumer = self.consumer();
            tracing::debug!(consumer, error = %chain(&error), "message comes back after ack_wait");
        }
    }

    async fn ask(&mut self, expires: Option<Duration>) -> Result<()> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Transient, "can't ask for a message").because(e)
        };
        let client = self.bus.client();
        // A new inbox for every request: a late answer to an old one must not look like an answer to this.
        let inbox = client.new_inbox();
        let standing = client.subscribe(inbox.clone()).await.map_err(|e| failed(e.into()))?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", subjects::JOBS_STREAM, self.consumer());
        let request = match expires {
            Some(expires) => serde_json::json!({
                "batch": 1,
                "expires": nanoseconds(expires),
                "idle_heartbeat": nanoseconds(self.bus.timings().pull_heartbeat()),
            }),
            None => serde_json::json!({ "batch": 1, "no_wait": true }),
        };
        let sent = client.publish_with_reply(subject, inbox, request.to_string().into()).await;
        sent.map_err(|e| failed(e.into()))?;
        self.standing = Some(standing);
        Ok(())
    }

    async fn answer(&mut self) -> Result<Option<Delivery>> {
        loop {
            let patience = self.bus.timings().pull_heartbeat() * 2 + HEARTBEAT_SLACK;
            let Some(standing) = &mut self.standing else { return Ok(None) };
            let answer = match tokio::time::timeout(patience, standing.next()).await {
                Ok(Some(message)) => self.read(message),
                Ok(None) => Answer::Failed(Error::new(ErrorKind::Unreachable, "the connection to NATS was closed")),
                Err(_) => Answer::ConsumerGone("no heartbeat".into()),
            };
            if matches!(answer, Answer::StillWaiting) {
                continue;
            }
            self.standing = None;
            return match answer {
                Answer::Task(delivery) => Ok(Some(delivery)),
                Answer::StillWaiting | Answer::NothingCame => Ok(None),
                Answer::ConsumerGone(why) => self.mend(&why).await.map(|()| None),
                Answer::Failed(error) => Err(error),
            };
        }
    }

    fn read(&self, message: async_nats::Message) -> Answer {
        let what = message.description.clone().unwrap_or_default();
        let code = message.status.unwrap_or(StatusCode::OK).as_u16();
        match code {
            200 => match Delivery::new(&self.bus, message) {
                Ok(delivery) => Answer::Task(delivery),
                Err(error) => Answer::Failed(error),
            },
            100 => Answer::StillWaiting,
            404 | 408 => Answer::NothingCame,
            503 => Answer::ConsumerGone("nobody serves the consumer".into()),
            409 if what.contains("Deleted") || what.contains("Leadership") || what.contains("Shutdown") => {
                Answer::ConsumerGone(what)
            }
            // The stream's own limits on waiting requests and on deliveries under way.
            _ => {
                let text = format!("the consumer `{}` refused to deliver: {code} {what}", self.consumer());
                Answer::Failed(Error::new(ErrorKind::Transient, text))
            }
        }
    }

    /// The server drops requests for which a consumer has no room without a word: whoever set that up must hear of it.
    fn has_room(&self, found: &consumer::Info, why: &str) -> Result<()> {
        let (consumer, most) = (self.consumer(), found.config.max_waiting);
        if usize::try_from(most).is_ok_and(|most| most > 0 && found.num_waiting >= most) {
            let text = format!(
                "the consumer `{consumer}` has room for {most} waiting requests, and as many wait: delete it, and it is made \
                 again with more"
            );
            return Err(Error::new(ErrorKind::Full, text));
        }
        tracing::debug!(consumer, why, "pull request lost, asking again");
        Ok(())
    }

    /// Makes the consumer, and whatever else is missing, again; who may not do that waits for the coordinator, which
    /// looks after both.
    async fn mend(&self, why: &str) -> Result<()> {
        let consumer = self.consumer();
        let jetstream = self.bus.jetstream();
        let found = jetstream.get_consumer_from_stream::<pull::Config, _, _>(consumer, subjects::JOBS_STREAM).await;
        let error = match found {
            Ok(found) => return self.has_room(found.cached_info(), why),
            Err(error) => error,
        };
        match server_code(&error) {
            Some(ErrorCode::STREAM_NOT_FOUND) => {
                tracing::warn!(consumer, why, "the task stream was gone, making everything again");
                self.made(self.bus.remake_topology().await)
            }
            Some(ErrorCode::CONSUMER_NOT_FOUND) => {
                tracing::warn!(consumer, why, "the consumer was deleted, making it again");
                self.made(topology::ensure_consumer(jetstream, self.config.clone()).await)
            }
            _ => {
                let kind = if self.bus.is_connected() { ErrorKind::Transient } else { ErrorKind::Unreachable };
                Err(Error::new(kind, format!("the consumer `{consumer}` does not answer")).because(error))
            }
        }
    }
}

impl Pull {
    fn made(&self, made: Result<()>) -> Result<()> {
        let consumer = self.consumer();
        let forbidden = |error: Error| match self.bus.forbidden("$JS.API.") {
            Some(_) => Error::new(
                ErrorKind::Transient,
                format!(
                    "the consumer `{consumer}` is gone and these credentials may not make it: waiting for the coordinator"
                ),
            ),
            None => error,
        };
        made.map_err(forbidden)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A message that is leased to this process until `ack_wait` after its delivery or its last renewal.
///
/// An acknowledgement acts on whatever delivery of the message is under way, also on another worker's. So one
/// whose renewal was late must not send anything more for it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its subject.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// How often it was delivered, this time included. The broker may forget after a crash.
    pub deliveries: u64,
    message: jetstream::Message,
}

impl Delivery {
    fn new(bus: &Bus, message: async_nats::Message) -> Result<Self> {
        let message = jetstream::Message { message, context: bus.jetstream().clone() };
        let deliveries = match message.info() {
            Ok(info) => u64::try_from(info.delivered).unwrap_or(1),
            Err(error) => {
                return Err(
                    Error::new(ErrorKind::Corrupt, "a message without an acknowledgement subject").because(error)
                );
            }
        };
        let (subject, payload) = (message.subject.to_string(), message.payload.clone());
        Ok(Self { subject, payload, deliveries, message })
    }

    /// The task. Fails with `Newer` when a newer program wrote it, with `Corrupt` when it is none.
    pub fn task(&self) -> Result<TaskMessage> {
        let headers = self.message.headers.as_ref();
        let content_type = headers.and_then(|h| h.get(CONTENT_TYPE)).map(|value| value.as_str());
        let encoding = Encoding::detect(content_type, &self.payload);
        codec::decode(&self.payload, encoding).map_err(|e| Error::of_codec(&format!("`{}`", self.subject), e))
    }

    /// The message is done with; returns when the broker has forgotten it.
    pub async fn ack(&self) -> Result<()> {
        self.confirmed(AckKind::Ack, "acknowledge").await
    }

    /// Renews the lease for another `ack_wait`; returns when the broker knows.
    pub async fn progress(&self) -> Result<()> {
        self.confirmed(AckKind::Progress, "renew").await
    }

    /// Gives the message back, to be delivered again at once or after a delay.
    pub async fn nak(&self, delay: Option<Duration>) -> Result<()> {
        self.confirmed(AckKind::Nak(delay), "give back").await
    }

    /// The message is removed without success. The reason is sent as an event before.
    pub async fn term(&self) -> Result<()> {
        self.confirmed(AckKind::Term, "terminate").await
    }

    async fn confirmed(&self, kind: AckKind, what: &str) -> Result<()> {
        let failed = |e| Error::new(ErrorKind::Transient, format!("can't {what} `{}`", self.subject)).because(e);
        self.message.double_ack_with(kind).await.map_err(failed)
    }
}
