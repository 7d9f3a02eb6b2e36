//! What searches add to the process's metrics.

use std::time::Instant;

use likeness_contract::search::{SearchError, SearchErrorKind, SearchResults};
use likeness_link::telemetry::metrics::metrics;

/// Stages that a search may tell of.
const STAGES: [&str; 6] = ["embed", "fan_out", "leaf", "merge", "details", "total"];

/// A search was answered.
pub fn on_answer(answer: &Result<SearchResults, SearchError>) {
    let result = match answer {
        Ok(results) => {
            on_results(results);
            "found"
        }
        Err(error) => match error.kind {
            SearchErrorKind::Unavailable => "unavailable",
            SearchErrorKind::Deadline => "deadline",
            SearchErrorKind::Coverage => "coverage",
            SearchErrorKind::Overloaded => "overloaded",
            SearchErrorKind::Invalid | SearchErrorKind::NotFound | SearchErrorKind::Expired => "refused",
        },
    };
    metrics().searches.get_or_create(&[("result", result)]).inc();
}

fn on_results(results: &SearchResults) {
    let share = results.coverage.share();
    metrics().coverage.set(share);
    metrics().incomplete_answers.inc_by(u64::from(share < 1.0));
    for (stage, ms) in &results.timings_ms {
        if let Some(stage) = STAGES.iter().find(|known| *known == stage) {
            metrics().search_seconds.get_or_create(&[("stage", stage)]).observe(ms / 1e3);
        }
    }
}

/// Waits for a shard to be loaded.
pub async fn load<T>(load: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let loaded = load.await;
    metrics().shard_load_seconds.observe(started.elapsed().as_secs_f64());
    loaded
}

/// A shard, a model or a manifest did not load.
pub fn on_load_failure() {
    metrics().load_failures.inc();
}
