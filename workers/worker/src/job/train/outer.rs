//! Takes the slots of a round into the next checkpoint, and keeps account of the best one.
//!
//! With one slot and no outer optimizer the next checkpoint *is* the slot's: θ + (θ′ − θ) is not θ′ in f32.

use likeness_contract::jobs::{BestRound, CheckpointOutput, TaskOutput, task_ids};

use super::{ONLY_SLOT, checkpoint, stage};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Takes θ′ of the round's slot: the same object.
pub async fn run(cx: &TaskContext, round: u32) -> Result<TaskOutput, TaskError> {
    let slot = checkpoint(cx.record(&task_ids::slot(round, ONLY_SLOT)).await?.output)?;
    if slot.stopped {
        return Ok(TaskOutput::Checkpoint(slot));
    }
    let before = match round.checked_sub(1) {
        Some(last) => checkpoint(cx.record(&task_ids::outer(last)).await?.output)?.best,
        None => None,
    };
    let best = best_after(before, round, slot.validation_map);
    let stopped = is_enough(best, stage(cx.spec())?.train.patience);
    if let Some(best) = best.filter(|_| stopped) {
        tracing::info!(job = %cx.job(), round, best = best.round, map = best.map, "the mAP no longer rises");
    }
    let outer = CheckpointOutput { metrics: None, images_per_second: None, wait_share: None, best, stopped, ..slot };
    Ok(TaskOutput::Checkpoint(outer))
}

/// The earlier of two rounds that are equal stays the best.
fn best_after(before: Option<BestRound>, round: u32, map: Option<f64>) -> Option<BestRound> {
    match (before, map) {
        (before, None) => before,
        (Some(best), Some(map)) if map <= best.map => Some(BestRound { since: best.since + 1, ..best }),
        (_, Some(map)) => Some(BestRound { round, map, since: 0 }),
    }
}

fn is_enough(best: Option<BestRound>, patience: u32) -> bool {
    patience > 0 && best.is_some_and(|best| best.since >= patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validations_without_a_better_map_are_counted_and_rounds_without_one_are_not() {
        let maps = [None, Some(0.5), Some(0.6), None, Some(0.6), Some(0.55), Some(0.61)];
        let mut best = None;
        let mut seen = Vec::new();
        for (round, map) in (0..).zip(maps) {
            best = best_after(best, round, map);
            seen.push(best.map(|best: BestRound| (best.round, best.since)));
        }
        let expected = [None, Some((1, 0)), Some((2, 0)), Some((2, 0)), Some((2, 1)), Some((2, 2)), Some((6, 0))];
        assert_eq!(seen, expected);
    }

    #[test]
    fn patience_ends_after_so_many_validations_and_0_never() {
        let best = |since| Some(BestRound { round: 1, map: 0.5, since });
        assert!(!is_enough(best(1), 2) && is_enough(best(2), 2));
        assert!(!is_enough(best(1000), 0) && !is_enough(None, 1));
    }
}
