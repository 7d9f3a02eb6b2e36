//! Every stream, consumer and bucket, declared in one place.
//!
//! All of it is made by whoever starts first and mended by whoever finds something missing; nothing in it is
//! truth that the store does not hold. Facts that shaped it:
//!
//! * One message per subject (`discard new per subject`, at most one) is de-duplication without a time limit.
//!   Only `max_bytes` bounds the queue: together with `max_messages`, acknowledged messages were lost
//!   (nats-server#4771).
//! * `backoff` would replace `ack_wait` and is left unset; failed tasks come back by a delayed Nak.
//! * `max_deliver` is without limit: attempts are counted from events, so that spot machines that vanish do
//!   not use up a healthy task.
//! * A bucket's `max_age` is renewed by every update, a time to live of one key is not.
//! * A stream that is being deleted leaves the server's list first, then its consumers tell who waits on them, and
//!   its folder goes last. One of the same name that is made in between loses its folder to that deletion, and
//!   acknowledges nothing from its first write on. So nothing is made anew before [`SETTLES`] is over.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode, kv};
use futures::{StreamExt, TryStreamExt};
use likeness_contract::jobs::{DeviceClass, Priority, TaskKind};
use likeness_contract::subjects;

use crate::error::{Error, ErrorKind, Result};
use crate::settings::Timings;

/// Wait between finding a stream gone and making it anew: the deletion, some milliseconds long, is over by then.
pub(crate) const SETTLES: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MIB: i64 = 1 << 20;
/// Limits of the streams: the server reserves them when a stream is made.
const JOBS_BYTES: i64 = 128 * MIB;
const EVENTS_BYTES: i64 = 512 * MIB;
const DEAD_BYTES: i64 = 64 * MIB;
/// Requests that are under way at once while everything is made.
const AT_ONCE: usize = 8;

/// What must exist on the broker.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) streams: Vec<stream::Config>,
    pub(crate) consumers: Vec<pull::Config>,
    pub(crate) buckets: Vec<kv::Config>,
}

/// Copies of every stream and bucket on the nodes of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copies {
    /// As somebody set it.
    Exactly(usize),
    /// As the cluster looks now, but never fewer than there are: a node that is down must not cost the copies.
    AtLeast(usize),
}

impl Copies {
    /// Copies of a stream that has so many now, if it is there.
    fn of(self, now: Option<usize>) -> usize {
        match self {
            Self::Exactly(copies) => copies,
            Self::AtLeast(copies) => now.map_or(copies, |now| now.max(copies)),
        }
    }

    async fn of_stream(self, jetstream: &Context, name: &str) -> Result<usize> {
        if let Self::Exactly(copies) = self {
            return Ok(copies);
        }
        let now = match jetstream.get_stream(name).await {
            Ok(stream) => Some(stream.cached_info().config.num_replicas),
            Err(error) if crate::bus::server_code(&error) == Some(ErrorCode::STREAM_NOT_FOUND) => None,
            Err(error) => return Err(unmade(format!("stream `{name}`"), error)),
        };
        Ok(self.of(now))
    }
}

impl Topology {
    pub(crate) fn new(timings: &Timings) -> Self {
        Self { streams: streams(), consumers: task_consumers(timings), buckets: buckets(timings) }
    }

    /// Makes what is missing and brings settings up to date. Safe to repeat, and to do by several at once.
    pub(crate) async fn ensure(self, jetstream: &Context, copies: Copies) -> Result<()> {
        let Self { streams, consumers, buckets } = self;
        let streams = futures::stream::iter(streams).map(|config| ensure_stream(jetstream, config, copies));
        streams.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let buckets = futures::stream::iter(buckets).map(|config| ensure_bucket(jetstream, config, copies));
        buckets.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let consumers = futures::stream::iter(consumers).map(|config| ensure_consumer(jetstream, config));
        consumers.buffer_unordered(AT_ONCE).try_collect::<()>().await
    }
}

fn streams() -> Vec<stream::Config> {
    let base = || stream::Config { storage: StorageType::File, ..Default::default() };
    vec![
        stream::Config {
            name: subjects::JOBS_STREAM.into(),
            description: Some("Tasks to be done, one message a subject".into()),
            subjects: vec![subjects::JOBS_ALL.into()],
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            max_messages_per_subject: 1,
            max_message_size: 64 << 10,
            max_bytes: JOBS_BYTES,
            ..base()
        },
        stream::Config {
            name: subjects::EVENTS_STREAM.into(),
            description: Some("What happened to jobs and tasks".into()),
            subjects: vec![subjects::EVENTS_ALL.into()],
            discard: DiscardPolicy::Old,
            max_age: 14 * DAY,
            max_bytes: EVENTS_BYTES,
            ..base()
        },
        stream::Config {
            name: subjects::DEAD_STREAM.into(),
            description: Some("Tasks that were given up, with their last error".into()),
            subjects: vec![subjects::DEAD_ALL.into()],
            discard: DiscardPolicy::Old,
            max_age: 30 * DAY,
            max_bytes: DEAD_BYTES,
            ..base()
        },
    ]
}

fn buckets(timings: &Timings) -> Vec<kv::Config> {
    let bucket = |name: &str, description: &str, history: i64, max_age: Duration| kv::Config {
        bucket: name.into(),
        description: description.into(),
        history,
        max_age,
        storage: StorageType::File,
        ..Default::default()
    };
    let for_ever = Duration::ZERO;
    vec![
        bucket(subjects::LEASES_BUCKET, "Who leads", 1, timings.lease_ttl),
        bucket(subjects::ALIASES_BUCKET, "What every alias serves and loads", 64, for_ever),
        bucket(subjects::PLACEMENT_BUCKET, "What every searcher holds", 1, for_ever),
        bucket(subjects::PRESENCE_BUCKET, "Live workers", 1, timings.presence_ttl),
    ]
}

fn task_consumers(timings: &Timings) -> Vec<pull::Config> {
    let mut consumers = Vec::new();
    for kind in TaskKind::ALL {
        for device in DeviceClass::ALL {
            consumers.extend(Priority::ALL.map(|priority| task_consumer(timings, kind, device, priority)));
        }
    }
    consumers
}

/// See [`crate::Bus::missing`].
pub(crate) async fn missing(jetstream: &Context, timings: &Timings) -> Result<Vec<String>> {
    let unread = |e| unmade("list of streams".into(), e);
    let there: HashSet<String> = jetstream.stream_names().try_collect().await.map_err(unread)?;
    let Topology { streams, consumers, buckets } = Topology::new(timings);
    let streams = streams.into_iter().map(|stream| (stream.name.clone(), format!("stream `{}`", stream.name)));
    let buckets = buckets.into_iter().map(|it| (format!("KV_{}", it.bucket), format!("bucket `{}`", it.bucket)));
    let mut missing: Vec<String> =
        streams.chain(buckets).filter(|(name, _)| !there.contains(name)).map(|(_, words)| words).collect();
    let gone = match there.contains(subjects::JOBS_STREAM) {
        true => missing_consumers(jetstream, timings).await?,
        false => consumers,
    };
    missing.extend(gone.into_iter().filter_map(|config| Some(format!("consumer `{}`", config.durable_name?))));
    Ok(missing)
}

/// See [`crate::Bus::mend_consumers`].
pub(crate) async fn mend_consumers(jetstream: &Context, timings: &Timings) -> Result<usize> {
    let missing = missing_consumers(jetstream, timings).await?;
    for config in &missing {
        ensure_consumer(jetstream, config.clone()).await?;
    }
    Ok(missing.len())
}

async fn missing_consumers(jetstream: &Context, timings: &Timings) -> Result<Vec<pull::Config>> {
    let stream = jetstream.get_stream_no_info(subjects::JOBS_STREAM).await;
    let stream = stream.map_err(|e| unmade(format!("stream `{}`", subjects::JOBS_STREAM), e))?;
    let unread = |e| unmade("list of consumers".into(), e);
    let there: HashSet<String> = stream.consumer_names().try_collect().await.map_err(unread)?;
    let is_missing = |config: &pull::Config| config.durable_name.as_ref().is_some_and(|name| !there.contains(name));
    Ok(task_consumers(timings).into_iter().filter(is_missing).collect())
}

/// The consumer of one kind, device class and priority.
pub(crate) fn task_consumer(
    timings: &Timings,
    kind: TaskKind,
    device: DeviceClass,
    priority: Priority,
) -> pull::Config {
    pull::Config {
        durable_name: Some(subjects::task_consumer(kind, device, priority)),
        filter_subject: subjects::task_filter(kind, device, priority),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ack_wait: timings.ack_wait,
        max_deliver: -1,
        max_ack_pending: 10_000,
        max_waiting: 4096,
        ..Default::default()
    }
}

async fn ensure_stream(jetstream: &Context, mut config: stream::Config, copies: Copies) -> Result<()> {
    let name = config.name.clone();
    config.num_replicas = copies.of_stream(jetstream, &name).await?;
    let made = jetstream.create_or_update_stream(config).await;
    made.map(drop).map_err(|e| unmade(format!("stream `{name}`"), e))
}

async fn ensure_bucket(jetstream: &Context, mut config: kv::Config, copies: Copies) -> Result<()> {
    let name = config.bucket.clone();
    config.num_replicas = copies.of_stream(jetstream, &format!("KV_{name}")).await?;
    let made = jetstream.create_or_update_key_value(config).await;
    made.map(drop).map_err(|e| unmade(format!("bucket `{name}`"), e))
}

pub(crate) async fn ensure_consumer(jetstream: &Context, config: pull::Config) -> Result<()> {
    let name = config.durable_name.clone().unwrap_or_default();
    let made = jetstream.create_consumer_on_stream(config, subjects::JOBS_STREAM).await;
    made.map(drop).map_err(|e| unmade(format!("consumer `{name}`"), e))
}

fn unmade(what: String, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let kind = match crate::bus::server_code(&error) {
        Some(ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT) => ErrorKind::Refused,
        Some(ErrorCode::STORAGE_RESOURCES_EXCEEDED | ErrorCode::INSUFFICIENT_RESOURCES) => ErrorKind::Full,
        Some(ErrorCode::STREAM_NOT_FOUND) => ErrorKind::NotFound,
        Some(ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED) => {
            let why = "several copies need a NATS cluster of as many nodes: leave --stream-replicas out, or start the cluster";
            return Error::new(ErrorKind::Refused, format!("can't make the {what}: {why}")).because(error);
        }
        _ => ErrorKind::Transient,
    };
    let room = if kind == ErrorKind::Full { no_room() } else { String::new() };
    Error::new(kind, format!("can't make the {what}{room}")).because(error)
}

/// What a server without room for the streams must have.
fn no_room() -> String {
    let mib = (JOBS_BYTES + EVENTS_BYTES + DEAD_BYTES) / MIB;
    format!(
        ": the NATS server has too little storage. The streams reserve {mib} MiB; without a limit of its own a server \
         takes three quarters of the free disk, so {} MiB must be free",
        mib * 4 / 3 + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_room_is_told_how_much_is_needed() {
        let reserved: i64 = streams().iter().map(|stream| stream.max_bytes).sum();
        assert!(no_room().contains(&format!("reserve {} MiB", reserved / MIB)), "{}", no_room());
    }

    #[test]
    fn a_node_that_is_down_does_not_cost_the_copies() {
        assert_eq!(Copies::AtLeast(1).of(Some(3)), 3);
        assert_eq!(Copies::AtLeast(3).of(Some(1)), 3);
        assert_eq!(Copies::AtLeast(3).of(None), 3);
        assert_eq!(Copies::Exactly(1).of(Some(3)), 1);
    }
}
