//! Training in rounds: checkpoint in, checkpoint out.
//!
//! `init` → per round the slots, then `outer` → `finish`. Every task is a pure function of the job's spec, its round
//! and slot, and the checkpoint before it: a task that is done twice leaves the same bytes.

mod advice;
mod figures;
pub mod finish;
pub mod init;
pub mod outer;
pub mod slot;
mod tensorboard;
#[cfg(test)]
mod tests;
pub(crate) mod training_set;

use likeness_contract::documents::ObjectRef;
use likeness_contract::jobs::{JobSpec, JobWork, TaskOutput, TrainStage};

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
struct Checkpoint {
    step: u64,
    object: ObjectRef,
    metrics: Option<ObjectRef>,
    loss: Option<f64>,
    validation_loss: Option<f64>,
}

fn checkpoint(output: TaskOutput) -> Result<Checkpoint, TaskError> {
    match output {
        TaskOutput::Checkpoint { step, object, metrics, loss, validation_loss, .. } => {
            Ok(Checkpoint { step, object, metrics, loss, validation_loss })
        }
        other => Err(TaskError::invalid(format!("expected the record of a checkpoint, found {other:?}"))),
    }
}
