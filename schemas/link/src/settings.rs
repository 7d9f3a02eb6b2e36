//! Where NATS is and how long things take.
//!
//! Every time of the system is a value here, so that tests run the same code with `ack_wait` of a second.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// Environment variable: `ack_wait` in milliseconds; the times that depend on it follow.
pub const ACK_WAIT_ENV: &str = "LIKENESS_ACK_WAIT_MS";
/// Environment variable: how long a lease lives, in milliseconds; the times that depend on it follow.
pub const LEASE_ENV: &str = "LIKENESS_LEASE_MS";

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// One address or several, separated by commas: `nats://127.0.0.1:4222`.
    pub url: String,
    /// A `.creds` file (JWT and seed) or a file with an NKEY seed.
    pub credentials: Option<PathBuf>,
    /// Certificates that the server's must come from, PEM; the machine's own without. With it, only TLS will do.
    pub ca: Option<PathBuf>,
    /// The times.
    pub timings: Timings,
}

impl NatsSettings {
    /// Without credentials and certificates, with the times that the environment says.
    pub fn new(url: impl Into<String>) -> Result<Self> {
        Ok(Self { url: url.into(), credentials: None, ca: None, timings: Timings::from_env()? })
    }
}

/// Every time that processes must agree on, and the limits of waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    /// A message that nobody acknowledged or renewed for so long is delivered again.
    pub ack_wait: Duration,
    /// A worker renews its message so often.
    pub renew_every: Duration,
    /// The coordinator's lease dies so long after its last renewal.
    pub lease_ttl: Duration,
    /// The leader renews its lease so often.
    pub lease_renew_every: Duration,
    /// A worker's presence dies so long after its last renewal.
    pub presence_ttl: Duration,
    /// A worker renews its presence so often.
    pub presence_every: Duration,
    /// The leader looks for tasks without news so often.
    pub sweep_every: Duration,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for an answer of the broker or of the coordinator.
    pub request: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self::from_ack_wait(Duration::from_secs(30), Duration::from_secs(15))
    }
}

impl Timings {
    /// All times from two: a third of each is the rhythm of its renewal.
    pub fn from_ack_wait(ack_wait: Duration, lease_ttl: Duration) -> Self {
        Self {
            ack_wait,
            renew_every: ack_wait / 3,
            lease_ttl,
            lease_renew_every: lease_ttl / 3,
            presence_ttl: lease_ttl,
            presence_every: lease_ttl / 3,
            sweep_every: ack_wait,
            connect: Duration::from_secs(3),
            request: Duration::from_secs(5),
        }
    }

    /// The defaults, with what [`ACK_WAIT_ENV`] and [`LEASE_ENV`] say. Fails on a value that is no number of
    /// milliseconds from 300.
    pub fn from_env() -> Result<Self> {
        let default = Self::default();
        let ack_wait = milliseconds(ACK_WAIT_ENV)?.unwrap_or(default.ack_wait);
        let lease = milliseconds(LEASE_ENV)?.unwrap_or(default.lease_ttl);
        Ok(Self::from_ack_wait(ack_wait, lease))
    }

    /// How long one pull request waits for a message.
    pub fn pull_expires(&self) -> Duration {
        self.ack_wait
    }

    /// How often the broker says that a pull request still stands; two missing ones mean that it does not.
    pub fn pull_heartbeat(&self) -> Duration {
        self.ack_wait / 6
    }
}

/// Shortest time that may be set: below, renewals would be late on a busy machine.
const MIN_MS: u64 = 300;

fn milliseconds(name: &str) -> Result<Option<Duration>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    parse_milliseconds(name, &text).map(Some)
}

fn parse_milliseconds(name: &str, text: &str) -> Result<Duration> {
    match text.trim().parse() {
        Ok(ms) if ms >= MIN_MS => Ok(Duration::from_millis(ms)),
        _ => {
            let message = format!("`{name}` is `{text}`, expected milliseconds, at least {MIN_MS}");
            Err(Error::new(ErrorKind::Invalid, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_design() {
        let t = Timings::default();
        let seconds = [t.ack_wait, t.renew_every, t.lease_ttl, t.lease_renew_every, t.presence_ttl, t.sweep_every];
        assert_eq!(seconds.map(|d| d.as_secs()), [30, 10, 15, 5, 15, 30]);
        assert_eq!((t.pull_expires().as_secs(), t.pull_heartbeat().as_secs()), (30, 5));
    }

    #[test]
    fn a_time_that_is_no_number_is_refused_by_name() {
        assert_eq!(parse_milliseconds("X", "1500").ok(), Some(Duration::from_millis(1500)));
        for bad in ["", "1s", "-5", "10"] {
            let error = parse_milliseconds("LIKENESS_X", bad).unwrap_err();
            assert!(error.to_string().contains("LIKENESS_X"), "{error}");
        }
    }
}
