//! Logs: human or JSON lines on standard error, so that standard output carries results only. And [`metrics`].

pub mod metrics;

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use crate::error::{Error, ErrorKind, Result};

/// Environment variable with the filter: `info`, `likeness=debug,async_nats=warn`.
pub const LOG_ENV: &str = "LIKENESS_LOG";
/// Environment variable with the form: `human` or `json`.
pub const LOG_FORMAT_ENV: &str = "LIKENESS_LOG_FORMAT";

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// What [`LOG_FORMAT_ENV`] says; human lines when it says nothing. Fails on anything else.
    pub fn from_env() -> Result<Self> {
        let text = std::env::var(LOG_FORMAT_ENV).unwrap_or_default();
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.parse().map_err(|why| Error::new(ErrorKind::Invalid, format!("{LOG_FORMAT_ENV}: {why}")))
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is no log format: use `human` or `json`")),
        }
    }
}

/// What [`LOG_ENV`] says, else `default`.
pub fn filter_from_env(default: &str) -> String {
    std::env::var(LOG_ENV).ok().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_string())
}

/// Starts logging with exactly this filter; callers resolve flag > environment > default. Fails on a filter that
/// can't be read. A second call changes nothing.
pub fn init(filter: &str, format: LogFormat) -> Result<()> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(quiet(parse(filter)?))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that somebody else logs already.
    let _first = match format {
        LogFormat::Human => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}

fn parse(filter: &str) -> Result<EnvFilter> {
    let unreadable = |e| Error::new(ErrorKind::Invalid, format!("`{filter}` is no log filter")).because(e);
    EnvFilter::builder().parse(filter).map_err(unreadable)
}

/// The client library reports every connection event at `info`; ours are logged by `bus`.
fn quiet(filter: EnvFilter) -> EnvFilter {
    if filter.to_string().contains("async_nats") {
        return filter;
    }
    let warn: Directive = "async_nats=warn".parse().expect("a well-formed directive");
    filter.add_directive(warn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_library_is_quiet_unless_asked() {
        assert!(quiet(EnvFilter::new("info")).to_string().contains("async_nats=warn"));
        assert!(!quiet(EnvFilter::new("async_nats=debug")).to_string().contains("async_nats=warn"));
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_refused_by_name() {
        let error = parse("likeness=loud").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.to_string().contains("`likeness=loud`"), "{error}");
        assert!(parse("info,likeness=debug").is_ok());
    }
}
