//! `up.json` and the lock: how other processes find what runs in a folder, and why only one runs there.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use likeness_contract::ids::Digest;
use serde::{Deserialize, Serialize};

use crate::command::exit::{Failure, Outcome};

const STATE_FILE: &str = "up.json";
const LOCK_FILE: &str = "up.lock";
/// What `likeness up` makes beside these: logs, the NATS server's streams, the store.
const FOLDERS: [&str; 3] = ["logs", "nats", "store"];

/// `up.json`: what runs in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpState {
    /// Address of the NATS server.
    pub nats: String,
    /// The store, an absolute path.
    pub store: String,
    /// Address of the gateway, `http://…`; none of a version without one, and until it answers.
    #[serde(default)]
    pub http: Option<String>,
    /// Process id of `likeness up`.
    pub pid: u32,
    /// Its children.
    pub pids: Vec<ChildPid>,
}

/// A child process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildPid {
    /// `nats-server`, `coordinator`, `worker-1`.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

impl UpState {
    /// Writes it so that readers see all of it or the one before.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        let draft = dir.join(format!("{STATE_FILE}.draft"));
        std::fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(draft, dir.join(STATE_FILE))
    }

    #[cfg(test)]
    pub fn for_tests() -> Self {
        Self { nats: String::new(), store: String::new(), http: None, pid: 1, pids: Vec::new() }
    }
}

/// What runs in `dir` at this moment.
pub fn running(dir: &Path) -> Option<UpState> {
    let state: UpState = serde_json::from_slice(&std::fs::read(dir.join(STATE_FILE)).ok()?).ok()?;
    is_locked(dir).then_some(state)
}

/// Whether somebody holds the lock; the kernel drops it with its process.
fn is_locked(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK_FILE)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// The right to run in a folder, held until it is dropped.
#[derive(Debug)]
pub struct DirLock {
    dir: PathBuf,
    _file: File,
}

impl DirLock {
    /// Makes the folder and takes its lock; `None` when somebody else holds it.
    pub fn try_take(dir: &Path) -> Outcome<Option<Self>> {
        let cannot =
            |what: &str, error: std::io::Error| Failure::failed(format!("can't {what} `{}`: {error}", dir.display()));
        std::fs::create_dir_all(dir).map_err(|error| cannot("make the folder", error))?;
        let dir = dir.canonicalize().map_err(|error| cannot("find the folder", error))?;
        let lock = dir.join(LOCK_FILE);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
            .map_err(|error| cannot("write to", error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { dir, _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(cannot("lock", error)),
        }
    }

    /// Takes the lock, or says who has it.
    pub fn take(dir: &Path) -> Outcome<Self> {
        Self::try_take(dir)?.ok_or_else(|| taken(dir))
    }

    /// Takes the lock, and removes what an earlier `likeness up` left in the folder. A folder with other things
    /// in it is refused and stays as it is.
    pub fn take_fresh(dir: &Path) -> Outcome<Self> {
        let is_empty = std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
        if !is_empty && !dir.join(LOCK_FILE).exists() {
            let dir = dir.display();
            return Err(Failure::usage(format!("`{dir}` is not a folder of `likeness up`: nothing in it is removed")));
        }
        let lock = Self::take(dir)?;
        for folder in FOLDERS {
            let folder = lock.dir.join(folder);
            if folder.exists() {
                std::fs::remove_dir_all(folder)?;
            }
        }
        Ok(lock)
    }

    /// The folder, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // A stale file is harmless: readers look at the lock.
        let _ = std::fs::remove_file(self.dir.join(STATE_FILE));
    }
}

fn taken(dir: &Path) -> Failure {
    let who = running(dir).map_or(String::new(), |up| format!(" (process {}, {})", up.pid, up.nats));
    Failure::failed(format!(
        "`{}` is in use by another `likeness up`{who}: stop that one, or name another folder",
        dir.display()
    ))
}

/// A short name for a path: the same for the same folder.
pub fn path_token(path: &Path) -> String {
    Digest::of(path.as_os_str().as_encoded_bytes()).short()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_and_the_second_is_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        UpState { nats: "nats://x:1".into(), pid: 77, ..UpState::for_tests() }.write(lock.dir()).unwrap();
        let error = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains("process 77") && error.contains("nats://x:1"), "{error}");
    }

    #[test]
    fn a_fresh_start_removes_what_is_ours_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let thesis = dir.path().join("thesis.txt");
        std::fs::write(&thesis, "precious").unwrap();
        assert!(DirLock::take_fresh(dir.path()).is_err());
        assert!(thesis.exists());

        let own = dir.path().join("own");
        let lock = DirLock::take_fresh(&own).unwrap();
        std::fs::create_dir_all(own.join("store/jobs")).unwrap();
        std::fs::write(own.join("notes.txt"), "kept").unwrap();
        assert!(DirLock::take_fresh(&own).is_err(), "somebody runs there");
        assert!(own.join("store/jobs").exists());
        drop(lock);
        let _lock = DirLock::take_fresh(&own).unwrap();
        assert!(!own.join("store").exists() && own.join("notes.txt").exists());
    }

    #[test]
    fn what_runs_is_found_until_it_stops() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(running(dir.path()), None);
        let lock = DirLock::take(dir.path()).unwrap();
        let state = UpState::for_tests();
        state.write(lock.dir()).unwrap();
        assert_eq!(running(dir.path()), Some(state.clone()));
        drop(lock);
        assert_eq!(running(dir.path()), None);
        state.write(dir.path()).unwrap();
        assert_eq!(running(dir.path()), None, "left behind by a killed process");
    }
}
