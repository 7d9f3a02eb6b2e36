//! Waiting for a condition, the only place where tests sleep.

use std::time::{Duration, Instant};

/// Environment variable: seconds that a scenario may wait for one condition, for slow machines.
const DEADLINE_ENV: &str = "LIKENESS_TEST_DEADLINE_S";

/// Whatever a scenario waits for must happen within this time; 90 s unless the environment says otherwise.
pub fn deadline() -> Duration {
    let seconds = std::env::var(DEADLINE_ENV).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(90))
}

/// Asks every 50 ms until there is an answer. Panics with `what` at the deadline.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let limit = deadline();
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
