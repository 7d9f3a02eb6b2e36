//! Writes the checkpoint of round 0: fresh weights.

use likeness_contract::jobs::TaskOutput;
use likeness_contract::keys;
use likeness_model::Trainer;

use super::stage;
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Draws weights from the training's seed.
pub async fn run(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    if stage.total_steps() == 0 {
        let (rows, batch) = (stage.train_rows, stage.train.batch_size);
        return Err(TaskError::invalid(format!("{rows} training rows do not fill one batch of {batch}")));
    }
    let draw = move |device: &candle_core::Device| {
        let (attributes, steps) = (stage.vocabulary.len(), stage.total_steps());
        Ok(Trainer::fresh(&stage.model, &stage.train, attributes, steps, device)?.checkpoint()?)
    };
    let bytes = cx.device.run(draw).await?;
    let object = cx.create_object(|digest| keys::checkpoint(cx.job(), 0, digest), bytes).await?;
    Ok(TaskOutput::Checkpoint {
        step: 0,
        object,
        metrics: None,
        loss: None,
        validation_loss: None,
        images_per_second: None,
        wait_share: None,
    })
}
