//! Pauses between attempts of something that must succeed in the end.

use std::time::Duration;

use likeness_link::Error;
use likeness_link::error::chain;
use likeness_link::telemetry::metrics::metrics;

/// First pause.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// Doubling pauses.
#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST }
    }
}

impl Backoff {
    /// Says what did not work, and pauses.
    pub(super) async fn wait(&mut self, what: &str, error: &Error) {
        metrics().retries.inc();
        let again_ms = self.pause.as_millis();
        if error.is_transient() {
            tracing::warn!(error = %chain(error), again_ms, "{what}");
        } else {
            tracing::error!(error = %chain(error), again_ms, "{what}: somebody must mend that");
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST);
    }
}
