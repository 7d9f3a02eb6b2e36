//! A worker, step by step as `likeness-worker` goes: look for the record, `started`, compute, data, record, event, ack.
//!
//! Between any two steps it may crash, stall for as long as one likes, or be cut off; what it sends may arrive late. It renews its lease
//! while it is awake, and says nothing more once a renewal was late, by its own clock.

use likeness_contract::ids::WorkerId;

use super::broker::{ACK_WAIT_MS, Delivery};

/// Pause between renewals, milliseconds.
pub(super) const RENEW_MS: u64 = ACK_WAIT_MS / 3;

/// Where an attempt is: the step that it takes next. Each is a point at which it may crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Is the record there, or the run closed?
    Look,
    /// Tell that it starts.
    Started,
    /// Compute, for so many more turns.
    Compute(usize),
    /// Write the data, which no record names yet.
    Data,
    /// Is the lease still held?
    Ensure,
    /// Create the record.
    Record,
    /// Tell how it ended.
    Tell(End),
    /// Answer the message.
    Answer(End),
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The record is there: made, or found.
    Done { adopted: bool },
    /// It may be tried again.
    Transient,
    /// It never will be.
    Invalid,
    /// The run is closed.
    Cancelled,
    /// The worker leaves.
    Drain,
}

/// One attempt at one message.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub delivery: Delivery,
    pub name: String,
    pub step: Step,
    /// When the lease was confirmed last, by the worker's clock.
    pub confirmed_ms: u64,
}

impl Attempt {
    pub(super) fn new(delivery: Delivery, name: String, now_ms: u64) -> Self {
        Self { delivery, name, step: Step::Look, confirmed_ms: now_ms }
    }

    /// Whether the worker may still speak for the message.
    pub(super) fn is_leased(&self, now_ms: u64) -> bool {
        now_ms < self.confirmed_ms + ACK_WAIT_MS
    }
}

/// A worker process.
pub(super) struct Worker {
    pub id: WorkerId,
    pub attempt: Option<Attempt>,
    /// Stopped until then: it does nothing, and does not know.
    pub asleep_until_ms: u64,
    /// Nothing that it sends arrives until then.
    pub cut_off_until_ms: u64,
}

impl Worker {
    pub(super) fn new(id: WorkerId) -> Self {
        Self { id, attempt: None, asleep_until_ms: 0, cut_off_until_ms: 0 }
    }
}
