//! Logs: human or JSON lines on standard error, so that standard output carries results only.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

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
    /// What [`LOG_FORMAT_ENV`] says; human lines when it says nothing or something else.
    pub fn from_env() -> Self {
        std::env::var(LOG_FORMAT_ENV).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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

/// Starts logging with exactly this filter; callers resolve flag > environment > default. A filter that cannot
/// be read is replaced by `info` with a warning. A second call changes nothing.
pub fn init(filter: &str, format: LogFormat) {
    let (parsed, complaint) = match EnvFilter::builder().parse(filter) {
        Ok(parsed) => (quiet(parsed), None),
        Err(error) => (quiet(EnvFilter::new("info")), Some(error)),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Human => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if let (Ok(()), Some(error)) = (started, complaint) {
        tracing::warn!(filter, %error, "log filter ignored");
    }
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
}
