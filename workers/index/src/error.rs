//! What can go wrong with a shard, by what the caller does about it.

use std::error::Error as StdError;
use std::fmt;

/// An error of this crate.
#[derive(Debug)]
pub struct Error {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Kinds of [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's rows, query or K are wrong; the same call fails again.
    Invalid,
    /// The file is not a shard, not this shard, or damaged.
    Corrupt,
    /// The rows do not fit into memory; may work later or elsewhere.
    Memory,
    /// The caller cancelled.
    Cancelled,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Invalid, message: message.into(), source: None }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Corrupt, message: message.into(), source: None }
    }

    pub(crate) fn memory(bytes: usize) -> Self {
        let message = format!("no memory for {bytes} bytes of embeddings");
        Self { kind: ErrorKind::Memory, message, source: None }
    }

    pub(crate) fn cancelled() -> Self {
        Self { kind: ErrorKind::Cancelled, message: "the scan was cancelled".into(), source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same trouble with rows that came from a file instead of from the caller.
    pub(crate) fn in_file(mut self) -> Self {
        if self.kind == ErrorKind::Invalid {
            self.kind = ErrorKind::Corrupt;
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
