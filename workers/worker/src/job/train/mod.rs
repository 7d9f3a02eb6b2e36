//! Training in rounds: checkpoint in, checkpoint out.
//!
//! `init` → per round the slots, then `outer` → `finish`. Every task is a pure function of the job's spec, its round
//! and slot, and the checkpoint before it: a task that is done twice leaves the same bytes.
//!
//! The plan has every round from the start. A training that stops early goes through the rest of them without work:
//! their tasks hand the last checkpoint on.

mod advice;
mod batch;
mod figures;
pub mod finish;
pub mod init;
pub mod outer;
pub mod slot;
mod tensorboard;
#[cfg(test)]
mod tests;
pub(crate) mod training_set;
mod validation;

use likeness_contract::jobs::{CheckpointOutput, JobSpec, JobWork, TaskOutput, TrainStage};

use crate::error::TaskError;

/// The slot of a round: jobs have one.
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
        TaskOutput::Checkpoint(checkpoint) => Ok(checkpoint),
        other => Err(TaskError::invalid(format!("expected the record of a checkpoint, found {other:?}"))),
    }
}
