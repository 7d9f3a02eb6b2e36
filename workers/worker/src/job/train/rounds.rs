//! How rounds went whose slots are brought together, out of their records.

use std::collections::BTreeMap;

use likeness_contract::documents::RoundFigures;
use likeness_contract::ids::{TaskId, WorkerId};
use likeness_contract::jobs::{CheckpointOutput, SlotState, TaskOutput, TaskRecord, task_ids};
use likeness_model::StepFigures;

use super::figures::{self, FigureRow, Phase};
use super::{Before, blocking};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The figures that a task measured.
pub(super) async fn rows(
    cx: &TaskContext,
    task: &TaskId,
    checkpoint: &CheckpointOutput,
) -> Result<Vec<FigureRow>, TaskError> {
    let Some(metrics) = &checkpoint.metrics else {
        return Err(TaskError::invalid(format!("the record of `{task}` names no figures")));
    };
    let bytes = cx.store.read(metrics).await?;
    blocking(move || figures::decode(bytes)).await
}

/// A round's figures, the mean over its slots step by step, and how it went; none once the training has stopped.
pub(super) async fn figures(cx: &TaskContext, round: u32) -> Result<Option<(Vec<FigureRow>, RoundFigures)>, TaskError> {
    let outer = cx.record(&task_ids::outer(round)).await?;
    let (checkpoint, momentum, states) = match &outer.output {
        TaskOutput::Checkpoint(stopped) if stopped.stopped => return Ok(None),
        TaskOutput::Round { checkpoint, momentum, slots } => (checkpoint, momentum, slots),
        _ => return Err(TaskError::invalid(format!("the record of `{}` is not of an outer step", outer.task))),
    };
    let before = Before::of(cx, round).await?;
    let (mut slots, mut of_slots) = (Vec::new(), Vec::new());
    let mut bytes = before.checkpoint.object.bytes + checkpoint.object.bytes;
    bytes += [&before.momentum, momentum].into_iter().flatten().map(|object| object.bytes).sum::<u64>();
    for slot in taken(states) {
        let record = cx.record(&task_ids::slot(round, slot)).await?;
        let TaskOutput::Slot { checkpoint, state } = &record.output else {
            return Err(TaskError::invalid(format!("the record of `{}` is not of a slot of several", record.task)));
        };
        of_slots.push(rows(cx, &record.task, checkpoint).await?);
        bytes += before.checkpoint.object.bytes + before.state(slot).map_or(0, |state| state.bytes);
        // Written by the slot, read by the outer step.
        bytes += 2 * checkpoint.object.bytes + state.bytes;
        slots.push(record);
    }
    let mut mean = mean_of_slots(&of_slots)?;
    if checkpoint.metrics.is_some() {
        mean.extend(rows(cx, &outer.task, checkpoint).await?);
    }
    let (barrier_ms, outer_ms) = waits(&slots, outer.finished_ms);
    let late = (0..).zip(states).filter(|(_, state)| !state.taken).map(|(slot, _)| slot).collect();
    let loss = checkpoint.loss.unwrap_or_default();
    Ok(Some((mean, RoundFigures { round, step: checkpoint.step, loss, late, barrier_ms, outer_ms, bytes })))
}

fn taken(states: &[SlotState]) -> impl Iterator<Item = u32> {
    (0..).zip(states).filter(|(_, state)| state.taken).map(|(slot, _)| slot)
}

/// One row per step over the batches of all slots. Every slot has the same steps.
fn mean_of_slots(slots: &[Vec<FigureRow>]) -> Result<Vec<FigureRow>, TaskError> {
    let Some((first, others)) = slots.split_first() else {
        return Err(TaskError::invalid("a round that took no slot"));
    };
    let steps = |rows: &[FigureRow]| rows.iter().map(|row| row.step).collect::<Vec<_>>();
    if others.iter().any(|rows| steps(rows) != steps(first)) {
        return Err(TaskError::invalid("the slots of a round have figures of different steps"));
    }
    let mean = |at: usize| {
        let batches: Vec<StepFigures> = slots.iter().map(|rows| rows[at].figures.clone()).collect();
        let figures = StepFigures::mean_of(&batches)?;
        Some(FigureRow { step: first[at].step, phase: Phase::Train, figures })
    };
    Ok((0..first.len()).filter_map(mean).collect())
}

/// For how long workers waited for the round's last slot, all together, and how long the outer step took after that.
///
/// A worker waits from the end of its last slot on: of several slots one after the other only the last one counts.
fn waits(slots: &[TaskRecord], outer_finished_ms: u64) -> (u64, u64) {
    let mut ends: BTreeMap<&WorkerId, u64> = BTreeMap::new();
    for record in slots {
        let end = ends.entry(&record.worker).or_default();
        *end = record.finished_ms.max(*end);
    }
    let last = ends.values().copied().max().unwrap_or_default();
    (ends.values().map(|end| last - end).sum(), outer_finished_ms.saturating_sub(last))
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::{JobId, RunNumber};

    use super::super::figures::example;
    use super::*;

    #[test]
    fn a_worker_waits_from_its_last_slot_on() {
        let record = |worker: &str, finished_ms| TaskRecord {
            job: JobId::new("j").unwrap(),
            run: RunNumber(1),
            task: task_ids::slot(0, 0),
            worker: WorkerId::new(worker).unwrap(),
            attempt: 1,
            started_ms: 0,
            finished_ms,
            device_ms: 0,
            output: TaskOutput::Manifest { key: String::new() },
        };
        let slots = [record("a", 100), record("b", 700), record("a", 500), record("c", 650)];
        assert_eq!(waits(&slots, 940), (250, 240));
        assert_eq!(waits(&slots[..1], 90), (0, 0), "clocks may differ");
    }

    #[test]
    fn a_step_is_the_mean_over_its_slots_and_must_be_the_same_for_all() {
        let of = |loss: f64, step| {
            let row = example(step, Phase::Train);
            FigureRow { figures: StepFigures { loss, ..row.figures }, ..row }
        };
        let mean = mean_of_slots(&[vec![of(1.0, 4), of(2.0, 5)], vec![of(3.0, 4), of(6.0, 5)]]).unwrap();
        let losses: Vec<_> = mean.iter().map(|row| (row.step, row.figures.loss, row.figures.rows)).collect();
        assert_eq!(losses, [(4, 2.0, 8), (5, 4.0, 8)]);
        assert!(mean_of_slots(&[vec![of(1.0, 4)], vec![of(1.0, 5)]]).is_err());
        assert!(mean_of_slots(&[]).is_err());
    }
}
