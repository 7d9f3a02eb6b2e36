//! Who leads: one entry of a bucket, held by renewing it.
//!
//! Every decision is the result of a `create` or an `update` at a revision, never of a read. A holder that is cut
//! off stops leading before the bucket lets its entry die, by its own clock: later leaders can't meet it.

use std::time::Duration;

use likeness_contract::ids::{Fence, WorkerId};
use likeness_contract::messages::Leader;
use likeness_contract::subjects::{LEADER_KEY, LEASES_BUCKET};
use likeness_link::error::chain;
use likeness_link::telemetry::metrics::metrics;
use likeness_link::{Bus, Kv, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Part of its life that a lease is not used for, against slow clocks and late timers: one fifth.
const MARGIN: u32 = 5;

/// The lease, held.
#[derive(Debug)]
pub(super) struct Lease {
    kv: Kv,
    holder: Leader,
    fence: Fence,
    revision: u64,
    /// Not to be used any longer after this.
    good_until: Instant,
    good_for: Duration,
    renew_every: Duration,
}

impl Lease {
    /// Waits until nobody holds the lease, and takes it.
    pub(super) async fn acquire(bus: &Bus, id: &WorkerId) -> Result<Self> {
        let kv = bus.kv(LEASES_BUCKET).await?;
        let holder = Leader { coordinator: id.clone() };
        let timings = bus.timings();
        let (renew_every, good_for) = (timings.lease_renew_every, timings.lease_ttl - timings.lease_ttl / MARGIN);
        let mut told = false;
        loop {
            let asked = Instant::now();
            if let Some(revision) = kv.create(LEADER_KEY, &holder).await? {
                let (fence, good_until) = (Fence(revision), asked + good_for);
                return Ok(Self { kv, holder, fence, revision, good_until, good_for, renew_every });
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!(%id, "another coordinator leads, standing by");
            }
            // Half a renewal: a standby takes over soon after the entry has died.
            tokio::time::sleep(renew_every / 2).await;
        }
    }

    /// The revision at which it was acquired; later leaders have larger ones.
    pub(super) fn fence(&self) -> Fence {
        self.fence
    }

    /// Renews until the lease is lost, then cancels `stop`. When `stop` comes first, gives the lease back.
    pub(super) async fn hold(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return self.give_back().await,
                () = tokio::time::sleep(self.renew_every) => {}
            }
            if !self.renew(&stop).await {
                metrics().leadership_losses.inc();
                tracing::warn!(fence = self.fence.0, "the lease is lost, this coordinator leads no longer");
                stop.cancel();
                return;
            }
        }
    }

    /// Tries until it works or the lease is no longer good. Returns whether it is.
    async fn renew(&mut self, stop: &CancellationToken) -> bool {
        while !stop.is_cancelled() {
            let asked = Instant::now();
            let renewed = self.kv.update(LEADER_KEY, &self.holder, self.revision);
            match tokio::time::timeout_at(self.good_until, renewed).await {
                Err(_too_late) => return false,
                Ok(Ok(Some(revision))) => {
                    self.revision = revision;
                    self.good_until = asked + self.good_for;
                    return true;
                }
                Ok(Ok(None)) => match self.own_revision().await {
                    Some(revision) => self.revision = revision,
                    None => return false,
                },
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "the lease was not renewed, trying again");
                    tokio::time::sleep(self.renew_every / 10).await;
                }
            }
            if Instant::now() >= self.good_until {
                return false;
            }
        }
        true
    }

    /// The revision of our own entry when a renewal succeeded whose answer was lost. What is read decides nothing:
    /// the next update does.
    async fn own_revision(&self) -> Option<u64> {
        let read = tokio::time::timeout_at(self.good_until, self.kv.get::<Leader>(LEADER_KEY)).await;
        let entry = read.ok()?.ok()??;
        (entry.value == self.holder && entry.revision > self.revision).then_some(entry.revision)
    }

    /// So that another can lead at once.
    async fn give_back(self) {
        let given = tokio::time::timeout(self.renew_every, self.kv.delete_at(LEADER_KEY, self.revision)).await;
        if let Ok(Err(error)) = given {
            tracing::debug!(error = %chain(&error), "the lease will die of its age");
        }
    }
}
