//! Writes the checkpoint of round 0: fresh weights, or those that the training starts from.

use bytes::Bytes;
use candle_core::Device;
use likeness_contract::documents::ModelManifest;
use likeness_contract::jobs::{CheckpointOutput, TaskOutput, TrainStage};
use likeness_contract::keys;
use likeness_contract::settings::{InitWeights, QueryEncoding};
use likeness_contract::weights::{Header, WholeParts, plan_start};
use likeness_model::Trainer;

use super::stage;
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Draws weights from the training's seed, those aside that it starts from.
pub async fn run(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    if stage.total_steps() == 0 {
        let (rows, batch) = (stage.train_rows, stage.train.batch_size);
        return Err(TaskError::invalid(format!("{rows} training rows do not fill one batch of {batch}")));
    }
    let start = match &stage.train.init {
        Some(init) => Some(weights(cx, &stage, init).await?),
        None => None,
    };
    let draw = move |device: &Device| {
        let TrainStage { vocabulary, model, train, .. } = &stage;
        let (attributes, steps) = (vocabulary.len(), stage.total_steps());
        let trainer = match &start {
            Some((bytes, parts)) => Trainer::started(model, train, attributes, steps, (bytes, *parts), device)?,
            None => Trainer::fresh(model, train, attributes, steps, device)?,
        };
        Ok(if train.optimizer.rounds().is_some() { trainer.theta()? } else { trainer.checkpoint()? })
    };
    let bytes = cx.device.run(draw).await?;
    let object = cx.create_object(|digest| keys::checkpoint(cx.job(), 0, digest), bytes).await?;
    Ok(TaskOutput::Checkpoint(CheckpointOutput::of(0, object)))
}

/// The bytes to start from, and what of them may be taken. Says in words what is.
async fn weights(cx: &TaskContext, stage: &TrainStage, init: &InitWeights) -> Result<(Bytes, WholeParts), TaskError> {
    let bytes = cx.store.read(&init.weights).await?;
    let parts = match &init.model {
        Some(model) => parts_of(&cx.store.require(&keys::model_manifest(model)).await?, stage),
        None => WholeParts::default(),
    };
    let architecture = stage.model.architecture;
    let header = Header::parse(&bytes);
    let plan = header.and_then(|header| plan_start(architecture, parts, &header.shapes()));
    let refused = |reason| TaskError::invalid(format!("`{}` is no start for this training: {reason}", init.source));
    let words = plan.map_err(refused)?.words(architecture);
    tracing::info!(job = %cx.job(), source = init.source, words, "weights to start from");
    cx.progress(1, 1, format!("start from `{}`: {words}", init.source));
    Ok((bytes, parts))
}

/// A tower that knows other attributes, or hears of them in another way, has nothing to tell.
fn parts_of(manifest: &ModelManifest, stage: &TrainStage) -> WholeParts {
    let (before, now) = (&manifest.settings, &stage.model);
    let alike = manifest.vocabulary == stage.vocabulary && before.encoding == now.encoding;
    match now.encoding {
        // Logits of other attributes, or places in another space.
        QueryEncoding::LogProbability => {
            let outputs = alike.then_some(stage.vocabulary.len() as u32);
            WholeParts { head: outputs, attributes: false }
        }
        _ if before.encoding == QueryEncoding::LogProbability => WholeParts::default(),
        _ => WholeParts { head: Some(now.embedding_dim), attributes: alike },
    }
}
