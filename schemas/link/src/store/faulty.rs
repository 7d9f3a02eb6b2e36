//! An object store that fails on demand, for the tests of every crate.
//!
//! ```
//! # use std::sync::Arc;
//! # use likeness_link::store::{Store, faulty::FaultyStore};
//! let faulty = FaultyStore::in_memory();
//! let store = Store::over(Arc::new(faulty.clone()), "memory:");
//! faulty.set(|faults| faults.full = true);
//! ```

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

const NAME: &str = "faulty";

/// What goes wrong. Counts go down by one each time they strike.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Only keys that contain this text are affected; all of them without.
    pub only: Option<String>,
    /// Create-if-absent overwrites.
    pub ignores_create: bool,
    /// Writes fail because the disk is full.
    pub full: bool,
    /// Nothing answers.
    pub unavailable: bool,
    /// So many writes succeed and report a time-out.
    pub errors_after_success: u32,
    /// So many writes answer 409 and write nothing.
    pub conflicts: u32,
    /// Reads return one flipped bit.
    pub corrupt_reads: bool,
    /// Reads return all but the last byte.
    pub truncated_reads: bool,
    /// Every operation takes so long.
    pub delay: Option<Duration>,
}

/// A wrapper whose faults can be switched while it is in use. Clones share objects and faults.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<Mutex<Faults>>,
}

impl FaultyStore {
    /// Over another store, without faults yet.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, faults: Arc::default() }
    }

    /// Over an empty store in memory.
    pub fn in_memory() -> Self {
        Self::new(Arc::new(InMemory::new()))
    }

    /// Changes the faults.
    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The faults that strike an operation on a key now; counts go down.
    fn strike(&self, key: &Path, write: bool) -> Faults {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.only.as_ref().is_some_and(|only| !key.as_ref().contains(only)) {
            return Faults::default();
        }
        let now = faults.clone();
        if write {
            faults.conflicts = faults.conflicts.saturating_sub(1);
            if now.conflicts == 0 {
                faults.errors_after_success = faults.errors_after_success.saturating_sub(1);
            }
        }
        now
    }

    async fn enter(&self, key: &Path, write: bool) -> Result<Faults> {
        let faults = self.strike(key, write);
        if let Some(delay) = faults.delay {
            tokio::time::sleep(delay).await;
        }
        if faults.unavailable {
            return Err(generic(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens")));
        }
        if write && faults.full {
            return Err(generic(io::Error::new(io::ErrorKind::StorageFull, "no space left on device")));
        }
        Ok(faults)
    }
}

fn generic(source: io::Error) -> Error {
    Error::Generic { store: NAME, source: Box::new(source) }
}

fn damage(bytes: Bytes, faults: &Faults) -> Bytes {
    let mut bytes = bytes.to_vec();
    if faults.truncated_reads {
        bytes.pop();
    }
    if let (true, Some(byte)) = (faults.corrupt_reads, bytes.first_mut()) {
        *byte ^= 1;
    }
    bytes.into()
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let faults = self.enter(location, true).await?;
        if faults.conflicts > 0 {
            return Err(Error::AlreadyExists { path: location.to_string(), source: "409 Conflict".into() });
        }
        if faults.ignores_create {
            options.mode = PutMode::Overwrite;
        }
        let result = self.inner.put_opts(location, payload, options).await?;
        if faults.errors_after_success > 0 {
            return Err(generic(io::Error::new(io::ErrorKind::TimedOut, "timed out")));
        }
        Ok(result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.enter(location, true).await?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let faults = self.enter(location, false).await?;
        let result = self.inner.get_opts(location, options).await?;
        if !faults.corrupt_reads && !faults.truncated_reads {
            return Ok(result);
        }
        let (meta, range, attributes, extensions) =
            (result.meta.clone(), result.range.clone(), result.attributes.clone(), result.extensions.clone());
        let bytes = damage(result.bytes().await?, &faults);
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let entered = async move {
            match this.enter(prefix.as_ref().unwrap_or(&Path::default()), false).await {
                Ok(_) => this.inner.list(prefix.as_ref()),
                Err(error) => stream::once(async { Err(error) }).boxed(),
            }
        };
        stream::once(entered).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.enter(prefix.unwrap_or(&Path::default()), false).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.enter(to, true).await?;
        self.inner.copy_opts(from, to, options).await
    }
}
