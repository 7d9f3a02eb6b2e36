//! Exit codes, and how errors get theirs.
//!
//! Scripts tell apart what they would act on: a refusal of the gate is not a failure, and a service that can't
//! be reached is worth another try.

use std::fmt;

use likeness_contract::messages::{ApiError, ApiErrorKind, JobState};
use likeness_contract::names;
use likeness_contract::search::{SearchError, SearchErrorKind};
use likeness_link::client::ClientError;
use likeness_link::error::chain;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// What was asked is done.
    Done = 0,
    /// It failed, or was cancelled.
    Failed = 1,
    /// The gate refused the promotion.
    Refused = 2,
    /// Bad flags, bad settings, or a name that does not exist.
    Usage = 64,
    /// NATS, the store or the coordinator can't be reached, or the store can't be written to.
    Unavailable = 69,
    /// The grace period ran out before everything had stopped.
    Grace = 75,
    /// Ctrl-C: the command let go, its job goes on.
    Detached = 130,
}

impl Exit {
    /// Of a command that waited for a job.
    pub fn of_job(state: JobState) -> Self {
        match state {
            JobState::Done => Self::Done,
            JobState::Refused => Self::Refused,
            JobState::Failed | JobState::Cancelled => Self::Failed,
            JobState::Running => Self::Detached,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with the exit code that it ends in.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    error: anyhow::Error,
}

/// Result of a command.
pub type Outcome<T = Exit> = Result<T, Failure>;

impl Failure {
    /// A mistake in flags, config or names.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Usage, error: anyhow::anyhow!("{message}") }
    }

    /// Something that went wrong.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Failed, error: anyhow::anyhow!("{message}") }
    }

    /// A service that does not answer.
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Unavailable, error: anyhow::anyhow!("{message}") }
    }

    /// A job that was let go of.
    pub fn detached(message: impl fmt::Display) -> Self {
        Self { exit: Exit::Detached, error: anyhow::anyhow!("{message}") }
    }

    /// Says what was being done.
    pub fn context(self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        Self { exit: self.exit, error: self.error.context(what) }
    }
}

impl fmt::Display for Failure {
    /// The error with all its causes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self.error.as_ref()))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self { exit: Exit::Failed, error: error.into() }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self { exit: Exit::Failed, error: error.into() }
    }
}

impl From<likeness_link::Error> for Failure {
    fn from(error: likeness_link::Error) -> Self {
        use likeness_link::ErrorKind;
        let exit = match error.kind {
            ErrorKind::Unreachable => Exit::Unavailable,
            ErrorKind::Invalid => Exit::Usage,
            _ => Exit::Failed,
        };
        Self { exit, error: error.into() }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let exit = match error.kind {
            ApiErrorKind::Invalid | ApiErrorKind::NotFound => Exit::Usage,
            ApiErrorKind::Conflict => Exit::Failed,
            ApiErrorKind::Unavailable => Exit::Unavailable,
        };
        Self { exit, error: anyhow::anyhow!("{}", with_hint(&error.message, &error.nearest)) }
    }
}

impl From<SearchError> for Failure {
    fn from(error: SearchError) -> Self {
        let exit = match error.kind {
            SearchErrorKind::Invalid | SearchErrorKind::NotFound => Exit::Usage,
            SearchErrorKind::Coverage | SearchErrorKind::Deadline | SearchErrorKind::Expired => Exit::Failed,
            SearchErrorKind::Unavailable | SearchErrorKind::Overloaded => Exit::Unavailable,
        };
        Self { exit, error: anyhow::anyhow!("{}", with_hint(&error.message, &error.nearest)) }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Link(error) => error.into(),
            ClientError::Api(error) => error.into(),
            ClientError::Search(error) => error.into(),
        }
    }
}

/// The message with its nearest names, unless it names them already.
fn with_hint(message: &str, nearest: &[String]) -> String {
    if message.contains("did you mean") {
        return message.to_string();
    }
    format!("{message}{}", names::hint(nearest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(kind: ApiErrorKind) -> Failure {
        ApiError { kind, message: "no job `trian`".into(), nearest: vec!["train".into()] }.into()
    }

    #[test]
    fn a_wrong_name_is_a_usage_error_with_the_nearest_names() {
        let failure = api(ApiErrorKind::NotFound);
        assert_eq!(failure.exit, Exit::Usage);
        assert_eq!(failure.to_string(), "no job `trian`; did you mean `train`?");
    }

    #[test]
    fn an_unavailable_service_is_told_apart_from_a_failure() {
        assert_eq!(api(ApiErrorKind::Unavailable).exit, Exit::Unavailable);
        assert_eq!(api(ApiErrorKind::Conflict).exit, Exit::Failed);
    }

    #[test]
    fn a_wrong_setting_is_a_usage_error_whoever_notices() {
        use likeness_link::{Error, ErrorKind};
        let exit = |kind| Failure::from(Error::new(kind, "x")).exit;
        assert_eq!(exit(ErrorKind::Invalid), Exit::Usage);
        assert_eq!(exit(ErrorKind::Unreachable), Exit::Unavailable);
        assert_eq!(exit(ErrorKind::Corrupt), Exit::Failed);
    }

    #[test]
    fn a_cause_that_says_the_same_again_is_left_out() {
        use likeness_link::{Error, ErrorKind};
        let same = || Error::new(ErrorKind::Unreachable, "no responders");
        let failure = Failure::from(same().because(same().because(same())));
        assert_eq!(failure.to_string(), "no responders");
    }

    #[test]
    fn the_gate_has_its_own_exit_code() {
        assert_eq!(Exit::of_job(JobState::Refused) as u8, 2);
        assert_eq!(Exit::of_job(JobState::Done) as u8, 0);
        assert_eq!(Exit::of_job(JobState::Failed) as u8, 1);
        assert_eq!(Exit::of_job(JobState::Cancelled) as u8, 1);
    }

    #[test]
    fn a_hint_is_not_said_twice() {
        assert_eq!(with_hint("x; did you mean `y`?", &["y".into()]), "x; did you mean `y`?");
    }
}
