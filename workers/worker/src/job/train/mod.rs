//! Training in rounds: checkpoint in, checkpoint out.
//!
//! `init` → per round the slots, then `outer` → `finish`. Every task is a pure function of the job's spec, its round
//! and slot, and the checkpoint before it: a task that is done twice leaves the same bytes.
//!
//! A round of one slot hands its checkpoint on as it is. Of several slots (`Optimizer::Rounds`) each starts from the round's checkpoint
//! and from what its own optimizer remembers, and the outer step brings together what they learned. Where a quorum is
//! enough, the outer step decides which slots it takes: those that have a record when it looks. Its own record says which.
//!
//! The plan has every round from the start. A training that stops early goes through the rest of them without work:
//! their tasks hand the last checkpoint on.

mod advice;
mod batch;
mod figures;
pub mod finish;
pub mod init;
pub mod outer;
mod rounds;
pub mod slot;
mod tensorboard;
#[cfg(test)]
mod tests;
pub(crate) mod training_set;
mod validation;

use bytes::Bytes;
use candle_core::Device;
use likeness_contract::documents::ObjectRef;
use likeness_contract::jobs::{CheckpointOutput, JobSpec, JobWork, SlotState, TaskOutput, TrainStage, task_ids};
use likeness_model::Trainer;

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The slot of a round that has one.
const ONLY_SLOT: u32 = 0;

/// The training of a job.
fn stage(spec: &JobSpec) -> Result<&TrainStage, TaskError> {
    match &spec.work {
        JobWork::Train(train) | JobWork::Pipeline { train, .. } => Ok(train),
        other => Err(TaskError::invalid(format!("a job of kind `{}` has no training", other.kind()))),
    }
}

/// What the record of a checkpoint's task says.
fn checkpoint(output: TaskOutput) -> Result<CheckpointOutput, TaskError> {
    match output {
        TaskOutput::Checkpoint(checkpoint)
        | TaskOutput::Slot { checkpoint, .. }
        | TaskOutput::Round { checkpoint, .. } => Ok(checkpoint),
        other => Err(TaskError::invalid(format!("expected the record of a checkpoint, found {other:?}"))),
    }
}

/// What a round starts from.
struct Before {
    checkpoint: CheckpointOutput,
    /// Of the outer step.
    momentum: Option<ObjectRef>,
    /// Of each slot; none before the first round.
    slots: Vec<SlotState>,
}

impl Before {
    async fn of(cx: &TaskContext, round: u32) -> Result<Self, TaskError> {
        let before = match round.checked_sub(1) {
            Some(last) => task_ids::outer(last),
            None => task_ids::train_init(),
        };
        match cx.record(&before).await?.output {
            TaskOutput::Round { checkpoint, momentum, slots } => Ok(Self { checkpoint, momentum, slots }),
            other => Ok(Self { checkpoint: checkpoint(other)?, momentum: None, slots: Vec::new() }),
        }
    }

    /// What the optimizer of a slot goes on from.
    fn state(&self, slot: u32) -> Option<&ObjectRef> {
        self.slots.get(slot as usize).and_then(|slot| slot.state.as_ref())
    }
}

/// What a training that has stopped leaves to the rounds that are left.
fn handed_on(stopped: CheckpointOutput) -> TaskOutput {
    TaskOutput::Checkpoint(CheckpointOutput { metrics: None, images_per_second: None, wait_share: None, ..stopped })
}

/// The trainer at a checkpoint; of a round of several slots with what the optimizer of one of them remembers.
fn trainer(stage: &TrainStage, theta: &Bytes, state: Option<&Bytes>, device: &Device) -> Result<Trainer, TaskError> {
    let TrainStage { vocabulary, model, train, .. } = stage;
    let (attributes, total) = (vocabulary.len(), stage.total_steps());
    let state = state.map(|state| &**state);
    Ok(match train.optimizer.rounds() {
        None => Trainer::from_checkpoint(theta, model, train, attributes, total, device)?,
        Some(_) => Trainer::in_round((theta, state), model, train, attributes, total, device)?,
    })
}

/// Runs away from tokio's own threads.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(f).await.map_err(TaskError::transient)?
}
