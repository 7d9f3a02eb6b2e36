//! Gauges of the leader: how long the queues are, and who is there.

use likeness_contract::jobs::TaskKind;
use likeness_contract::messages::Presence;
use likeness_link::Bus;
use likeness_link::telemetry::metrics::metrics;

use super::status;

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Looks at the queues.
pub(super) async fn queues(bus: &Bus) {
    let queues = status::queues(bus).await;
    for kind in TaskKind::ALL {
        let of_kind = || queues.iter().filter(|queue| queue.kind == kind);
        let (waiting, running) =
            (of_kind().map(|queue| queue.waiting).sum(), of_kind().map(|queue| queue.running).sum());
        metrics().tasks_waiting.get_or_create(&[("kind", kind.name())]).set(gauge(waiting));
        metrics().tasks_running.get_or_create(&[("kind", kind.name())]).set(gauge(running));
    }
}

/// Counts those that are live.
pub(super) fn workers(live: &[Presence]) {
    for kind in TaskKind::ALL {
        let count = live.iter().filter(|worker| worker.roles.contains(&kind)).count() as u64;
        metrics().workers.get_or_create(&[("kind", kind.name())]).set(gauge(count));
    }
    let searchers = live.iter().filter(|worker| worker.searches).count() as u64;
    metrics().workers.get_or_create(&[("kind", "search")]).set(gauge(searchers));
}
