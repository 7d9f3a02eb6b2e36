//! Keeps the lease of the message at hand, and hears of a run that was closed, on an async task of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use likeness_contract::jobs::{Outcome, TaskMessage};
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

/// Stops the attempt when its run is closed. Looks as often as the lease is renewed: one small read.
pub(crate) async fn watch_run(lease: Arc<Lease>, store: Store, message: Arc<TaskMessage>, timings: Timings) {
    loop {
        sleep(timings.renew_every).await;
        match run_is_closed(&store, &message).await {
            Ok(true) => return lease.stop(Interrupt::Cancelled),
            Ok(false) => {}
            Err(error) => tracing::debug!(error = %chain(&error), "the run's outcome could not be read"),
        }
    }
}

/// Whether the run that published the message is closed.
pub(crate) async fn run_is_closed(store: &Store, message: &TaskMessage) -> likeness_link::error::Result<bool> {
    let outcome: Option<Outcome> = store.document(&keys::job_outcome(&message.job, message.run)).await?;
    Ok(outcome.is_some())
}
