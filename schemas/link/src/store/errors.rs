//! From the store's errors to ours: what the caller can do about them.

use std::error::Error as _;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;

use crate::error::{Error, ErrorKind};
use crate::telemetry::metrics::metrics;

/// An error of an operation on `path`.
pub(crate) fn of_store(path: &Path, error: object_store::Error) -> Error {
    let kind = kind(&error);
    count(kind);
    let what = match kind {
        ErrorKind::NotFound => "is not in the store",
        ErrorKind::Refused => "is refused by the store",
        ErrorKind::Full => "can't be written, the disk is full",
        ErrorKind::Unreachable => "can't be reached, the store does not answer",
        ErrorKind::Invalid => "is no key of this store",
        ErrorKind::Transient | ErrorKind::Corrupt | ErrorKind::Newer => "can't be read or written now",
    };
    Error::new(kind, format!("`{path}` {what}")).because(error)
}

/// That something is not there is an answer; everything else is counted.
fn count(kind: ErrorKind) {
    let name = match kind {
        ErrorKind::NotFound | ErrorKind::Invalid => return,
        ErrorKind::Refused => "refused",
        ErrorKind::Full => "full",
        ErrorKind::Unreachable => "unreachable",
        ErrorKind::Transient => "transient",
        ErrorKind::Corrupt | ErrorKind::Newer => "unreadable",
    };
    metrics().store_errors.get_or_create(&[("kind", name)]).inc();
}

fn kind(error: &object_store::Error) -> ErrorKind {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => ErrorKind::NotFound,
        E::InvalidPath { .. } => ErrorKind::Invalid,
        E::PermissionDenied { .. }
        | E::Unauthenticated { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. } => ErrorKind::Refused,
        _ => kind_of_causes(error),
    }
}

/// The store wraps the operating system's and the HTTP client's errors several levels deep.
fn kind_of_causes(error: &object_store::Error) -> ErrorKind {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(kind) = error.downcast_ref::<io::Error>().and_then(|e| kind_of_io(e.kind())) {
            return kind;
        }
        if error.downcast_ref::<HttpError>().is_some_and(|e| e.kind() == HttpErrorKind::Connect) {
            return ErrorKind::Unreachable;
        }
        cause = error.source();
    }
    ErrorKind::Transient
}

fn kind_of_io(kind: io::ErrorKind) -> Option<ErrorKind> {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(ErrorKind::Full),
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::Unsupported
        | io::ErrorKind::NotADirectory => Some(ErrorKind::Refused),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Some(ErrorKind::Unreachable)
        }
        _ => None,
    }
}
