//! The lease on a message: as long as it is renewed in time, this worker may speak for the message.
//!
//! An acknowledgement names a message, not a delivery: one that is sent after the broker gave the message to
//! somebody else would act on that other delivery. So the rule is strict: **once a renewal was late, nothing
//! more is sent for the message**, whatever the broker may say later. The lease saves work; safety is in the
//! create of the record.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::TaskError;

/// Why an attempt must stop before its task is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// The run was closed.
    Cancelled,
    /// The worker is leaving and its grace period is nearly over.
    Drain,
    /// A renewal was late.
    LeaseLost,
}

impl From<Interrupt> for TaskError {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::Cancelled => Self::cancelled(),
            Interrupt::Drain => Self::drain(),
            Interrupt::LeaseLost => Self::lease_lost(),
        }
    }
}

/// When the broker may give the message to somebody else. Pure: every method is told the time.
#[derive(Debug, Clone, Copy)]
struct Clock {
    ack_wait: Duration,
    confirmed: Instant,
    lost: bool,
}

impl Clock {
    /// Whether the lease holds at `now`; once it does not, it never does again.
    fn check(&mut self, now: Instant) -> bool {
        self.lost |= now >= self.expires();
        !self.lost
    }

    /// A renewal that was sent at `sent` was confirmed by the broker, as is known at `now`. One that comes after the
    /// end does not count, even if nobody had looked at the clock since: somebody else may have the message.
    fn confirm(&mut self, sent: Instant, now: Instant) {
        if self.check(now) {
            self.confirmed = self.confirmed.max(sent);
        }
    }

    fn expires(&self) -> Instant {
        self.confirmed + self.ack_wait
    }
}

/// The lease of one delivery, shared by the attempt, its computation and its renewals.
#[derive(Debug)]
pub struct Lease {
    clock: Mutex<Clock>,
    interrupt: watch::Sender<Option<Interrupt>>,
}

impl Lease {
    /// A lease that begins with a delivery received at `received`.
    pub fn new(received: Instant, ack_wait: Duration) -> Self {
        let clock = Clock { ack_wait, confirmed: received, lost: false };
        Self { clock: Mutex::new(clock), interrupt: watch::Sender::new(None) }
    }

    /// Whether this worker may still speak for the message at `now`.
    pub fn holds(&self, now: Instant) -> bool {
        let holds = self.clock().check(now);
        if !holds {
            self.stop(Interrupt::LeaseLost);
        }
        holds
    }

    /// Fails when the attempt must have no more side effects.
    pub fn ensure(&self, now: Instant) -> Result<(), Interrupt> {
        if !self.holds(now) {
            return Err(Interrupt::LeaseLost);
        }
        match *self.interrupt.borrow() {
            Some(interrupt) => Err(interrupt),
            None => Ok(()),
        }
    }

    /// Whether the attempt was told to stop. Cheap.
    pub fn stopped(&self) -> bool {
        self.interrupt.borrow().is_some()
    }

    /// Tells the attempt to stop. A lost lease outweighs any other reason; else the first reason stays.
    pub fn stop(&self, reason: Interrupt) {
        self.interrupt.send_if_modified(|current| {
            let changes = current.is_none() || (reason == Interrupt::LeaseLost && *current != Some(reason));
            if changes {
                *current = Some(reason);
            }
            changes
        });
    }

    /// A renewal that was sent at `sent` was confirmed at `now`. Too late a confirmation changes nothing.
    pub fn confirm(&self, sent: Instant, now: Instant) {
        self.clock().confirm(sent, now);
    }

    /// When the lease ends unless it is renewed.
    pub fn expires(&self) -> Instant {
        self.clock().expires()
    }

    /// Waits for the reason to stop.
    pub async fn interrupted(&self) -> Interrupt {
        let mut receiver = self.interrupt.subscribe();
        loop {
            if let Some(reason) = *receiver.borrow_and_update() {
                return reason;
            }
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACK_WAIT: Duration = Duration::from_secs(30);

    fn lease() -> (Lease, Instant) {
        let start = Instant::now();
        (Lease::new(start, ACK_WAIT), start)
    }

    #[test]
    fn a_lease_holds_for_ack_wait_after_the_last_confirmed_renewal_was_sent() {
        let (lease, start) = lease();
        let second = Duration::from_secs(1);
        assert!(lease.holds(start + 29 * second));
        lease.confirm(start + 20 * second, start + 29 * second);
        assert!(lease.holds(start + 49 * second));
        assert!(!lease.holds(start + 50 * second));
    }

    #[test]
    fn a_lost_lease_never_comes_back() {
        let (lease, start) = lease();
        assert!(!lease.holds(start + ACK_WAIT));
        lease.confirm(start + ACK_WAIT, start + ACK_WAIT);
        assert_eq!(lease.ensure(start + ACK_WAIT), Err(Interrupt::LeaseLost));
        assert!(lease.stopped());
    }

    #[test]
    fn a_confirmation_after_the_end_does_not_count_although_nobody_had_looked() {
        let (lease, start) = lease();
        lease.confirm(start + Duration::from_secs(20), start + ACK_WAIT);
        assert!(!lease.holds(start + ACK_WAIT));
    }

    #[test]
    fn an_old_confirmation_does_not_shorten_the_lease() {
        let (lease, start) = lease();
        lease.confirm(start + Duration::from_secs(20), start + Duration::from_secs(21));
        lease.confirm(start + Duration::from_secs(10), start + Duration::from_secs(22));
        assert_eq!(lease.expires(), start + Duration::from_secs(20) + ACK_WAIT);
    }

    #[test]
    fn a_lost_lease_outweighs_cancel_and_drain_but_not_the_other_way() {
        let (lease, start) = lease();
        lease.stop(Interrupt::Drain);
        lease.stop(Interrupt::Cancelled);
        assert_eq!(lease.ensure(start), Err(Interrupt::Drain));
        lease.stop(Interrupt::LeaseLost);
        lease.stop(Interrupt::Cancelled);
        assert_eq!(lease.ensure(start), Err(Interrupt::LeaseLost));
    }

    #[tokio::test]
    async fn whoever_waits_for_an_interrupt_is_woken_by_it() {
        let (lease, _) = lease();
        let (reason, ()) = tokio::join!(lease.interrupted(), async { lease.stop(Interrupt::Cancelled) });
        assert_eq!(reason, Interrupt::Cancelled);
    }
}
