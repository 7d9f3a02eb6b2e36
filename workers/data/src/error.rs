//! The crate's error: kinds by what the caller does next.

use std::fmt;

/// What the caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The source or a setting is wrong: a person must mend it; trying again is useless.
    Invalid,
    /// Reading failed: may go away.
    Io,
    /// Bytes that this program wrote are no longer what it wrote.
    Corrupt,
}

/// Why data could not be read or used; names the file and, where there is one, the line or column.
#[derive(Debug)]
pub struct Error {
    /// What to do about it.
    pub kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Invalid, message: message.into(), source: None }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Corrupt, message: message.into(), source: None }
    }

    /// A file that can't be read. One that is not there, or is closed to us, stays so: `Invalid`.
    pub(crate) fn io(path: &str, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::NotFound | Io::PermissionDenied | Io::IsADirectory | Io::NotADirectory | Io::InvalidInput => {
                ErrorKind::Invalid
            }
            _ => ErrorKind::Io,
        };
        Self { kind, message: format!("`{path}` can't be read"), source: Some(Box::new(source)) }
    }

    pub(crate) fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}
