//! What a task and the search service get to work with.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use likeness_contract::documents::ObjectRef;
use likeness_contract::ids::{Digest, JobId, TaskId, WorkerId};
use likeness_contract::jobs::{JobSpec, TaskMessage, TaskRecord};
use likeness_contract::keys;
use likeness_link::Bus;
use likeness_link::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::device::DeviceThread;
use super::lease::Lease;
use crate::args::Settings;
use crate::cache::Cache;
use crate::error::TaskError;

/// What a context outside of any runtime keeps of parts and shards.
const CACHE_ALONE_BYTES: u64 = 1 << 30;

/// How far a task is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub of: u64,
    /// For instance `loss 0.093`.
    pub note: String,
}

/// Everything a task may touch. Cheap to clone, so that a closure on another thread can ask for `cancelled`
/// and tell its progress.
#[derive(Debug, Clone)]
pub struct TaskContext {
    /// The store.
    pub store: Store,
    /// The device; this handle counts the task's own device time.
    pub device: DeviceThread,
    /// What other tasks of this process loaded before.
    pub cache: Arc<Cache>,
    /// This worker.
    pub worker: WorkerId,
    /// See [`crate::args::Settings::approximate_rows`].
    pub approximate_rows: Option<NonZeroU32>,
    message: Arc<TaskMessage>,
    spec: Arc<JobSpec>,
    lease: Arc<Lease>,
    progress: watch::Sender<Option<Progress>>,
}

/// What the runtime shares with all tasks of the process.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub store: Store,
    pub device: DeviceThread,
    pub cache: Arc<Cache>,
    pub worker: WorkerId,
    pub approximate_rows: Option<NonZeroU32>,
}

impl TaskContext {
    pub(crate) fn new(
        shared: &Shared,
        message: Arc<TaskMessage>,
        spec: Arc<JobSpec>,
        lease: Arc<Lease>,
        progress: watch::Sender<Option<Progress>>,
    ) -> Self {
        let Shared { store, device, cache, worker, approximate_rows } = shared.clone();
        let device = device.metered();
        Self { store, device, cache, worker, approximate_rows, message, spec, lease, progress }
    }

    /// A context outside of any runtime, for benches: no broker, and a lease of a day.
    pub fn alone(store: Store, device: DeviceThread, worker: WorkerId, message: TaskMessage, spec: JobSpec) -> Self {
        let cache = Arc::new(Cache::new(store.clone(), CACHE_ALONE_BYTES));
        let lease = Arc::new(Lease::new(Instant::now(), Duration::from_secs(24 * 3600)));
        let shared = Shared { store, device, cache, worker, approximate_rows: None };
        Self::new(&shared, Arc::new(message), Arc::new(spec), lease, watch::Sender::new(None))
    }

    /// The message that is being worked on.
    pub fn message(&self) -> &TaskMessage {
        &self.message
    }

    /// The spec of its job.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// Its job.
    pub fn job(&self) -> &JobId {
        &self.message.job
    }

    /// The record of another task of the same job.
    ///
    /// # Errors
    /// Invalid when it is not there: a task is published only after those that it needs.
    pub async fn record(&self, task: &TaskId) -> Result<TaskRecord, TaskError> {
        Ok(self.store.require(&keys::task_record(self.job(), task)).await?)
    }

    /// Tells how far the task is. Throttled, never blocks.
    pub fn progress(&self, done: u64, of: u64, note: impl Into<String>) {
        self.progress.send_replace(Some(Progress { done, of, note: note.into() }));
    }

    /// Fails when the task must have no more side effects; call it right before every one.
    pub fn ensure_leased(&self) -> Result<(), TaskError> {
        Ok(self.lease.ensure(Instant::now())?)
    }

    /// Whether the task was told to stop. Cheap: for loops on the device thread.
    pub fn cancelled(&self) -> bool {
        self.lease.stopped()
    }

    /// Stores bytes under a key that carries their digest.
    pub async fn create_object(
        &self,
        key: impl FnOnce(&Digest) -> String,
        bytes: Vec<u8>,
    ) -> Result<ObjectRef, TaskError> {
        let (bytes, digest) = digest_of(bytes).await?;
        self.ensure_leased()?;
        Ok(self.store.create_object(key(&digest), bytes, digest).await?)
    }
}

/// Digests hundreds of megabytes away from tokio's own threads.
async fn digest_of(bytes: Vec<u8>) -> Result<(Bytes, Digest), TaskError> {
    let compute = move || {
        let digest = Digest::of(&bytes);
        (Bytes::from(bytes), digest)
    };
    tokio::task::spawn_blocking(compute).await.map_err(TaskError::transient)
}

/// Everything the search service gets.
#[derive(Debug, Clone)]
pub struct SearchContext {
    /// The store.
    pub store: Store,
    /// The broker.
    pub bus: Bus,
    /// This searcher.
    pub worker: WorkerId,
    /// A thread of its own on the worker's device: queries do not wait for tasks.
    pub device: DeviceThread,
    /// Shared with the tasks.
    pub cache: Arc<Cache>,
    /// The process's settings.
    pub settings: Arc<Settings>,
    /// Cancelled when the process leaves.
    pub shutdown: CancellationToken,
}
