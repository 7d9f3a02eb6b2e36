//! Why an evaluation can't be done.

/// What the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked does not fit this gallery: ask for something else.
    Invalid,
    /// Stored bytes are not what they should be: make them again.
    Corrupt,
}

/// An error with its kind.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Error {
    /// What the caller does next.
    pub kind: ErrorKind,
    detail: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Of kind [`ErrorKind::Invalid`].
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Invalid, detail: detail.into(), source: None }
    }

    /// Of kind [`ErrorKind::Corrupt`].
    pub fn corrupt(detail: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Corrupt, detail: detail.into(), source: None }
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}
