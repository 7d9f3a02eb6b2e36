//! Buckets of typed entries: caches and leases, never truth.
//!
//! A read may be stale (replicas answer it), so decisions rest on the results of [`Kv::create`] and
//! [`Kv::update`] alone: exactly one of several callers succeeds.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{KeyValueErrorKind, PublishErrorKind};
use async_nats::jetstream::kv;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use likeness_contract::codec::{self, Encoding, Message};
use tokio::time::Interval;

use crate::bus::{Bus, server_code};
use crate::error::{Error, ErrorKind, Result, chain};

/// Entries that are read at once.
const AT_ONCE: usize = 16;
/// Pause before a broken watch is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);
/// A watch looks so often whether its bucket is still the one that it was opened on.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// A bucket. Cheap to clone.
#[derive(Clone)]
pub struct Kv {
    bus: Bus,
    store: kv::Store,
}

/// An entry with the revision that [`Kv::update`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<M> {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: M,
    /// Grows with every change in the bucket.
    pub revision: u64,
}

/// What a [`Watch`] reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<M> {
    /// There is this entry now; reported again after a reconnect.
    Put(Entry<M>),
    /// The entry was deleted. One that dies of its age is not reported.
    Gone {
        /// Its key.
        key: String,
    },
}

impl fmt::Debug for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kv").field("bucket", &self.store.name).finish_non_exhaustive()
    }
}

impl Kv {
    pub(crate) async fn open(bus: Bus, bucket: &str) -> Result<Self> {
        match bus.jetstream().get_key_value(bucket).await {
            Ok(store) => Ok(Self { bus, store }),
            Err(error) => {
                let gone = server_code(&error) == Some(ErrorCode::STREAM_NOT_FOUND);
                let kind = match error.kind() {
                    KeyValueErrorKind::InvalidStoreName => ErrorKind::Invalid,
                    _ if gone => ErrorKind::NotFound,
                    _ => ErrorKind::Transient,
                };
                Err(Error::new(kind, format!("can't open the bucket `{bucket}`")).because(error))
            }
        }
    }

    /// Creates an entry and returns its revision; none when the key is taken.
    pub async fn create<M: Message>(&self, key: &str, value: &M) -> Result<Option<u64>> {
        use kv::CreateErrorKind as K;
        match self.store.create(key, encode(key, value)?).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == K::AlreadyExists || is_conflict(&error) => Ok(None),
            Err(error) => Err(self.failed("create", key, error)),
        }
    }

    /// Replaces the entry at a revision and returns the new one; none when somebody changed it meanwhile.
    pub async fn update<M: Message>(&self, key: &str, value: &M, revision: u64) -> Result<Option<u64>> {
        match self.store.update(key, encode(key, value)?, revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision || is_conflict(&error) => Ok(None),
            Err(error) => Err(self.failed("update", key, error)),
        }
    }

    /// Writes an entry whatever is there, and returns its revision.
    pub async fn put<M: Message>(&self, key: &str, value: &M) -> Result<u64> {
        self.store.put(key, encode(key, value)?).await.map_err(|e| self.failed("write", key, e))
    }

    /// The entry at a key; possibly an old one.
    pub async fn get<M: Message>(&self, key: &str) -> Result<Option<Entry<M>>> {
        match self.store.entry(key).await.map_err(|e| self.failed("read", key, e))? {
            Some(entry) if entry.operation == kv::Operation::Put => decode(&entry).map(Some),
            _ => Ok(None),
        }
    }

    /// Deletes an entry; nothing happens when there is none.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.store.delete(key).await.map_err(|e| self.failed("delete", key, e))
    }

    /// Deletes the entry at a revision; false when somebody changed it meanwhile.
    pub async fn delete_at(&self, key: &str, revision: u64) -> Result<bool> {
        match self.store.delete_expect_revision(key, Some(revision)).await {
            Ok(()) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(self.failed("delete", key, error)),
        }
    }

    /// Keys that have an entry, or had one. Asked of the stream itself: the client library would make a consumer, which on a
    /// cluster may be put on a node that is down.
    async fn keys(&self) -> Result<Vec<String>> {
        let prefix = format!("$KV.{}.", self.store.name);
        let listed = self.store.stream.info_with_subjects(format!("{prefix}>")).await;
        let subjects = listed.map_err(|e| self.failed("list", ">", e))?;
        let subjects: Vec<(String, usize)> = subjects.try_collect().await.map_err(|e| self.failed("list", ">", e))?;
        Ok(subjects.iter().filter_map(|(subject, _)| subject.strip_prefix(&prefix)).map(String::from).collect())
    }

    /// All entries, sorted by key. One that cannot be decoded is left out with a warning.
    pub async fn entries<M: Message>(&self) -> Result<Vec<Entry<M>>> {
        let keys = self.keys().await?;
        let reads = futures::stream::iter(keys).map(|key| async move { (self.get::<M>(&key).await, key) });
        let read: Vec<_> = reads.buffer_unordered(AT_ONCE).collect().await;
        let mut entries = Vec::with_capacity(read.len());
        for (entry, key) in read {
            match entry {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => {}
                Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Newer) => {
                    tracing::warn!(bucket = %self.store.name, %key, error = %chain(&error), "entry left out");
                }
                Err(error) => return Err(error),
            }
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    /// Reports all entries and then every change. Mends itself when the connection or the bucket was lost.
    pub fn watch<M: Message>(&self) -> Watch<M> {
        Watch { kv: self.clone(), changes: None, look: tokio::time::interval(LOOK_EVERY), of: PhantomData }
    }

    /// Whether the bucket is certainly another one than that made at `then`, or gone.
    async fn was_made_anew(&self, then: DateTime) -> bool {
        match self.store.stream.get_info().await {
            Ok(info) => info.created != then,
            Err(error) => server_code(&error) == Some(ErrorCode::STREAM_NOT_FOUND),
        }
    }

    fn failed(&self, what: &str, key: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        let subject = format!("$KV.{}.{key}", self.store.name);
        if let Some(refused) = self.bus.forbidden(&subject) {
            return refused;
        }
        let kind = if self.bus.is_connected() { kind_of(&error) } else { ErrorKind::Unreachable };
        Error::new(kind, format!("can't {what} `{key}` in the bucket `{}`", self.store.name)).because(error)
    }
}

/// Entries and changes of a bucket, for ever.
#[derive(Debug)]
pub struct Watch<M> {
    kv: Kv,
    changes: Option<Changes>,
    look: Interval,
    of: PhantomData<fn() -> M>,
}

struct Changes {
    watch: kv::Watch,
    /// When the bucket was made. In one that was made anew revisions begin again, and the client library would
    /// wait for the revision after the last one it saw.
    bucket_made: DateTime,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("bucket_made", &self.bucket_made).finish_non_exhaustive()
    }
}

impl<M: Message> Watch<M> {
    /// The next change. Cancelling the call loses nothing. Entries that cannot be decoded are left out with a
    /// warning.
    pub async fn next(&mut self) -> Change<M> {
        loop {
            let Some(changes) = &mut self.changes else {
                self.open().await;
                continue;
            };
            let broke = tokio::select! {
                biased;
                next = changes.watch.next() => match next {
                    Some(Ok(entry)) => match change(&self.kv, entry) {
                        Some(change) => return change,
                        None => continue,
                    },
                    Some(Err(error)) => chain(&error),
                    None => "it ended".into(),
                },
                _ = self.look.tick() => {
                    if !self.kv.was_made_anew(changes.bucket_made).await {
                        continue;
                    }
                    "the bucket was made anew".into()
                }
            };
            tracing::warn!(bucket = %self.kv.store.name, why = %broke, "watch broke, opening it again");
            self.changes = None;
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }

    async fn open(&mut self) {
        let Err(error) = self.try_open().await else { return };
        tracing::warn!(bucket = %self.kv.store.name, error = %chain(error.as_ref()), "can't watch the bucket yet");
        tokio::time::sleep(REOPEN_PAUSE).await;
    }

    async fn try_open(&mut self) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let bucket_made = self.kv.store.stream.get_info().await?.created;
        // The last value of every key comes first.
        let watch = self.kv.store.watch_with_history(">").await?;
        self.changes = Some(Changes { watch, bucket_made });
        Ok(())
    }
}

fn change<M: Message>(kv: &Kv, entry: kv::Entry) -> Option<Change<M>> {
    if entry.operation != kv::Operation::Put {
        return Some(Change::Gone { key: entry.key });
    }
    match decode(&entry) {
        Ok(entry) => Some(Change::Put(entry)),
        Err(error) => {
            tracing::warn!(bucket = %kv.store.name, key = %entry.key, error = %chain(&error), "entry left out");
            None
        }
    }
}

fn encode<M: Message>(key: &str, value: &M) -> Result<Bytes> {
    let encoded = codec::encode(value, Encoding::Bincode);
    encoded.map(Bytes::from).map_err(|e| Error::of_codec(&format!("entry `{key}`"), e))
}

fn decode<M: Message>(entry: &kv::Entry) -> Result<Entry<M>> {
    let kv::Entry { key, value, revision, .. } = entry;
    let value = codec::decode(value, Encoding::detect(None, value));
    let value = value.map_err(|e| Error::of_codec(&format!("entry `{key}`"), e))?;
    Ok(Entry { key: key.clone(), value, revision: *revision })
}

/// The server refused a write because the key has another revision.
fn is_conflict(error: &(dyn std::error::Error + 'static)) -> bool {
    let codes = [ErrorCode::STREAM_WRONG_LAST_SEQUENCE, ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT];
    server_code(error).is_some_and(|code| codes.contains(&code))
}

fn kind_of(error: &(dyn std::error::Error + 'static)) -> ErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let publish = error.downcast_ref::<async_nats::jetstream::context::PublishError>();
        match publish.map(|e| e.kind()) {
            Some(PublishErrorKind::StreamNotFound) => return ErrorKind::NotFound,
            Some(PublishErrorKind::MaxPayloadExceeded) => return ErrorKind::Invalid,
            _ => cause = error.source(),
        }
    }
    ErrorKind::Transient
}
