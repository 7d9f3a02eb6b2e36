//! Takes the slots of a round into the next checkpoint.
//!
//! With one slot and no outer optimizer the next checkpoint *is* the slot's: θ + (θ′ − θ) is not θ′ in f32.

use likeness_contract::jobs::{TaskOutput, task_ids};

use super::{Checkpoint, ONLY_SLOT, checkpoint};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Takes θ′ of the round's slot: the same object.
pub async fn run(cx: &TaskContext, round: u32) -> Result<TaskOutput, TaskError> {
    let record = cx.record(&task_ids::slot(round, ONLY_SLOT)).await?;
    let Checkpoint { step, object, metrics: _, loss, validation_loss } = checkpoint(record.output)?;
    Ok(TaskOutput::Checkpoint {
        step,
        object,
        metrics: None,
        loss,
        validation_loss,
        images_per_second: None,
        wait_share: None,
    })
}
