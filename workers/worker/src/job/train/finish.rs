//! Writes the weights, the training figures and `model.json`.

use candle_core::Device;
use likeness_contract::documents::{ModelManifest, ObjectRef};
use likeness_contract::jobs::{TaskOutput, TrainStage, task_ids};
use likeness_contract::keys;
use likeness_model::Trainer;

use super::figures::{self, FigureRow};
use super::{Checkpoint, ONLY_SLOT, checkpoint, stage, tensorboard};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The distance that the triplet loss was computed with and that ranks.
const DISTANCE: &str = "euclidean";

/// Closes a model: its manifest is created last, when all that it names is there.
pub async fn run(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    let last = last_checkpoint(cx, &stage).await?;
    let weights = store_weights(cx, &stage, &last.object).await?;
    let rows = all_figures(cx, &stage).await?;
    let (training, tensorboard) = store_figures(cx, rows).await?;
    let manifest = ModelManifest {
        model: cx.job().clone(),
        settings: stage.model,
        train: stage.train,
        vocabulary: stage.vocabulary,
        dataset: stage.dataset,
        weights,
        checkpoint: last.object,
        distance: DISTANCE.into(),
        steps: last.step,
        validation_loss: last.validation_loss,
        training,
        tensorboard,
    };
    let key = keys::model_manifest(cx.job());
    cx.ensure_leased()?;
    cx.store.create_document(&key, &manifest).await?;
    Ok(TaskOutput::Manifest { key })
}

async fn last_checkpoint(cx: &TaskContext, stage: &TrainStage) -> Result<Checkpoint, TaskError> {
    let Some(last) = stage.rounds().checked_sub(1) else {
        return Err(TaskError::invalid("a training without rounds has no model"));
    };
    checkpoint(cx.record(&task_ids::outer(last)).await?.output)
}

async fn store_weights(cx: &TaskContext, stage: &TrainStage, object: &ObjectRef) -> Result<ObjectRef, TaskError> {
    let theta = cx.store.read(object).await?;
    let stage = stage.clone();
    let weights = move |device: &Device| {
        let (attributes, steps) = (stage.vocabulary.len(), stage.total_steps());
        let trainer = Trainer::from_checkpoint(&theta, &stage.model, &stage.train, attributes, steps, device)?;
        Ok(trainer.model().weights()?)
    };
    let bytes = cx.device.run(weights).await?;
    cx.create_object(|digest| keys::weights(cx.job(), digest), bytes).await
}

/// The figures of all rounds in order.
async fn all_figures(cx: &TaskContext, stage: &TrainStage) -> Result<Vec<FigureRow>, TaskError> {
    let mut rows = Vec::new();
    for round in 0..stage.rounds() {
        let slot = task_ids::slot(round, ONLY_SLOT);
        let Some(metrics) = checkpoint(cx.record(&slot).await?.output)?.metrics else {
            return Err(TaskError::invalid(format!("the record of `{slot}` names no figures")));
        };
        let bytes = cx.store.read(&metrics).await?;
        rows.extend(blocking(move || figures::decode(bytes)).await?);
    }
    Ok(rows)
}

/// As Parquet and as TensorBoard's event file.
async fn store_figures(cx: &TaskContext, rows: Vec<FigureRow>) -> Result<(ObjectRef, ObjectRef), TaskError> {
    let encode = move || Ok((figures::encode(&rows)?, tensorboard::encode(&rows)));
    let (parquet, events) = blocking(encode).await?;
    let parquet = cx.create_object(|digest| keys::training_metrics(cx.job(), digest), parquet).await?;
    let events = cx.create_object(|digest| keys::tensorboard_events(cx.job(), digest), events).await?;
    Ok((parquet, events))
}

/// Runs away from tokio's own threads.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(f).await.map_err(TaskError::transient)?
}
