//! Why a task did not succeed, by what must happen to its message.

use std::error::Error as StdError;
use std::fmt;

use likeness_link::error::ErrorKind as LinkErrorKind;

/// What must happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskErrorKind {
    /// Another attempt may succeed: the message goes back, with a delay.
    Transient,
    /// No attempt will succeed (bad input, bad spec): the message ends here.
    Invalid,
    /// The run was closed: the message ends here.
    Cancelled,
    /// This worker is leaving: the message goes back at once.
    Drain,
    /// A newer program wrote what the task needs: the message goes back for an upgraded worker.
    Newer,
    /// The lease was not renewed in time: say nothing, the message may be another's.
    LeaseLost,
}

/// A task that did not succeed. `Display` is the error's own words; the causes are its sources.
#[derive(Debug)]
pub struct TaskError {
    /// What must happen next.
    pub kind: TaskErrorKind,
    /// What went wrong.
    pub source: Box<dyn StdError + Send + Sync>,
}

impl TaskError {
    /// Another attempt may succeed.
    pub fn transient(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind: TaskErrorKind::Transient, source: source.into() }
    }

    /// No attempt will succeed.
    pub fn invalid(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind: TaskErrorKind::Invalid, source: source.into() }
    }

    /// The run was closed.
    pub fn cancelled() -> Self {
        Self { kind: TaskErrorKind::Cancelled, source: "the run was closed".into() }
    }

    /// The worker is leaving.
    pub fn drain() -> Self {
        Self { kind: TaskErrorKind::Drain, source: "the worker is leaving".into() }
    }

    /// The lease was not renewed in time.
    pub fn lease_lost() -> Self {
        Self { kind: TaskErrorKind::LeaseLost, source: "the lease was not renewed in time".into() }
    }

    /// The error with its causes in one line, for logs and events.
    pub fn chain(&self) -> String {
        likeness_link::error::chain(self)
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl StdError for TaskError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}

impl From<likeness_link::error::Error> for TaskError {
    /// What the bytes say is final; what a server says may change, or another worker may fare better.
    fn from(error: likeness_link::error::Error) -> Self {
        match error.kind {
            LinkErrorKind::NotFound | LinkErrorKind::Corrupt | LinkErrorKind::Invalid => Self::invalid(error),
            LinkErrorKind::Unreachable | LinkErrorKind::Transient | LinkErrorKind::Refused | LinkErrorKind::Full => {
                Self::transient(error)
            }
            LinkErrorKind::Newer => Self { kind: TaskErrorKind::Newer, source: error.into() },
        }
    }
}

impl From<likeness_data::Error> for TaskError {
    fn from(error: likeness_data::Error) -> Self {
        match error.kind {
            likeness_data::ErrorKind::Io => Self::transient(error),
            likeness_data::ErrorKind::Invalid | likeness_data::ErrorKind::Corrupt => Self::invalid(error),
        }
    }
}

impl From<likeness_model::Error> for TaskError {
    /// NaN may be the settings' doing or a broken card's: another worker's attempt tells which.
    fn from(error: likeness_model::Error) -> Self {
        use likeness_model::ErrorKind as Kind;
        match error.kind {
            Kind::Device | Kind::NotFinite(_) => Self::transient(error),
            Kind::Settings(_) | Kind::Corrupt(_) | Kind::Mismatch(_) | Kind::Input(_) => Self::invalid(error),
        }
    }
}

impl From<likeness_index::Error> for TaskError {
    fn from(error: likeness_index::Error) -> Self {
        use likeness_index::ErrorKind as Kind;
        match error.kind {
            Kind::Invalid | Kind::Corrupt => Self::invalid(error),
            Kind::Memory => Self::transient(error),
            Kind::Cancelled => Self { kind: TaskErrorKind::Cancelled, source: error.into() },
        }
    }
}

impl From<likeness_evaluation::Error> for TaskError {
    fn from(error: likeness_evaluation::Error) -> Self {
        Self::invalid(error)
    }
}

impl From<candle_core::Error> for TaskError {
    /// A device that fails, fails this worker; another may do better.
    fn from(error: candle_core::Error) -> Self {
        Self::transient(error)
    }
}
