//! Files that others keep behind URLs: read, never written.
//!
//! `s3://`, `gs://` and `az://` take their credentials from the usual environment, as the store does; `http://` and
//! `https://` follow redirects and need a server that answers ranges. Plain HTTP knows no folders.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::store::{Objects, location, of_store, retried};

/// Readers of the places that were asked for so far. Cheap to ask, thread-safe.
#[derive(Default)]
pub struct RemoteFiles {
    places: Mutex<HashMap<String, Objects>>,
}

impl fmt::Debug for RemoteFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteFiles").finish_non_exhaustive()
    }
}

/// Whether a source's path is a URL to be read by [`RemoteFiles`], not a path of the file system.
pub fn is_remote(path: &str) -> bool {
    let scheme = path.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| scheme != "file" && scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

impl RemoteFiles {
    /// Size in bytes.
    ///
    /// # Errors
    /// `NotFound`, `Refused` (no permission, or a server that can't say), `Invalid` (no such scheme), else what
    /// may go away.
    pub async fn size(&self, url: &str) -> Result<u64> {
        let (objects, path) = self.place(url)?;
        Ok(retried(&path, || objects.head(&path)).await.map_err(|e| at(url, e))?.size)
    }

    /// The bytes `range`, all of them.
    ///
    /// # Errors
    /// As [`RemoteFiles::size`].
    pub async fn read(&self, url: &str, range: Range<u64>) -> Result<Bytes> {
        let (objects, path) = self.place(url)?;
        let wanted = range.end.saturating_sub(range.start);
        let bytes = retried(&path, || objects.get_range(&path, range.clone())).await.map_err(|e| at(url, e))?;
        if bytes.len() as u64 != wanted {
            let what = format!("`{url}`: {} bytes came where {wanted} were asked for", bytes.len());
            return Err(Error::new(ErrorKind::Transient, what));
        }
        Ok(bytes)
    }

    /// Whether anything lies below.
    ///
    /// # Errors
    /// As [`RemoteFiles::size`]; `Refused` for plain HTTP, which has no listing.
    pub async fn is_folder(&self, url: &str) -> Result<bool> {
        if url.starts_with("http") {
            let what = format!("`{url}`: a folder can't be listed over HTTP; use a path or an object store");
            return Err(Error::new(ErrorKind::Refused, what));
        }
        let (objects, path) = self.place(url)?;
        let first = objects.list(Some(&path)).next().await;
        first.transpose().map(|entry| entry.is_some()).map_err(|e| at(url, of_store(&path, e)))
    }

    /// Paths of everything below a folder, relative to it and sorted, as they stand in a URL.
    ///
    /// # Errors
    /// As [`RemoteFiles::is_folder`].
    pub async fn list(&self, url: &str) -> Result<Vec<String>> {
        self.is_folder(url).await?;
        let (objects, path) = self.place(url)?;
        let listed = retried(&path, || async {
            let entries = objects.list(Some(&path));
            entries.map_ok(|entry| entry.location).try_collect::<Vec<Path>>().await
        });
        let listed = listed.await.map_err(|e| at(url, e))?;
        let relative = |found: &Path| {
            let parts: Vec<_> = found.prefix_match(&path)?.collect();
            Some(in_url(&parts.iter().map(|part| part.as_ref()).collect::<Vec<&str>>().join("/")))
        };
        let mut paths: Vec<String> = listed.iter().filter_map(relative).collect();
        paths.sort_unstable();
        Ok(paths)
    }

    /// The reader of a URL's host or bucket, and the path inside it.
    fn place(&self, text: &str) -> Result<(Objects, Path)> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, format!("`{text}` is no source: {why}"));
        let url = Url::parse(text).map_err(|e| invalid(e.to_string()))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("a URL with `?` or `#` is not supported".into()));
        }
        let path = Path::from_url_path(url.path()).map_err(|e| invalid(e.to_string()))?;
        let place = url[..url::Position::BeforePath].to_string();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(objects) = places.get(&place) {
            return Ok((objects.clone(), path));
        }
        let objects = location(&place)?;
        places.insert(place, objects.clone());
        Ok((objects, path))
    }
}

/// The characters of a path that mean something else in a URL.
fn in_url(path: &str) -> String {
    path.replace('%', "%25").replace('?', "%3F").replace('#', "%23")
}

fn at(url: &str, error: Error) -> Error {
    Error::new(error.kind, format!("`{url}` can't be read")).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_told_apart() {
        for path in ["/data/celeba", "celeba", "file:///data/celeba", "C:\\data", "a dir://x"] {
            assert!(!is_remote(path), "{path}");
        }
        for url in ["s3://bucket/celeba", "https://host/train.parquet", "ftp://host/x"] {
            assert!(is_remote(url), "{url}");
        }
    }

    #[tokio::test]
    async fn what_can_not_be_a_source_is_refused_by_name() {
        let files = RemoteFiles::default();
        for (url, why) in [("ftp://host/x", "scheme"), ("https://host/x?download=true", "`?`")] {
            let error = files.size(url).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!(files.is_folder("https://host/celeba").await.unwrap_err().kind, ErrorKind::Refused);
    }
}
