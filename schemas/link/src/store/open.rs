//! From a URL to an object store that answers.
//!
//! A local folder gets its atomicity from the file system: an object is written to a staged file beside its
//! key, flushed, and published by a hard link, which fails when the key is taken. A crash leaves at most a
//! staged file, which no listing shows. Flushing is on because a record must survive a power cut as it does on
//! the remote stores.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use url::Url;

use super::{Store, errors};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for a store's first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Longest wait for a connection, in the words of the client's configuration.
const CONNECT_TIMEOUT: &str = "2 seconds";
/// Longest time of one request; the largest objects are a few hundred megabytes.
const REQUEST_TIMEOUT: &str = "180 seconds";

/// What reads and writes the objects of one place.
pub(crate) type Objects = Arc<dyn ObjectStore>;

/// The object store that a URL names.
pub(super) fn objects(text: &str) -> Result<Objects> {
    let Some(url) = remote(text)? else { return folder(PathBuf::from(text)) };
    crate::install_crypto();
    match url.scheme() {
        "memory" => Ok(Arc::new(InMemory::new())),
        "file" => folder(url.to_file_path().map_err(|()| invalid(text, "a file URL has no host: `file:///folder`"))?),
        "s3" | "s3a" => s3(&url),
        "gs" => google(&url),
        "az" | "azure" | "abfs" | "abfss" => azure(&url),
        other => Err(invalid(text, &format!("`{other}` is no scheme of a store"))),
    }
}

/// Fails on a store that opening it would make.
pub(super) fn exists(text: &str) -> Result<()> {
    let path = match remote(text)? {
        None => PathBuf::from(text),
        Some(url) if url.scheme() == "memory" => {
            return Err(Error::new(ErrorKind::Invalid, format!("the store `{text}` is of one process alone")));
        }
        Some(url) if url.scheme() == "file" => match url.to_file_path() {
            Ok(path) => path,
            Err(()) => return Ok(()),
        },
        Some(_) => return Ok(()),
    };
    if path.is_dir() {
        return Ok(());
    }
    let message = format!("there is no store in `{}`: the coordinator makes it when it starts", path.display());
    Err(Error::new(ErrorKind::Unreachable, message))
}

/// What reads a bucket or host that is nobody's store.
pub(crate) fn location(text: &str) -> Result<Objects> {
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return objects(text);
    }
    crate::install_crypto();
    let builder = HttpBuilder::new()
        .with_url(text)
        .with_retry(retry())
        .with_config(ClientConfigKey::AllowHttp, "true")
        .with_config(ClientConfigKey::ConnectTimeout, CONNECT_TIMEOUT)
        .with_config(ClientConfigKey::Timeout, REQUEST_TIMEOUT);
    let unusable = |e| Error::new(ErrorKind::Invalid, format!("can't read from `{text}`")).because(e);
    Ok(Arc::new(builder.build().map_err(unusable)?))
}

/// The URL, unless the text is a plain folder.
fn remote(text: &str) -> Result<Option<Url>> {
    if text.is_empty() {
        return Err(invalid(text, "it is empty"));
    }
    if !text.contains("://") && !text.starts_with("memory:") && !text.starts_with("file:") {
        return Ok(None);
    }
    Url::parse(text).map(Some).map_err(|e| invalid(text, &e.to_string()))
}

fn invalid(url: &str, why: &str) -> Error {
    let forms = "use a folder, `memory:`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`";
    Error::new(ErrorKind::Invalid, format!("`{url}` is no store: {why}; {forms}"))
}

fn folder(path: PathBuf) -> Result<Objects> {
    let refused = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Refused, format!("can't use the folder `{}` as a store", path.display())).because(e)
    };
    std::fs::create_dir_all(&path).map_err(|e| refused(e.into()))?;
    let store = LocalFileSystem::new_with_prefix(&path).map_err(|e| refused(e.into()))?;
    Ok(Arc::new(store.with_fsync(true)))
}

fn s3(url: &Url) -> Result<Objects> {
    use AmazonS3ConfigKey::Client;
    let builder = AmazonS3Builder::from_env()
        .with_url(url.as_str())
        .with_retry(retry())
        .with_config(Client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT)
        .with_config(Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT);
    below_prefix(builder.build().map_err(|e| unusable(url, e))?, url)
}

fn google(url: &Url) -> Result<Objects> {
    use GoogleConfigKey::Client;
    let builder = GoogleCloudStorageBuilder::from_env()
        .with_url(url.as_str())
        .with_retry(retry())
        .with_config(Client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT)
        .with_config(Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT);
    below_prefix(builder.build().map_err(|e| unusable(url, e))?, url)
}

fn azure(url: &Url) -> Result<Objects> {
    use AzureConfigKey::Client;
    let builder = MicrosoftAzureBuilder::from_env()
        .with_url(url.as_str())
        .with_retry(retry())
        .with_config(Client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT)
        .with_config(Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT);
    below_prefix(builder.build().map_err(|e| unusable(url, e))?, url)
}

fn below_prefix<S: ObjectStore>(store: S, url: &Url) -> Result<Objects> {
    let prefix = Path::from_url_path(url.path()).map_err(|e| invalid(url.as_str(), &e.to_string()))?;
    if prefix.as_ref().is_empty() {
        return Ok(Arc::new(store));
    }
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

fn unusable(url: &Url, error: object_store::Error) -> Error {
    Error::new(ErrorKind::Invalid, format!("can't use the store `{url}`")).because(error)
}

/// Short, because [`super::Store`] tries again by itself and resolves what is uncertain.
fn retry() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 };
    RetryConfig { backoff, max_retries: 3, retry_timeout: Duration::from_secs(10) }
}

/// Fails when the store does not answer soon.
pub(super) async fn check(store: &Store, url: &str) -> Result<()> {
    let address = address(url);
    let silent = || Error::new(ErrorKind::Unreachable, format!("no answer from the store {address}"));
    let mut entries = store.objects.list(None);
    let first = tokio::time::timeout(FIRST_ANSWER, entries.next()).await;
    match first {
        Err(_) => Err(silent().because(format!("waited {} s", FIRST_ANSWER.as_secs()))),
        Ok(None | Some(Ok(_))) => Ok(()),
        Ok(Some(Err(error))) => {
            let error = errors::of_store(&Path::default(), error);
            match error.kind {
                ErrorKind::Unreachable | ErrorKind::Transient => Err(silent().because(error)),
                _ => Err(Error::new(ErrorKind::Refused, format!("can't use the store {address}")).because(error)),
            }
        }
    }
}

/// The URL, with the endpoint that the environment puts in place of the cloud's own.
fn address(url: &str) -> String {
    let variables: &[&str] = match url.split(':').next() {
        Some("s3" | "s3a") => &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"],
        Some("az" | "azure" | "abfs" | "abfss") => &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"],
        _ => &[],
    };
    match variables.iter().find_map(|name| std::env::var(name).ok()) {
        Some(endpoint) => format!("`{url}` at `{endpoint}`"),
        None => format!("`{url}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_folders_and_urls_are_told_apart() {
        for folder in ["likeness-store", "./a/b", "/srv/store", "C:\\store"] {
            assert!(remote(folder).unwrap().is_none(), "{folder}");
        }
        for url in ["memory:", "file:///srv/store", "s3://bucket/prefix", "gs://b", "az://c/p"] {
            assert!(remote(url).unwrap().is_some(), "{url}");
        }
    }

    #[test]
    fn a_store_that_is_not_there_is_not_made_by_looking() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("store");
        let text = missing.to_str().unwrap();
        for url in [text.to_string(), format!("file://{text}")] {
            let error = exists(&url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unreachable);
            assert!(error.to_string().contains(text), "{error}");
        }
        assert!(!missing.exists());
        assert_eq!(exists("memory:").unwrap_err().kind, ErrorKind::Invalid);
        assert!(exists(dir.path().to_str().unwrap()).is_ok() && exists("s3://bucket").is_ok());
    }

    #[test]
    fn an_unknown_scheme_is_answered_with_the_known_ones() {
        let error = objects("ftp://host/x").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.to_string().contains("s3://"), "{error}");
    }
}
