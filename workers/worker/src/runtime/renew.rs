//! Keeps the lease of the message at hand, and hears that nobody waits for its task any more, on an async task of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use likeness_contract::jobs::{Outcome, TaskMessage, TaskRecord, TaskWork, task_ids};
use likeness_contract::keys;
use likeness_link::error::chain;
use likeness_link::{Delivery, Store, Timings};
use tokio::time::{sleep, timeout_at};

use super::lease::{Interrupt, Lease};

/// After a renewal that failed, the next is tried so many times sooner than usual.
const SOONER: u32 = 5;

/// Renews until the lease is lost. Run it beside the attempt and drop it when the attempt ends.
pub(crate) async fn keep(lease: Arc<Lease>, delivery: Arc<Delivery>, timings: Timings) {
    let mut pause = timings.renew_every;
    loop {
        sleep(pause).await;
        let sent = Instant::now();
        if !lease.holds(sent) {
            tracing::warn!("a renewal was late: silent from here on");
            return;
        }
        pause = match timeout_at(lease.expires().into(), delivery.progress()).await {
            Ok(Ok(())) => {
                lease.confirm(sent, Instant::now());
                timings.renew_every
            }
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "the lease could not be renewed; trying again");
                timings.renew_every / SOONER
            }
            // The next turn of the loop sees that the lease is over.
            Err(_) => Duration::ZERO,
        };
    }
}

/// Stops the attempt when nobody waits for it. Looks as often as the lease is renewed: one or two small reads.
pub(crate) async fn watch_run(lease: Arc<Lease>, store: Store, message: Arc<TaskMessage>, timings: Timings) {
    loop {
        sleep(timings.renew_every).await;
        match is_unwanted(&store, &message).await {
            Ok(true) => return lease.stop(Interrupt::Cancelled),
            Ok(false) => {}
            Err(error) => tracing::debug!(error = %chain(&error), "whether the task is still wanted could not be read"),
        }
    }
}

/// Whether nobody waits for the task any more: its run is closed, or its round went on without it.
pub(crate) async fn is_unwanted(store: &Store, message: &TaskMessage) -> likeness_link::error::Result<bool> {
    if let TaskWork::TrainSlot { round, .. } = message.work {
        let outer = keys::task_record(&message.job, &task_ids::outer(round));
        if store.document::<TaskRecord>(&outer).await?.is_some() {
            return Ok(true);
        }
    }
    run_is_closed(store, message).await
}

/// Whether the run that published the message is closed.
async fn run_is_closed(store: &Store, message: &TaskMessage) -> likeness_link::error::Result<bool> {
    let outcome: Option<Outcome> = store.document(&keys::job_outcome(&message.job, message.run)).await?;
    Ok(outcome.is_some())
}
