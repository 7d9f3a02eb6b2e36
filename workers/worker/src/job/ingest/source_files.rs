//! Where ingest reads a source's files: the file system, or what lies behind a URL.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use likeness_contract::jobs::{CsvSource, IngestSource};
use likeness_data::{Disk, Files};
use likeness_link::error::ErrorKind;
use likeness_link::remote::{RemoteFiles, is_remote};
use tokio::runtime::Handle;

/// Reads of a remote source that wait for an answer at the same time.
const REMOTE_READS: usize = 32;

/// The files of sources. Used on threads that are not tokio's own.
#[derive(Debug)]
pub struct SourceFiles {
    remote: RemoteFiles,
    runtime: Handle,
}

impl SourceFiles {
    /// Reads what is remote on the runtime of the caller.
    pub fn new() -> Self {
        Self { remote: RemoteFiles::default(), runtime: Handle::current() }
    }

    fn wait<T>(&self, answer: impl Future<Output = likeness_link::Result<T>>) -> io::Result<T> {
        self.runtime.block_on(answer).map_err(|error| {
            let kind = match error.kind {
                ErrorKind::NotFound => io::ErrorKind::NotFound,
                ErrorKind::Refused => io::ErrorKind::PermissionDenied,
                ErrorKind::Invalid => io::ErrorKind::InvalidInput,
                _ => io::ErrorKind::Other,
            };
            io::Error::new(kind, error)
        })
    }
}

impl Files for SourceFiles {
    fn size(&self, path: &str) -> io::Result<u64> {
        if is_remote(path) { self.wait(self.remote.size(path)) } else { Disk.size(path) }
    }

    fn read(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        if is_remote(path) { self.wait(self.remote.read(path, range)) } else { Disk.read(path, range) }
    }

    fn is_folder(&self, path: &str) -> io::Result<bool> {
        if is_remote(path) { self.wait(self.remote.is_folder(path)) } else { Disk.is_folder(path) }
    }
}

/// Runs `read` with as many threads as its source can keep busy: those of a remote source mostly wait.
pub fn with_threads_for<T: Send>(source: &IngestSource, read: impl FnOnce() -> T + Send) -> io::Result<T> {
    let dir = match source {
        IngestSource::Celeba { dir } | IngestSource::Csv(CsvSource { dir, .. }) => dir,
        IngestSource::Parquet { .. } => return Ok(read()),
    };
    if !is_remote(dir) {
        return Ok(read());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(REMOTE_READS).build().map_err(io::Error::other)?;
    Ok(pool.install(read))
}
