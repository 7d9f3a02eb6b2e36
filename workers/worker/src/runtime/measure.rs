//! What an attempt adds to the process's metrics.

use likeness_contract::jobs::{CheckpointOutput, TaskKind, TaskOutput};
use likeness_link::telemetry::metrics::metrics;

use super::verdict::Done;
use crate::error::{TaskError, TaskErrorKind};

/// A message came; `deliveries` counts this time too.
pub(crate) fn on_delivery(deliveries: u64) {
    metrics().redeliveries.inc_by(u64::from(deliveries > 1));
}

/// An attempt at a task of this kind ended.
pub(crate) fn on_end(kind: TaskKind, end: &Result<Done, TaskError>) {
    let name = match end {
        Ok(Done { adopted: true, .. }) => {
            metrics().adopted_records.inc();
            "adopted"
        }
        Ok(Done { device_ms, .. }) => {
            let seconds = std::time::Duration::from_millis(*device_ms).as_secs_f64();
            metrics().task_seconds.get_or_create(&[("kind", kind.name())]).observe(seconds);
            "done"
        }
        Err(error) => match error.kind {
            TaskErrorKind::Transient => "failed",
            TaskErrorKind::Invalid => "invalid",
            TaskErrorKind::Cancelled => "cancelled",
            TaskErrorKind::Drain | TaskErrorKind::Newer => "released",
            TaskErrorKind::LeaseLost => {
                metrics().lease_losses.inc();
                "lease_lost"
            }
        },
    };
    metrics().attempts.get_or_create(&[("end", name)]).inc();
}

/// A record was created with this output.
pub(crate) fn on_record(kind: TaskKind, output: &TaskOutput) {
    let (rows, skipped) = match output {
        TaskOutput::Part { rows, skipped, .. }
        | TaskOutput::Shard { rows, skipped, .. }
        | TaskOutput::IndexedShard { rows, skipped, .. } => (*rows, skipped.len() as u64),
        TaskOutput::Checkpoint(CheckpointOutput { images_per_second: Some(rate), .. })
        | TaskOutput::Slot { checkpoint: CheckpointOutput { images_per_second: Some(rate), .. }, .. } => {
            metrics().training_rate.set(*rate);
            return;
        }
        _ => return,
    };
    metrics().images.get_or_create(&[("kind", kind.name())]).inc_by(rows);
    metrics().skipped_images.inc_by(skipped);
}
