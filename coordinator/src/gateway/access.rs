//! Who may ask: bearer keys with roles, stored as digests, and how often.
//!
//! The file has one key a line, `NAME ROLE sha256:DIGEST [RATE]`; `#` begins a comment. It is read again when it changes, so that a
//! key can be added or withdrawn while the gateway runs. Keys are 256 random bits, so a plain digest of them can't be turned back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use likeness_contract::ids::Digest;
use schemars::JsonSchema;
use serde::Serialize;

use crate::command::exit::{Failure, Outcome};

/// Requests a second of a key that says nothing else.
pub const DEFAULT_RATE: f64 = 200.0;
/// Seconds of its rate that a key may use at once after a pause: a page of pictures.
const BURST_SECONDS: f64 = 2.0;
/// A changed file of keys is noticed within this time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a key may do; each role may also do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Searches and looks.
    Reader,
    /// Also submits, cancels and retries jobs, promotes and rolls back.
    Operator,
    /// Also takes items down and reconciles.
    Admin,
}

impl Role {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Reader, Self::Operator, Self::Admin];
        let found = all.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| format!("`{text}` is no role: reader, operator or admin"))
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// The key's name, for logs.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Requests a second.
    pub rate: f64,
}

/// A line of the file.
fn parse_line(line: &str, rate: f64) -> Result<Option<(Digest, Caller)>, String> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, role, digest, own_rate) = match words.as_slice() {
        [] => return Ok(None),
        [name, role, digest] => (name, role, digest, None),
        [name, role, digest, rate] => (name, role, digest, Some(rate)),
        _ => return Err("a line is `NAME ROLE sha256:DIGEST [RATE]`".into()),
    };
    let digest = digest.strip_prefix("sha256:").ok_or("the third word is `sha256:` and the digest of the key")?;
    let digest = Digest::try_from(digest.to_string()).map_err(|error| error.to_string())?;
    let rate = match own_rate {
        None => rate,
        Some(text) => {
            text.parse().ok().filter(|rate| (0.001..=1e9).contains(rate)).ok_or("the rate is a number above 0")?
        }
    };
    Ok(Some((digest, Caller { name: (*name).into(), role: role.parse()?, rate })))
}

fn parse(text: &str, rate: f64) -> Result<HashMap<Digest, Caller>, String> {
    let mut keys = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let parsed = parse_line(line, rate).map_err(|error| format!("line {}: {error}", number + 1))?;
        keys.extend(parsed);
    }
    Ok(keys)
}

/// A new key, and the line of the file that lets it in.
pub fn new_key(name: &str, role: Role, rate: Option<f64>) -> Outcome<(String, String)> {
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '#') {
        return Err(Failure::usage(format!("`{name}` is no name of a key: no blanks, no `#`")));
    }
    let mut bytes = [0u8; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    let key = format!("lk_{}", base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes));
    let digest = Digest::of(key.as_bytes());
    let rate = rate.map_or(String::new(), |rate| format!(" {rate}"));
    let line = format!("{name} {} sha256:{}{rate}", role.name(), String::from(digest));
    Ok((key, line))
}

/// The keys in force.
#[derive(Debug)]
pub enum Keys {
    /// Nobody is asked for a key: only for addresses of this machine itself.
    Local {
        /// Requests a second.
        rate: f64,
    },
    /// Those of a file.
    File(KeyFile),
}

impl Keys {
    /// Those of a file; without one everybody on this machine.
    pub fn open(file: Option<&Path>, rate: f64) -> Outcome<Self> {
        match file {
            None => Ok(Self::Local { rate }),
            Some(file) => KeyFile::open(file, rate).map(Self::File),
        }
    }

    /// Whether nobody is asked for a key.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Local { .. })
    }

    /// Who has this key.
    pub fn caller(&self, key: Option<&str>) -> Option<Caller> {
        match self {
            Self::Local { rate } => Some(Caller { name: "local".into(), role: Role::Admin, rate: *rate }),
            Self::File(file) => file.caller(key?),
        }
    }
}

/// A file of keys.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    rate: f64,
    keys: RwLock<HashMap<Digest, Caller>>,
    looked: Mutex<(Instant, Option<SystemTime>)>,
}

impl KeyFile {
    fn open(path: &Path, rate: f64) -> Outcome<Self> {
        let bad = |error: String| Failure::usage(format!("can't use the keys in `{}`: {error}", path.display()));
        let changed = changed(path);
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let keys = RwLock::new(parse(&text, rate).map_err(bad)?);
        Ok(Self { path: path.into(), rate, keys, looked: Mutex::new((Instant::now(), changed)) })
    }

    fn caller(&self, key: &str) -> Option<Caller> {
        self.look();
        let digest = Digest::of(key.as_bytes());
        self.keys.read().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned()
    }

    /// Reads the file again when it has changed; one that can't be understood changes nothing.
    fn look(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.0.elapsed() < LOOK_EVERY {
            return;
        }
        looked.0 = Instant::now();
        let changed = changed(&self.path);
        if changed == looked.1 {
            return;
        }
        looked.1 = changed;
        let read = std::fs::read_to_string(&self.path).map_err(|error| error.to_string());
        match read.and_then(|text| parse(&text, self.rate)) {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "the file of keys was read again");
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
            }
            Err(error) => {
                tracing::warn!(%error, "the file of keys has changed and can't be used: those of before count")
            }
        }
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// How often each caller asks: a bucket that fills at the caller's rate.
#[derive(Debug, Clone, Default)]
pub struct Rates(Arc<Mutex<HashMap<String, Bucket>>>);

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    /// Takes one request out of the caller's bucket; else the seconds until there is one.
    pub fn take(&self, caller: &Caller, now: Instant) -> Result<(), u32> {
        let most = (caller.rate * BURST_SECONDS).max(1.0);
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(caller.name.clone()).or_insert(Bucket { left: most, at: now });
        bucket.left = (bucket.left + caller.rate * now.saturating_duration_since(bucket.at).as_secs_f64()).min(most);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(((1.0 - bucket.left) / caller.rate).ceil().clamp(1.0, 3600.0) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_digest_and_the_file_does_not_hold_it() {
        let (key, line) = new_key("ci", Role::Operator, Some(2.5)).unwrap();
        assert!(!line.contains(&key));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        std::fs::write(&file, format!("# who may\n\n{line}\n")).unwrap();
        let keys = Keys::open(Some(&file), 1.0).unwrap();
        assert_eq!(keys.caller(Some(&key)), Some(Caller { name: "ci".into(), role: Role::Operator, rate: 2.5 }));
        assert_eq!(keys.caller(Some("lk_other")), None);
        assert_eq!(keys.caller(None), None);
        assert!(new_key("a b", Role::Reader, None).is_err());
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_by_its_line() {
        let digest = "0".repeat(64);
        for wrong in [
            format!("a boss sha256:{digest}"),
            "a reader secret".into(),
            format!("a reader sha256:{digest} 0"),
            "a".into(),
        ] {
            let error = parse(&format!("\n{wrong}"), 1.0).unwrap_err();
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }

    #[test]
    fn a_key_that_was_withdrawn_is_no_longer_let_in() {
        let (key, line) = new_key("ci", Role::Reader, None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, line).unwrap();
        let file = KeyFile::open(&path, 1.0).unwrap();
        assert!(file.caller(&key).is_some());
        std::fs::write(&path, "# none").unwrap();
        let long_ago = (Instant::now() - LOOK_EVERY, Some(SystemTime::UNIX_EPOCH));
        *file.looked.lock().unwrap() = long_ago;
        assert_eq!(file.caller(&key), None);
        std::fs::write(&path, "nonsense").unwrap();
        *file.looked.lock().unwrap() = long_ago;
        assert_eq!(file.caller(&key), None, "what can't be understood lets nobody in again");
    }

    #[test]
    fn a_bucket_lets_a_burst_through_and_then_its_rate() {
        let rates = Rates::default();
        let caller = Caller { name: "a".into(), role: Role::Reader, rate: 2.0 };
        let start = Instant::now();
        for _ in 0..4 {
            assert_eq!(rates.take(&caller, start), Ok(()));
        }
        assert_eq!(rates.take(&caller, start), Err(1));
        assert_eq!(rates.take(&caller, start + Duration::from_millis(500)), Ok(()));
        assert_eq!(rates.take(&Caller { name: "b".into(), ..caller.clone() }, start), Ok(()), "each has its own");
        let slow = Caller { name: "c".into(), rate: 0.1, ..caller };
        assert_eq!(rates.take(&slow, start), Ok(()));
        assert_eq!(rates.take(&slow, start), Err(10));
    }

    #[test]
    fn roles_grow() {
        assert!(Role::Reader < Role::Operator && Role::Operator < Role::Admin);
        assert!("boss".parse::<Role>().unwrap_err().contains("`boss`"));
    }
}
