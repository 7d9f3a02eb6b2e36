//! Takes the slots of a round into the next checkpoint, and keeps account of the best one.
//!
//! With one slot and no outer optimizer the next checkpoint *is* the slot's: θ + (θ′ − θ) is not θ′ in f32.

use bytes::Bytes;
use candle_core::Device;
use likeness_contract::documents::ObjectRef;
use likeness_contract::jobs::{BestRound, CheckpointOutput, SlotState, TaskOutput, TaskRecord, TrainStage, task_ids};
use likeness_contract::keys;
use likeness_contract::settings::RoundSettings;
use likeness_model::{NextRound, OuterStep};

use super::figures::{self, FigureRow, Phase};
use super::validation::{self, Validation};
use super::{Before, ONLY_SLOT, blocking, checkpoint, handed_on, stage, trainer, training_set};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The next checkpoint of a round.
pub async fn run(cx: &TaskContext, round: u32) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?;
    match stage.train.optimizer.rounds() {
        None => take(cx, stage, round).await,
        Some(rounds) => bring_together(cx, stage, rounds, round).await,
    }
}

/// Takes θ′ of the round's only slot: the same object.
async fn take(cx: &TaskContext, stage: &TrainStage, round: u32) -> Result<TaskOutput, TaskError> {
    let slot = checkpoint(cx.record(&task_ids::slot(round, ONLY_SLOT)).await?.output)?;
    if slot.stopped {
        return Ok(TaskOutput::Checkpoint(slot));
    }
    let before = match round.checked_sub(1) {
        Some(last) => checkpoint(cx.record(&task_ids::outer(last)).await?.output)?.best,
        None => None,
    };
    let slot = CheckpointOutput { metrics: None, images_per_second: None, wait_share: None, ..slot };
    Ok(TaskOutput::Checkpoint(accounted(cx, stage, round, before, slot)))
}

/// With the account of the best round, and whether the training ends here.
fn accounted(
    cx: &TaskContext,
    stage: &TrainStage,
    round: u32,
    before: Option<BestRound>,
    checkpoint: CheckpointOutput,
) -> CheckpointOutput {
    let best = best_after(before, round, checkpoint.validation_map);
    let stopped = is_enough(best, stage.train.patience);
    if let Some(best) = best.filter(|_| stopped) {
        tracing::info!(job = %cx.job(), round, best = best.round, map = best.map, "the mAP no longer rises");
    }
    CheckpointOutput { best, stopped, ..checkpoint }
}

/// A slot that is taken.
struct Taken {
    checkpoint: CheckpointOutput,
    state: ObjectRef,
}

/// Brings together what the round's slots learned.
async fn bring_together(
    cx: &TaskContext,
    stage: &TrainStage,
    rounds: &RoundSettings,
    round: u32,
) -> Result<TaskOutput, TaskError> {
    let before = Before::of(cx, round).await?;
    if before.checkpoint.stopped {
        return Ok(handed_on(before.checkpoint));
    }
    let taken = find(cx, rounds, round).await?;
    let NextRound { theta, momentum } = step(cx, rounds, &before, &taken).await?;
    let theta = Bytes::from(theta);
    let validation = validate(cx, stage, round, theta.clone()).await?;

    let object = cx.create_object(|digest| keys::checkpoint(cx.job(), round + 1, digest), theta.to_vec()).await?;
    let momentum = match momentum {
        Some(bytes) => Some(cx.create_object(|digest| keys::outer_momentum(cx.job(), round + 1, digest), bytes).await?),
        None => None,
    };
    let of_slots: Vec<&CheckpointOutput> = taken.iter().flatten().map(|taken| &taken.checkpoint).collect();
    let (step, losses) = (of_slots[0].step, of_slots.iter().filter_map(|slot| slot.loss));
    let next = CheckpointOutput {
        metrics: keep(cx, round, step, validation.as_ref()).await?,
        loss: Some(losses.sum::<f64>() / of_slots.len() as f64),
        validation_loss: validation.as_ref().map(|validation| validation.figures.loss),
        validation_map: validation.and_then(|validation| validation.map),
        ..CheckpointOutput::of(step, object)
    };
    let checkpoint = accounted(cx, stage, round, before.checkpoint.best, next);
    Ok(TaskOutput::Round { checkpoint, momentum, slots: states(&before, taken) })
}

/// Stores the figures of a validation.
async fn keep(
    cx: &TaskContext,
    round: u32,
    step: u64,
    validation: Option<&Validation>,
) -> Result<Option<ObjectRef>, TaskError> {
    let Some(Validation { figures, .. }) = validation else { return Ok(None) };
    let bytes = figures::encode(&[FigureRow { step, phase: Phase::Validation, figures: figures.clone() }])?;
    let what = format!("figures-{}", task_ids::outer(round));
    Ok(Some(cx.create_object(|digest| keys::job_data(cx.job(), &what, digest, "parquet"), bytes).await?))
}

/// The round's slots as far as they have records; enough of them, or it is too early.
async fn find(cx: &TaskContext, rounds: &RoundSettings, round: u32) -> Result<Vec<Option<Taken>>, TaskError> {
    let mut found = Vec::new();
    for slot in 0..rounds.slots {
        let key = keys::task_record(cx.job(), &task_ids::slot(round, slot));
        let record: Option<TaskRecord> = cx.store.document(&key).await?;
        found.push(match record.map(|record| record.output) {
            None => None,
            Some(TaskOutput::Slot { checkpoint, state }) => Some(Taken { checkpoint, state }),
            Some(_) => return Err(TaskError::invalid(format!("the record `{key}` is not of a slot of several"))),
        });
    }
    let there = found.iter().flatten().count();
    if there < rounds.quorum.max(1) as usize {
        return Err(TaskError::transient(format!(
            "round {round} has records of {there} slots, of {} at least",
            rounds.quorum
        )));
    }
    Ok(found)
}

/// Adds slot by slot, so that one is in memory at a time.
async fn step(
    cx: &TaskContext,
    rounds: &RoundSettings,
    before: &Before,
    taken: &[Option<Taken>],
) -> Result<NextRound, TaskError> {
    let theta = cx.store.read(&before.checkpoint.object).await?;
    let mut step = blocking(move || Ok(OuterStep::new(&theta)?)).await?;
    let slots: Vec<&Taken> = taken.iter().flatten().collect();
    let of = slots.len() as u64;
    for (done, slot) in (0..).zip(slots) {
        cx.progress(done, of, format!("bringing {of} slots together"));
        let bytes = cx.store.read(&slot.checkpoint.object).await?;
        let mut adding = step;
        step = blocking(move || adding.add(&bytes).map(|()| adding).map_err(TaskError::from)).await?;
    }
    let momentum = match &before.momentum {
        Some(momentum) => Some(cx.store.read(momentum).await?),
        None => None,
    };
    let rounds = *rounds;
    blocking(move || Ok(step.finish(&rounds, momentum.as_deref())?)).await
}

async fn validate(
    cx: &TaskContext,
    stage: &TrainStage,
    round: u32,
    theta: Bytes,
) -> Result<Option<Validation>, TaskError> {
    if !validation::is_due(stage, round) || stage.validation_rows == 0 {
        return Ok(None);
    }
    let set = training_set::load(cx, stage).await?;
    let (stage, inner) = (stage.clone(), cx.clone());
    let measure = move |device: &Device| {
        let trainer = trainer(&stage, &theta, None, device)?.with_compute(inner.device.compute()).serving()?;
        let go_on = || if inner.cancelled() { inner.ensure_leased() } else { Ok(()) };
        validation::after(round, &trainer, &stage, &set.validation, device, go_on)
    };
    let validation = cx.device.run(measure).await?;
    if let Some(note) = validation.as_ref().and_then(Validation::in_words) {
        cx.progress(1, 1, note);
    }
    Ok(validation)
}

/// The optimizer of a slot that was late goes on from what it was.
fn states(before: &Before, taken: Vec<Option<Taken>>) -> Vec<SlotState> {
    let state = |(slot, taken): (u32, Option<Taken>)| match taken {
        Some(taken) => SlotState { taken: true, state: Some(taken.state) },
        None => SlotState { taken: false, state: before.state(slot).cloned() },
    };
    (0..).zip(taken).map(state).collect()
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
