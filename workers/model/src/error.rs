//! Why a model can't be built, read or trained.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, with its cause.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct Error {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// What lies below.
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Kinds of [`Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// No model can have these settings.
    #[error("{0}")]
    Settings(String),
    /// The bytes are no weights or checkpoint: fetch them again.
    #[error("{0}")]
    Corrupt(String),
    /// The weights are those of another model: ask with its settings.
    #[error("{0}")]
    Mismatch(String),
    /// An input has another shape than the model takes.
    #[error("{0}")]
    Input(String),
    /// A loss or weight is NaN or infinite: train with other settings.
    #[error("{0}")]
    NotFinite(String),
    /// The device failed.
    #[error("the device failed")]
    Device,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self { kind, source: None }
    }

    pub(crate) fn settings(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Settings(text.into()))
    }

    pub(crate) fn mismatch(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Mismatch(text.into()))
    }

    pub(crate) fn input(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input(text.into()))
    }

    pub(crate) fn not_finite(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFinite(text.into()))
    }

    pub(crate) fn corrupt(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt(text.into()))
    }

    pub(crate) fn because(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::new(ErrorKind::Device).because(source)
    }
}
