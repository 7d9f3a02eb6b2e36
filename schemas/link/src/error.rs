//! What can go wrong between a process and NATS or the store, by what the caller does next.

use std::fmt;

use likeness_contract::codec::CodecError;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error: its kind decides, its text tells. `Display` says only its own part; causes are in the source chain.
#[derive(Debug)]
pub struct Error {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of [`Error`]; each exists because somebody acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Nobody answers at the address (exit status 69).
    Unreachable,
    /// It may work the next time.
    Transient,
    /// The thing is not there.
    NotFound,
    /// Bytes do not match their digest, schema or codec.
    Corrupt,
    /// Store or server is unsuitable, too old, or forbids it: a person must act.
    Refused,
    /// A newer program wrote the message: leave it to an upgraded one.
    Newer,
    /// The disk or the stream is full.
    Full,
    /// The caller asked for something impossible.
    Invalid,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Adds the cause.
    pub fn because(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// A message that could not be encoded or decoded; `what` names where it came from.
    pub fn of_codec(what: &str, error: CodecError) -> Self {
        let kind = match error {
            CodecError::Malformed { .. } => ErrorKind::Corrupt,
            CodecError::Newer { .. } => ErrorKind::Newer,
            CodecError::TooLarge { .. } => ErrorKind::Invalid,
        };
        Self::new(kind, format!("cannot use {what}")).because(error)
    }

    /// Whether the same call may succeed later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable | ErrorKind::Transient | ErrorKind::Full)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// An error with all its causes in one line: what logs and events carry.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = cause.source();
    }
    text
}
