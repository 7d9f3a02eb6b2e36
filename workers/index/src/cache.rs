//! A folder of shards and their approximate indexes in their local form, with a limit of bytes: a searcher that starts again is
//! ready at once.
//!
//! Files are named by the SHA-256 of the file that they were made from, so an old one is never taken for a new one. A file is
//! written under another name and renamed when it is complete; what a crash leaves of others is removed at the next start.
//! When there are more bytes than the limit, the file that was used the longest time ago goes, but never one whose shard or
//! index is still alive. One process has a folder at a time.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use crate::approximate::Approximate;
use crate::approximate::local::{self as local_index, Digests};
use crate::error::{ErrorKind, Result};
use crate::local::shard as local_shard;
use crate::shard::Shard;

const PARTIAL: &str = ".partial";
const LOCK: &str = "lock";

/// What a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Shard,
    Index,
}

impl Kind {
    fn suffix(self) -> &'static str {
        match self {
            Self::Shard => ".shard",
            Self::Index => ".index",
        }
    }
}

/// A file: its kind, and the digest of what it was made from.
type Name = (Kind, [u8; 32]);

/// See the module. Shared by threads; no call waits for the reading or writing of another shard.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    limit_bytes: u64,
    state: Mutex<State>,
    /// Locked as long as it is open.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<Name, Entry>,
    /// Rises with every use.
    clock: u64,
    /// Rises with every file that is begun.
    begun: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
    /// Alive as long as what was opened from the file.
    lease: Weak<()>,
}

impl Cache {
    /// Takes a folder, which is made if there is none, and removes what a crash left unfinished or is too much.
    ///
    /// Fails when it can't be used, with `ResourceBusy` when another process has it.
    pub fn open(folder: impl AsRef<Path>, limit_bytes: u64) -> io::Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        fs::create_dir_all(&folder).map_err(|error| about(&folder, &error))?;
        let lock = File::create(folder.join(LOCK)).map_err(|error| about(&folder, &error))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                let message = format!("another process has the shard cache `{}`", folder.display());
                io::Error::new(io::ErrorKind::ResourceBusy, message)
            }
            fs::TryLockError::Error(error) => about(&folder, &error),
        })?;
        let files = found(&folder).map_err(|error| about(&folder, &error))?;
        let state = Mutex::new(State::of(files));
        let cache = Self { folder, limit_bytes, state, _lock: lock };
        cache.make_room(&mut cache.state(), 0);
        Ok(cache)
    }

    /// The shard with this digest as number `number`; `None` if it is not there.
    ///
    /// A file with anything wrong is removed, and the error says what it was (`Corrupt`): load the shard from its Parquet
    /// file and [`Self::put`] it again. Runs on the current rayon pool.
    pub fn get(&self, number: u32, digest: &[u8; 32]) -> Result<Option<Shard>> {
        let found = self.open_file((Kind::Shard, *digest), |path| local_shard::open(number, path, digest))?;
        Ok(found.map(|(mut shard, lease)| {
            shard.set_lease(lease);
            shard
        }))
    }

    /// Writes a shard, and throws away what was not used for the longest time as far as the limit asks for it.
    ///
    /// `false` where it has no room beside what is in use. The shard at hand stays as it is: [`Self::get`] gives one whose
    /// rows lie in the file. A shard that is there already is not written again.
    pub fn put(&self, digest: &[u8; 32], shard: &Shard) -> io::Result<bool> {
        self.write_file((Kind::Shard, *digest), |path| local_shard::write(shard, digest, path))
    }

    /// The approximate index whose file has `index` as its digest, for the shard whose file has `digest`; as [`Self::get`].
    pub fn get_index(&self, shard: &Shard, digest: &[u8; 32], index: &[u8; 32]) -> Result<Option<Approximate>> {
        let digests = Digests { index, shard: digest };
        let found = self.open_file((Kind::Index, *index), |path| local_index::open(shard, digests, path))?;
        Ok(found.map(|(mut index, lease)| {
            index.set_lease(lease);
            index
        }))
    }

    /// Writes a shard's approximate index; as [`Self::put`].
    pub fn put_index(
        &self,
        shard: &Shard,
        digest: &[u8; 32],
        index: &[u8; 32],
        approximate: &Approximate,
    ) -> io::Result<bool> {
        let digests = Digests { index, shard: digest };
        self.write_file((Kind::Index, *index), |path| local_index::write(approximate, shard, digests, path))
    }

    /// What is opened from a file, with what keeps it from being thrown away.
    fn open_file<T>(&self, name: Name, open: impl FnOnce(&Path) -> Result<T>) -> Result<Option<(T, Arc<()>)>> {
        let lease = {
            let mut state = self.state();
            let used = state.tick();
            let Some(entry) = state.files.get_mut(&name) else { return Ok(None) };
            entry.used = used;
            // Before the file is read, so that nobody throws it away meanwhile.
            entry.lease.upgrade().unwrap_or_else(|| {
                let lease = Arc::new(());
                entry.lease = Arc::downgrade(&lease);
                lease
            })
        };
        let path = self.path(&name);
        match open(&path) {
            Ok(opened) => {
                // Tells the order of use to the next process; only a hint.
                let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                Ok(Some((opened, lease)))
            }
            Err(error) => {
                if error.kind == ErrorKind::Corrupt {
                    self.state().files.remove(&name);
                    let _ = fs::remove_file(&path);
                }
                Err(error)
            }
        }
    }

    fn write_file(&self, name: Name, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<bool> {
        let partial = {
            let mut state = self.state();
            if state.files.contains_key(&name) {
                return Ok(true);
            }
            state.begun += 1;
            self.folder.join(format!("{}-{}{PARTIAL}", hex(&name.1), state.begun))
        };
        let written = write(&partial).and_then(|()| Ok(fs::metadata(&partial)?.len()));
        let kept = written.and_then(|bytes| self.keep(name, &partial, bytes)).map_err(|error| about(&partial, &error));
        // Gone already where it was renamed.
        let _ = fs::remove_file(&partial);
        kept
    }

    /// Gives a file that was written its name, if there is room.
    fn keep(&self, name: Name, partial: &Path, bytes: u64) -> io::Result<bool> {
        let mut state = self.state();
        if state.files.contains_key(&name) {
            return Ok(true);
        }
        if !self.make_room(&mut state, bytes) {
            return Ok(false);
        }
        fs::rename(partial, self.path(&name))?;
        let used = state.tick();
        state.files.insert(name, Entry { bytes, used, lease: Weak::new() });
        Ok(true)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.state().bytes()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, (kind, digest): &Name) -> PathBuf {
        self.folder.join(hex(digest) + kind.suffix())
    }

    /// Removes files, the longest unused first, until `more` bytes have room; `false` where that can't be.
    fn make_room(&self, state: &mut State, more: u64) -> bool {
        let bound: u64 = state.files.values().filter(|entry| entry.is_in_use()).map(|entry| entry.bytes).sum();
        if bound.saturating_add(more) > self.limit_bytes && more > 0 {
            return false;
        }
        while state.bytes().saturating_add(more) > self.limit_bytes {
            let unused = state.files.iter().filter(|(_, entry)| !entry.is_in_use());
            let Some(name) = unused.min_by_key(|(_, entry)| entry.used).map(|(name, _)| *name) else {
                return false;
            };
            state.files.remove(&name);
            let _ = fs::remove_file(self.path(&name));
        }
        true
    }
}

impl State {
    /// Of files, the longest unused first.
    fn of(files: Vec<(Name, u64)>) -> Self {
        let mut state = Self::default();
        for (name, bytes) in files {
            let used = state.tick();
            state.files.insert(name, Entry { bytes, used, lease: Weak::new() });
        }
        state
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|entry| entry.bytes).sum()
    }
}

impl Entry {
    fn is_in_use(&self) -> bool {
        self.lease.strong_count() > 0
    }
}

/// The complete files of a folder, the longest unused first; removes those that were never finished.
fn found(folder: &Path) -> io::Result<Vec<(Name, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(PARTIAL) {
            fs::remove_file(entry.path())?;
        } else if let Some(name) = name_of(&name) {
            let about = entry.metadata()?;
            files.push((about.modified().unwrap_or(SystemTime::UNIX_EPOCH), name, about.len()));
        }
    }
    files.sort_unstable();
    Ok(files.into_iter().map(|(_, name, bytes)| (name, bytes)).collect())
}

fn name_of(file: &str) -> Option<Name> {
    [Kind::Shard, Kind::Index].into_iter().find_map(|kind| Some((kind, digest_of(file.strip_suffix(kind.suffix())?)?)))
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest_of(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().as_chunks::<2>().0) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

/// An error with the path that it is about.
fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
}
