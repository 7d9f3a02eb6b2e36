//! Where ingest reads a source's files: the file system, or what lies behind a URL.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use likeness_data::{Disk, Files, Places};
use likeness_link::Store;
use likeness_link::error::ErrorKind;
use likeness_link::remote::{RemoteFiles, is_remote};
use tokio::runtime::Handle;

/// Reads of a remote source that wait for an answer at the same time.
const REMOTE_READS: usize = 32;

/// What stands before the key of an object of our own store.
const OURS: &str = "store:";

/// An object of our own store as a file of a source.
pub fn in_store(key: &str) -> String {
    format!("{OURS}{key}")
}

/// The files of sources. Used on threads that are not tokio's own.
#[derive(Debug)]
pub struct SourceFiles {
    remote: RemoteFiles,
    store: Store,
    runtime: Handle,
}

impl SourceFiles {
    /// Reads what is remote on the runtime of the caller.
    pub fn new(store: Store) -> Self {
        Self { remote: RemoteFiles::default(), store, runtime: Handle::current() }
    }

    fn size_in_store(&self, key: &str) -> io::Result<u64> {
        self.wait(self.store.size(key))?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("`{key}`")))
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
        match path.strip_prefix(OURS) {
            Some(key) => self.size_in_store(key),
            None if is_remote(path) => self.wait(self.remote.size(path)),
            None => Disk.size(path),
        }
    }

    fn read(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        match path.strip_prefix(OURS) {
            Some(key) => self.wait(self.store.read_range(key, range)),
            None if is_remote(path) => self.wait(self.remote.read(path, range)),
            None => Disk.read(path, range),
        }
    }

    fn read_whole(&self, path: &str, limit: u64) -> io::Result<Result<Bytes, u64>> {
        if !is_remote(path) {
            return Disk.read_whole(path, limit);
        }
        match self.size(path)? {
            size if size > limit => Ok(Err(size)),
            size => self.read(path, 0..size).map(Ok),
        }
    }

    fn is_folder(&self, path: &str) -> io::Result<bool> {
        if is_remote(path) { self.wait(self.remote.is_folder(path)) } else { Disk.is_folder(path) }
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        if is_remote(folder) { self.wait(self.remote.list(folder)) } else { Disk.list(folder) }
    }
}

/// Runs `read` with as many threads as its images' folder can keep busy: those of a remote one mostly wait.
pub fn with_threads_for<T: Send>(places: &Places, read: impl FnOnce() -> T + Send) -> io::Result<T> {
    if !is_remote(&places.dir) {
        return Ok(read());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(REMOTE_READS).build().map_err(io::Error::other)?;
    Ok(pool.install(read))
}
