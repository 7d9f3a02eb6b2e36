//! The object store: durable truth, written once and never changed.
//!
//! Invariants. Every write is a create-if-absent, so the first writer of a key wins and everybody else adopts
//! what it wrote. "Exists already" and "timed out" are no answers yet: both are resolved by reading back. An
//! object that is referred to with its digest is checked whenever it is read.
//!
//! Deleting is for retention alone (`likeness_contract::retention` says why it is safe) and for marks that are of no more use.
//!
//! Deliberately absent: overwriting.

mod errors;
pub mod faulty;
mod open;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use likeness_contract::codec::{self, Message};
use likeness_contract::documents::ObjectRef;
use likeness_contract::ids::Digest;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use crate::error::{Error, ErrorKind, Result};

pub(crate) use errors::of_store;
pub(crate) use open::{Objects, location};

/// Pauses between attempts of one operation; the HTTP clients below retry by themselves before it.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(800), Duration::from_millis(1500)];
/// Above this, a digest is computed off the async threads.
const INLINE_DIGEST_BYTES: usize = 1 << 20;

/// Where all durable things lie. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    url: Arc<str>,
}

/// What a create-if-absent did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is the caller's.
    New,
    /// Another one was there first.
    Existed,
}

/// An object as a listing tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, milliseconds since 1970, by the store's clock.
    pub modified_ms: u64,
}

/// A document that exists now, whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted<M> {
    /// What the store holds.
    pub document: M,
    /// Whether the caller wrote it.
    pub created: bool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at a URL: a folder (`DIR` or `file://…`, made when missing), `memory:`,
    /// `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`, with credentials from the usual
    /// environment variables. Fails within seconds with `Unreachable` and the address when nobody answers.
    pub async fn open(url: &str) -> Result<Self> {
        let store = Self::over(open::objects(url)?, url);
        open::check(&store, url).await?;
        Ok(store)
    }

    /// Opens a store that a coordinator or worker has made before: fails with `Unreachable` where [`Store::open`]
    /// would make a folder, and with `Invalid` on `memory:`, which nobody else can have made.
    pub async fn open_existing(url: &str) -> Result<Self> {
        open::exists(url)?;
        Self::open(url).await
    }

    /// A store over an object store that is open already; `url` is for messages.
    pub fn over(objects: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self { objects, url: url.into() }
    }

    /// The URL that it was opened with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The object store itself, for readers of ranges.
    pub(crate) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// Refuses a store that ignores create-if-absent: in it two attempts would overwrite each other. Leaves
    /// nothing behind.
    pub async fn probe(&self) -> Result<()> {
        let key = format!("probe/{:016x}", crate::random());
        let path = self.path(&key)?;
        let verdict = self.probe_at(&path).await;
        if let Err(error) = self.objects.delete(&path).await {
            tracing::debug!(%key, %error, "probe object left behind");
        }
        verdict
    }

    async fn probe_at(&self, path: &Path) -> Result<()> {
        let refused = |what: &str| Error::new(ErrorKind::Refused, format!("the store `{}` {what}", self.url));
        let put = |text: &'static str| self.objects.put_opts(path, text.into(), PutMode::Create.into());
        put("first").await.map_err(|e| refused("refuses to create an object").because(errors::of_store(path, e)))?;
        match put("second").await {
            Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(refused("fails on create-if-absent").because(errors::of_store(path, error))),
            Ok(_) => return Err(refused("ignores create-if-absent and would overwrite what is committed")),
        }
        let kept = self.get(path.as_ref()).await?;
        if kept.as_deref() != Some(b"first".as_slice()) {
            return Err(refused("does not return what was written"));
        }
        Ok(())
    }

    /// Creates an object unless its key is taken. `Existed` says that another one is there; one that this call
    /// itself wrote before a time-out is `New`.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<Created> {
        let path = self.path(key)?;
        let mut failed = None;
        for pause in PAUSES {
            let error = match self.objects.put_opts(&path, bytes.clone().into(), PutMode::Create.into()).await {
                Ok(_) => return Ok(Created::New),
                Err(error) => error,
            };
            let conflict = matches!(error, object_store::Error::AlreadyExists { .. });
            let error = errors::of_store(&path, error);
            if conflict {
                // Also the answer to a concurrent write that may yet fail, so look.
                match self.written(&path, &bytes, failed.is_some()).await? {
                    Some(created) => return Ok(created),
                    None => failed = failed.or(Some(error)),
                }
            } else if error.is_transient() && error.kind != ErrorKind::Full {
                failed = Some(error);
            } else {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
        let error = failed.expect("every attempt left an error");
        match self.written(&path, &bytes, true).await {
            Ok(Some(created)) => Ok(created),
            _ => Err(error),
        }
    }

    /// What lies at `path` now; `compare` asks whether it might be ours.
    async fn written(&self, path: &Path, ours: &Bytes, compare: bool) -> Result<Option<Created>> {
        if !compare {
            return match self.objects.head(path).await {
                Ok(_) => Ok(Some(Created::Existed)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => {
                    let error = errors::of_store(path, error);
                    if error.is_transient() { Ok(None) } else { Err(error) }
                }
            };
        }
        let stored = self.get(path.as_ref()).await?;
        Ok(stored.map(|stored| if stored == *ours { Created::New } else { Created::Existed }))
    }

    /// Creates an object whose key carries its digest; that it exists already is fine.
    pub async fn create_object(&self, key: String, bytes: Bytes, digest: Digest) -> Result<ObjectRef> {
        let size = bytes.len() as u64;
        self.create(&key, bytes).await?;
        Ok(ObjectRef { key, digest, bytes: size })
    }

    /// Creates a document unless its key is taken, and returns the one that holds: the first creator wins.
    pub async fn create_document<M: Message>(&self, key: &str, document: &M) -> Result<Adopted<M>> {
        let bytes = Bytes::from(codec::encode_document(document));
        match self.create(key, bytes.clone()).await? {
            Created::New => {
                let document = codec::decode_document(&bytes).map_err(|e| Error::of_codec(&format!("`{key}`"), e))?;
                Ok(Adopted { document, created: true })
            }
            Created::Existed => Ok(Adopted { document: self.require(key).await?, created: false }),
        }
    }

    /// The document at a key, if there is one. Fails with `Corrupt` (or `Newer`) and the key when it is none of
    /// this type.
    pub async fn document<M: Message>(&self, key: &str) -> Result<Option<M>> {
        let Some(bytes) = self.get(key).await? else { return Ok(None) };
        codec::decode_document(&bytes).map(Some).map_err(|e| Error::of_codec(&format!("`{key}`"), e))
    }

    /// The document at a key that must be there; `NotFound` names it.
    pub async fn require<M: Message>(&self, key: &str) -> Result<M> {
        let missing = || Error::new(ErrorKind::NotFound, format!("`{key}` is not in the store `{}`", self.url));
        self.document(key).await?.ok_or_else(missing)
    }

    /// The bytes at a key, if there is an object.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let path = self.path(key)?;
        let bytes = retried(&path, || async { self.objects.get(&path).await?.bytes().await }).await;
        match bytes {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bytes of an object; `Corrupt` names its key when size or digest are not as they should be.
    pub async fn read(&self, object: &ObjectRef) -> Result<Bytes> {
        let ObjectRef { key, digest, bytes: size } = object;
        let Some(bytes) = self.get(key).await? else {
            return Err(Error::new(ErrorKind::NotFound, format!("`{key}` is not in the store `{}`", self.url)));
        };
        let corrupt = |what: String| Error::new(ErrorKind::Corrupt, format!("`{key}` is damaged: {what}"));
        if bytes.len() as u64 != *size {
            return Err(corrupt(format!("{} bytes, expected {size}", bytes.len())));
        }
        let found = digest_of(&bytes).await;
        if found != *digest {
            return Err(corrupt(format!("sha256 {found}, expected {digest}")));
        }
        Ok(bytes)
    }

    /// The bytes `range` of the object at a key, all of them and unchecked; `NotFound` names the key.
    pub async fn read_range(&self, key: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        let path = self.path(key)?;
        let wanted = range.end.saturating_sub(range.start);
        let bytes = retried(&path, || self.objects.get_range(&path, range.clone())).await?;
        if bytes.len() as u64 != wanted {
            let what = format!("`{key}`: {} bytes came where {wanted} were asked for", bytes.len());
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        Ok(bytes)
    }

    /// The size of the object at a key, if there is one.
    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        match retried(&path, || self.objects.head(&path)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All keys below a prefix, sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let path = self.path(prefix)?;
        let listed = retried(&path, || async {
            let entries = self.objects.list(Some(&path));
            entries.map_ok(|entry| String::from(entry.location)).try_collect::<Vec<String>>().await
        });
        let mut keys = listed.await?;
        keys.sort_unstable();
        Ok(keys)
    }

    /// The objects below a prefix whose keys are wanted, with size and age, sorted by key.
    pub async fn objects_below(&self, prefix: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Listed>> {
        let path = self.path(prefix)?;
        let listed = retried(&path, || async {
            let entries = self.objects.list(Some(&path));
            let listed = |entry: object_store::ObjectMeta| Listed {
                key: entry.location.into(),
                bytes: entry.size,
                modified_ms: u64::try_from(entry.last_modified.timestamp_millis()).unwrap_or(0),
            };
            let wanted = |entry: &Listed| std::future::ready(wanted(&entry.key));
            entries.map_ok(listed).try_filter(wanted).try_collect::<Vec<Listed>>().await
        });
        let mut objects = listed.await?;
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Deletes an object; that it is gone already is fine.
    pub async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match retried(&path, || self.objects.delete(&path)).await {
            Err(error) if error.kind != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Names of the direct "sub-folders" of a prefix, sorted.
    pub async fn children(&self, prefix: &str) -> Result<Vec<String>> {
        let path = self.path(prefix)?;
        let listed = retried(&path, || self.objects.list_with_delimiter(Some(&path))).await?;
        let names = listed.common_prefixes.iter().filter_map(|folder| folder.filename());
        let mut names: Vec<String> = names.map(String::from).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn path(&self, key: &str) -> Result<Path> {
        Path::parse(key).map_err(|e| Error::new(ErrorKind::Invalid, format!("`{key}` is no object key")).because(e))
    }
}

/// Runs a read until it works, fails for good, or the pauses are used up.
pub(crate) async fn retried<T, F: Future<Output = object_store::Result<T>>>(
    path: &Path,
    read: impl Fn() -> F,
) -> Result<T> {
    for pause in PAUSES {
        match read().await.map_err(|error| errors::of_store(path, error)) {
            Err(error) if error.is_transient() => {
                tracing::debug!(key = %path, error = %crate::error::chain(&error), "read again");
                tokio::time::sleep(pause).await;
            }
            done => return done,
        }
    }
    read().await.map_err(|error| errors::of_store(path, error))
}

async fn digest_of(bytes: &Bytes) -> Digest {
    if bytes.len() <= INLINE_DIGEST_BYTES {
        return Digest::of(bytes);
    }
    let bytes = bytes.clone();
    tokio::task::spawn_blocking(move || Digest::of(&bytes)).await.expect("hashing does not panic")
}
