//! The connection to NATS.
//!
//! A first connection fails fast and by name (who does not answer, which version is too old). A connection
//! that breaks later mends itself; what is published meanwhile waits for it until its time limit.

use std::error::Error as StdError;
use std::future::IntoFuture;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind,
};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind, PurgeError, PurgeErrorKind};
use async_nats::jetstream::{self, ErrorCode, message::PublishMessage};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError};
use bytes::Bytes;
use likeness_contract::codec::{self, Encoding, Message};
use likeness_contract::jobs::{DeviceClass, Priority, TaskKind, TaskMessage};
use likeness_contract::subjects;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result, chain};
use crate::kv::Kv;
use crate::login;
pub use crate::pull::{Delivery, Pull};
use crate::settings::{NatsSettings, Timings};
use crate::telemetry::metrics::metrics;
use crate::topology::{self, Copies, Topology};

/// Oldest server that has everything the topology needs.
const MIN_SERVER: (i64, i64, i64) = (2, 11, 0);
/// Longest pause between two attempts to reconnect.
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(2);
/// A broker that answers, but can't make streams yet, is waited for so long.
const JOIN_WITHIN: Duration = Duration::from_secs(60);
/// Header with the form of a payload.
pub(crate) const CONTENT_TYPE: &str = "content-type";

/// A connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    jetstream: jetstream::Context,
    timings: Timings,
    address: String,
    forbidden: Forbidden,
    /// See [`Bus::set_stream_replicas`].
    stream_replicas: OnceLock<usize>,
}

/// What the server said last about a permission: it answers so to nobody in particular, and the request that
/// it refused only times out.
type Forbidden = Arc<Mutex<Option<String>>>;

/// What publishing a task did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The message lies in the queue.
    New,
    /// One with this subject lay there already.
    AlreadyThere,
}

impl Bus {
    /// Connects. `name` is what the server shows. Fails within [`Timings::connect`] with `Unreachable` and the
    /// address, or with `Refused` when the server is too old, lacks JetStream or does not accept the credentials.
    pub async fn connect(settings: &NatsSettings, name: &str) -> Result<Self> {
        crate::install_crypto();
        let servers = servers(&settings.url)?;
        let address = address(&servers);
        let forbidden = Forbidden::default();
        let options = options(settings, name, &servers, &forbidden)?;
        let timings = settings.timings.clone();
        // A name lookup or a TLS handshake that hangs is not covered by the client's own limit.
        let client = match tokio::time::timeout(timings.connect, options.connect(servers)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(unconnected(&address, error)),
            Err(_) => {
                let waited = format!("waited {:.1} s", timings.connect.as_secs_f64());
                return Err(unreachable(&address).because(waited));
            }
        };
        suits(&client, &address)?;
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(timings.request);
        let stream_replicas = OnceLock::new();
        Ok(Self { inner: Arc::new(Inner { client, jetstream, timings, address, forbidden, stream_replicas }) })
    }

    /// Makes the streams, consumers and buckets that are missing. Safe to repeat.
    pub async fn ensure_topology(&self) -> Result<()> {
        Topology::new(self.timings()).ensure(self.jetstream(), self.copies()).await
    }

    /// Makes again what was there and is gone, a second after it was found gone: its deletion must be over by then.
    pub async fn remake_topology(&self) -> Result<()> {
        tokio::time::sleep(topology::SETTLES).await;
        self.ensure_topology().await
    }

    /// Streams and buckets have exactly so many copies from now on; said once. Without, they have three on a cluster
    /// of three nodes and more, else one, and never fewer than before.
    pub fn set_stream_replicas(&self, replicas: usize) {
        let _said_before = self.inner.stream_replicas.set(replicas);
    }

    /// Waits until streams and buckets are there: makes them, unless a coordinator has, or waits for one where these
    /// credentials may not. A broker that is only just starting, or elects its leader, is waited for as well.
    pub async fn join_topology(&self) -> Result<()> {
        let patience = Instant::now() + JOIN_WITHIN;
        let mut told = false;
        loop {
            // Made after the streams; consumers come last, and whoever pulls looks after them.
            if self.kv(subjects::PRESENCE_BUCKET).await.is_ok() {
                return Ok(());
            }
            let why = match self.ensure_topology().await {
                Err(_) if self.forbidden("$JS.API.").is_some() => {
                    "waiting for a coordinator: these credentials may not make the streams".to_string()
                }
                Err(error) if may_pass(error.kind) && Instant::now() < patience => {
                    format!("waiting for the broker: {}", chain(&error))
                }
                made => return made,
            };
            if !std::mem::replace(&mut told, true) {
                tracing::warn!("{why}");
            }
            tokio::time::sleep(self.timings().presence_every).await;
        }
    }

    /// Makes the consumers of task messages that are missing, and says how many were. Fails with `NotFound` when
    /// their stream is gone.
    pub async fn mend_consumers(&self) -> Result<usize> {
        topology::mend_consumers(self.jetstream(), self.timings()).await
    }

    /// Streams, buckets and consumers that should be there and are not, in words.
    pub async fn missing(&self) -> Result<Vec<String>> {
        topology::missing(self.jetstream(), self.timings()).await
    }

    fn copies(&self) -> Copies {
        match self.inner.stream_replicas.get() {
            Some(replicas) => Copies::Exactly(*replicas),
            None if self.client().server_info().connect_urls.len() >= 3 => Copies::AtLeast(3),
            None => Copies::AtLeast(1),
        }
    }

    /// The client library's connection.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The client library's JetStream context.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.inner.jetstream
    }

    /// The times that it was opened with.
    pub fn timings(&self) -> &Timings {
        &self.inner.timings
    }

    /// The server's address, without credentials.
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// Publishes a task's message unless one with the same subject lies in the queue. Fails with `Full` when
    /// the queue is full and with `NotFound` when it is gone.
    pub async fn publish_task(&self, subject: String, message: &TaskMessage) -> Result<Published> {
        match self.publish(&subject, message, None).await {
            Ok(()) => Ok(Published::New),
            Err(Failure::SubjectTaken) => Ok(Published::AlreadyThere),
            Err(Failure::Error(error)) => Err(error),
        }
    }

    /// Publishes an event, or a dead letter, and waits until the broker has it. A repetition after a time-out is
    /// recognised by the broker.
    pub async fn publish_event<M: Message>(&self, subject: String, message: &M) -> Result<()> {
        let id = format!("{:016x}{:016x}", crate::random(), crate::random());
        match self.publish(&subject, message, Some(id)).await {
            Ok(()) => Ok(()),
            Err(Failure::SubjectTaken) => Err(Error::new(ErrorKind::Full, format!("`{subject}` is taken"))),
            Err(Failure::Error(error)) => Err(error),
        }
    }

    async fn publish<M: Message>(
        &self,
        subject: &str,
        message: &M,
        id: Option<String>,
    ) -> std::result::Result<(), Failure> {
        let encoding = Encoding::Bincode;
        let encoded = codec::encode(message, encoding).map_err(|e| Error::of_codec(&format!("`{subject}`"), e))?;
        let mut publish =
            PublishMessage::build().payload(Bytes::from(encoded)).header(CONTENT_TYPE, encoding.content_type());
        if let Some(id) = &id {
            publish = publish.message_id(id);
        }
        let deadline = Instant::now() + self.timings().request;
        let mut pause = Duration::from_millis(50);
        self.forget_forbidden(subject);
        loop {
            let failure = tokio::select! {
                biased;
                done = self.publish_once(subject, publish.clone()) => match done {
                    Ok(()) => return Ok(()),
                    Err(error) => self.failure(subject, error),
                },
                refused = self.refusal(subject) => Failure::Error(refused),
            };
            let again = matches!(&failure, Failure::Error(e) if may_pass(e.kind));
            if !again || Instant::now() + pause >= deadline {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn publish_once(&self, subject: &str, publish: PublishMessage) -> std::result::Result<(), PublishError> {
        let sent = self.jetstream().send_publish(subject.to_string(), publish).await?;
        sent.into_future().await.map(drop)
    }

    fn failure(&self, subject: &str, error: PublishError) -> Failure {
        let failed = |kind, what: &str| Failure::Error(Error::new(kind, format!("can't publish `{subject}`{what}")));
        if let Some(refused) = self.forbidden(subject) {
            return Failure::Error(refused);
        }
        let caused = |failure, error: PublishError| match failure {
            Failure::Error(e) => Failure::Error(e.because(error)),
            taken => taken,
        };
        let failure = match error.kind() {
            // Also the answer during a change of the stream's leader.
            PublishErrorKind::StreamNotFound => failed(ErrorKind::NotFound, ": its stream is gone"),
            PublishErrorKind::MaxPayloadExceeded => failed(ErrorKind::Invalid, ": it is too large"),
            PublishErrorKind::TimedOut if !self.is_connected() => {
                failed(ErrorKind::Unreachable, &format!(": no answer from NATS at `{}`", self.address()))
            }
            PublishErrorKind::Other => match error.source().and_then(|e| e.downcast_ref()) {
                Some(refusal) => of_refusal(refusal, &failed),
                None => failed(ErrorKind::Transient, ""),
            },
            _ => failed(ErrorKind::Transient, ""),
        };
        caused(failure, error)
    }

    /// Whether there is a connection at this moment.
    pub fn is_connected(&self) -> bool {
        self.client().connection_state() == async_nats::connection::State::Connected
    }

    /// The error to report in place of a time-out when the server has forbidden the subject.
    pub(crate) fn forbidden(&self, subject: &str) -> Option<Error> {
        let said = self.inner.forbidden.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let refused = || Error::new(ErrorKind::Refused, format!("these credentials may not use `{subject}`"));
        said.contains(subject).then(|| refused().because(said))
    }

    /// Rights may have changed since the server said no.
    fn forget_forbidden(&self, subject: &str) {
        let mut said = self.inner.forbidden.lock().unwrap_or_else(PoisonError::into_inner);
        said.take_if(|said| said.contains(subject));
    }

    /// Ends when the server has forbidden the subject: it never answers who asked.
    async fn refusal(&self, subject: &str) -> Error {
        loop {
            if let Some(refused) = self.forbidden(subject) {
                return refused;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Removes the messages of one subject (or filter) from a stream, and says how many.
    pub async fn purge_subject(&self, stream: &str, subject: &str) -> Result<u64> {
        let failed =
            |kind, e: Box<dyn StdError + Send + Sync>| Error::new(kind, format!("can't purge `{subject}`")).because(e);
        let stream = self.jetstream().get_stream_no_info(stream).await;
        let stream = stream.map_err(|e| failed(ErrorKind::Transient, e.into()))?;
        let purged = stream.purge().filter(subject).await;
        let purged = purged.map_err(|e| {
            let gone = server_code(&e) == Some(ErrorCode::STREAM_NOT_FOUND);
            failed(if gone { ErrorKind::NotFound } else { ErrorKind::Transient }, e.into())
        })?;
        Ok(purged.purged)
    }

    /// Messages of one consumer. The consumer is made when it is missing.
    pub async fn task_messages(&self, kind: TaskKind, device: DeviceClass, priority: Priority) -> Result<Pull> {
        let config = topology::task_consumer(self.timings(), kind, device, priority);
        Ok(Pull::new(self.clone(), config))
    }

    /// A bucket, which must be there.
    pub async fn kv(&self, bucket: &str) -> Result<Kv> {
        Kv::open(self.clone(), bucket).await
    }
}

/// Why a message does not lie in its stream.
enum Failure {
    SubjectTaken,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::Transient | ErrorKind::Unreachable)
}

/// The stream answered with an error. The server has one code for every reason not to store a message, so the
/// text must tell (`ErrMaxMsgsPerSubject`, `ErrMaxBytes` of nats-server).
fn of_refusal(refusal: &jetstream::Error, failed: &dyn Fn(ErrorKind, &str) -> Failure) -> Failure {
    let text = refusal.to_string();
    match refusal.error_code() {
        ErrorCode::STREAM_STORE_FAILED if text.contains("per subject") => Failure::SubjectTaken,
        ErrorCode::STREAM_STORE_FAILED if text.contains("maximum") => failed(ErrorKind::Full, ": its stream is full"),
        ErrorCode::STORAGE_RESOURCES_EXCEEDED | ErrorCode::INSUFFICIENT_RESOURCES => {
            failed(ErrorKind::Full, ": the broker's storage is full")
        }
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => failed(ErrorKind::Invalid, ": it is too large"),
        _ => failed(ErrorKind::Transient, ""),
    }
}

/// The code of the server's own error among the causes. The client library keeps it sometimes as the cause and
/// sometimes in the kind of its own error.
pub(crate) fn server_code(error: &(dyn StdError + 'static)) -> Option<ErrorCode> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(code) = refusal_of(error).map(|refusal| refusal.error_code()) {
            return Some(code);
        }
        cause = error.source();
    }
    None
}

fn refusal_of(error: &(dyn StdError + 'static)) -> Option<jetstream::Error> {
    if let Some(found) = error.downcast_ref::<jetstream::Error>() {
        return Some(found.clone());
    }
    if let Some(ConsumerErrorKind::JetStream(found)) = error.downcast_ref::<ConsumerError>().map(|e| e.kind()) {
        return Some(found);
    }
    if let Some(CreateStreamErrorKind::JetStream(found)) = error.downcast_ref::<CreateStreamError>().map(|e| e.kind()) {
        return Some(found);
    }
    if let Some(GetStreamErrorKind::JetStream(found)) = error.downcast_ref::<GetStreamError>().map(|e| e.kind()) {
        return Some(found);
    }
    if let Some(PurgeErrorKind::JetStream(found)) = error.downcast_ref::<PurgeError>().map(|e| e.kind()) {
        return Some(found);
    }
    None
}

fn servers(url: &str) -> Result<Vec<ServerAddr>> {
    let parse = |part: &str| {
        let wrong = || Error::new(ErrorKind::Invalid, format!("`{part}` is no NATS address: write nats://host:4222"));
        if part.trim().is_empty() {
            return Err(wrong());
        }
        let invalid = |e| wrong().because(e);
        part.trim().parse::<ServerAddr>().map_err(invalid)
    };
    url.split(',').map(parse).collect()
}

/// Host and port of every server: a URL may carry a password.
fn address(servers: &[ServerAddr]) -> String {
    let parts: Vec<String> = servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
    parts.join(",")
}

fn options(
    settings: &NatsSettings,
    name: &str,
    servers: &[ServerAddr],
    forbidden: &Forbidden,
) -> Result<ConnectOptions> {
    let (address, forbidden) = (address(servers), forbidden.clone());
    let mut options = ConnectOptions::new()
        .name(name)
        .connection_timeout(settings.timings.connect)
        .request_timeout(Some(settings.timings.request))
        .reconnect_delay_callback(reconnect_pause)
        .event_callback(move |event| {
            on_event(event, &address, &forbidden);
            std::future::ready(())
        });
    if let Some(ca) = &settings.ca {
        if !ca.is_file() {
            let message = format!("there is no certificate authority in `{}`", ca.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    login::log_in(options, servers, settings.credentials.as_deref())
}

fn reconnect_pause(attempts: usize) -> Duration {
    let doubled = Duration::from_millis(20 << attempts.min(8));
    doubled.min(MAX_RECONNECT_PAUSE)
}

fn on_event(event: Event, address: &str, forbidden: &Forbidden) {
    metrics().nats_errors.inc_by(u64::from(matches!(event, Event::ServerError(_) | Event::SlowConsumer(_))));
    match event {
        Event::Connected => tracing::info!(%address, "connected to NATS"),
        Event::Disconnected => {
            metrics().nats_disconnects.inc();
            tracing::warn!(%address, "lost the connection to NATS, reconnecting");
        }
        Event::ServerError(ServerError::Other(text)) if text.to_lowercase().contains("permissions violation") => {
            tracing::error!(%address, %text, "NATS forbids a subject");
            *forbidden.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
        Event::ServerError(error) => tracing::error!(%address, %error, "NATS reports an error"),
        Event::SlowConsumer(subscription) => {
            tracing::warn!(%address, subscription, "messages dropped: a subscription is read too slowly");
        }
        other => tracing::debug!(%address, event = %other, "NATS connection"),
    }
}

fn unreachable(address: &str) -> Error {
    Error::new(ErrorKind::Unreachable, format!("no answer from NATS at `{address}`"))
}

fn unconnected(address: &str, error: async_nats::ConnectError) -> Error {
    let refused = |why: &str| Error::new(ErrorKind::Refused, format!("NATS at `{address}` {why}"));
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            refused("does not accept these credentials").because(error)
        }
        ConnectErrorKind::Tls => refused("can't be used over TLS").because(error),
        _ => unreachable(address).because(error),
    }
}

fn suits(client: &Client, address: &str) -> Result<()> {
    let (major, minor, patch) = MIN_SERVER;
    let info = client.server_info();
    let refused = |what: String| Err(Error::new(ErrorKind::Refused, format!("NATS at `{address}` {what}")));
    if !client.is_server_compatible(major, minor, patch) {
        return refused(format!("is version {}, at least {major}.{minor} is needed", info.version));
    }
    if !info.jetstream {
        return refused("has no JetStream: start it with `-js`".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_never_shows_a_password() {
        let servers = servers("nats://user:secret@host-a:4222, tls://host-b:4333").unwrap();
        assert_eq!(address(&servers), "host-a:4222,host-b:4333");
        for wrong in ["http://host", "", "nats://host,"] {
            assert_eq!(super::servers(wrong).unwrap_err().kind, ErrorKind::Invalid, "`{wrong}`");
        }
    }

    #[test]
    fn reconnecting_slows_down_but_never_stops() {
        assert!(reconnect_pause(1) < Duration::from_millis(100));
        assert_eq!(reconnect_pause(10_000), MAX_RECONNECT_PAUSE);
    }
}
