//! What the end of an attempt does to its message: one pure table.
//!
//! | end | event | message |
//! |---|---|---|
//! | record there, made or found | done | ack |
//! | transient failure | failed, retryable | back, with a delay that doubles |
//! | invalid | failed for good | ended |
//! | run closed | none | ended |
//! | worker leaves | released | back at once |
//! | what it needs is of a newer program | released | back, with a delay |
//! | lease lost | none | nothing is said |

use std::time::Duration;

use likeness_contract::jobs::{CheckpointOutput, TaskOutput};
use likeness_contract::messages::TaskNews;

use crate::error::{TaskError, TaskErrorKind};

/// Delay after the first delivery that failed.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest delay: a fault that lasts must not make its end wait much longer.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// An attempt that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    /// Whether the record was there already.
    pub adopted: bool,
    /// Time on the device thread.
    pub device_ms: u64,
}

/// What is sent for the message, if the lease still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done.
    Ack,
    /// It is to be delivered again after a delay.
    Nak(Duration),
    /// It is never to be delivered again.
    Term,
    /// Nothing.
    Silence,
}

/// The event and the answer that an attempt ends with.
pub(crate) fn verdict(end: &Result<Done, TaskError>, deliveries: u64) -> (Option<TaskNews>, Answer) {
    let error = match end {
        Ok(Done { adopted, device_ms }) => {
            let news = TaskNews::Done { adopted: *adopted, device_ms: *device_ms };
            return (Some(news), Answer::Ack);
        }
        Err(error) => error,
    };
    let failed = |retryable| Some(TaskNews::Failed { error: error.chain(), retryable });
    match error.kind {
        TaskErrorKind::Transient => (failed(true), Answer::Nak(backoff(deliveries))),
        TaskErrorKind::Invalid => (failed(false), Answer::Term),
        TaskErrorKind::Cancelled => (None, Answer::Term),
        TaskErrorKind::Drain => (Some(TaskNews::Released), Answer::Nak(Duration::ZERO)),
        TaskErrorKind::Newer => (Some(TaskNews::Released), Answer::Nak(FIRST_DELAY)),
        TaskErrorKind::LeaseLost => (None, Answer::Silence),
    }
}

/// Delay before a message is delivered again that was delivered so often: 1 s, 2 s, 4 s … 60 s.
fn backoff(deliveries: u64) -> Duration {
    let doublings = u32::try_from(deliveries.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    (FIRST_DELAY * 2u32.pow(doublings)).min(LONGEST_DELAY)
}

/// Refuses an output that no record may hold: figures that are not finite.
pub(crate) fn check_output(output: &TaskOutput) -> Result<(), TaskError> {
    let figures: Vec<f64> = match output {
        TaskOutput::Checkpoint(checkpoint)
        | TaskOutput::Slot { checkpoint, .. }
        | TaskOutput::Round { checkpoint, .. } => {
            let CheckpointOutput { loss, validation_loss, images_per_second, wait_share, validation_map, .. } =
                checkpoint;
            [loss, validation_loss, images_per_second, wait_share, validation_map]
                .into_iter()
                .copied()
                .flatten()
                .collect()
        }
        TaskOutput::Report { headline, .. } => {
            let of_row = |row: &likeness_contract::documents::HeadlineRow| {
                [row.map, row.chance].into_iter().chain(row.p_at).collect::<Vec<_>>()
            };
            headline.iter().flat_map(of_row).collect()
        }
        TaskOutput::Gate(gate) | TaskOutput::FlooredGate { decision: gate, .. } => {
            vec![gate.candidate_map, gate.baseline_map, gate.difference, gate.interval[0], gate.interval[1]]
        }
        TaskOutput::Scan { .. }
        | TaskOutput::Part { .. }
        | TaskOutput::Manifest { .. }
        | TaskOutput::Shard { .. }
        | TaskOutput::IndexedShard { .. }
        | TaskOutput::CopiedShard { .. }
        | TaskOutput::Generation { .. }
        | TaskOutput::ImportScan { .. }
        | TaskOutput::Queries { .. }
        | TaskOutput::PooledQueries { .. }
        | TaskOutput::Scores { .. }
        | TaskOutput::Answers { .. } => Vec::new(),
    };
    if figures.iter().all(|figure| figure.is_finite()) {
        return Ok(());
    }
    Err(TaskError::transient("the result holds a figure that is not finite"))
}

#[cfg(test)]
mod tests {
    use likeness_contract::documents::ObjectRef;
    use likeness_contract::ids::Digest;

    use super::*;

    fn answer(error: TaskError, deliveries: u64) -> (Option<&'static str>, Answer) {
        let (news, answer) = verdict(&Err(error), deliveries);
        (news.map(|news| news.name()), answer)
    }

    #[test]
    fn every_end_has_its_event_and_its_answer() {
        let (news, done) = verdict(&Ok(Done { adopted: true, device_ms: 7 }), 3);
        assert_eq!((news, done), (Some(TaskNews::Done { adopted: true, device_ms: 7 }), Answer::Ack));
        assert_eq!(answer(TaskError::invalid("x"), 1), (Some("failed"), Answer::Term));
        assert_eq!(answer(TaskError::cancelled(), 1), (None, Answer::Term));
        assert_eq!(answer(TaskError::drain(), 1), (Some("released"), Answer::Nak(Duration::ZERO)));
        let newer = TaskError { kind: TaskErrorKind::Newer, source: "x".into() };
        assert_eq!(answer(newer, 9), (Some("released"), Answer::Nak(FIRST_DELAY)));
        assert_eq!(answer(TaskError::lease_lost(), 1), (None, Answer::Silence));
    }

    #[test]
    fn a_transient_failure_comes_back_later_every_time() {
        let delays = [1, 2, 3, 7, 8, u64::MAX].map(|n| answer(TaskError::transient("x"), n).1);
        let seconds = [1, 2, 4, 60, 60, 60].map(|s| Answer::Nak(Duration::from_secs(s)));
        assert_eq!(delays, seconds);
    }

    #[test]
    fn failures_carry_their_causes_and_whether_to_try_again() {
        let io = std::io::Error::other("disk gone");
        let (news, _) = verdict(&Err(TaskError::transient(io)), 1);
        assert_eq!(news, Some(TaskNews::Failed { error: "disk gone".into(), retryable: true }));
    }

    #[test]
    fn a_loss_that_is_not_a_number_never_reaches_a_record() {
        let object = ObjectRef { key: "k".into(), digest: Digest::of(b""), bytes: 0 };
        let checkpoint =
            |loss| TaskOutput::Checkpoint(CheckpointOutput { loss, ..CheckpointOutput::of(1, object.clone()) });
        assert!(check_output(&checkpoint(Some(0.1))).is_ok());
        assert!(check_output(&checkpoint(None)).is_ok());
        assert!(check_output(&checkpoint(Some(f64::NAN))).is_err());
        let of_several = |loss| {
            let checkpoint = CheckpointOutput { loss, ..CheckpointOutput::of(1, object.clone()) };
            TaskOutput::Slot { checkpoint, state: object.clone() }
        };
        assert!(check_output(&of_several(Some(0.1))).is_ok());
        assert!(check_output(&of_several(Some(f64::INFINITY))).is_err());
    }
}
