//! Writes the weights, the training figures and `model.json`.

use candle_core::Device;
use likeness_contract::documents::{ModelManifest, ObjectRef};
use likeness_contract::jobs::{CheckpointOutput, TaskOutput, TrainStage, task_ids};
use likeness_contract::keys;
use likeness_contract::settings::Keep;
use likeness_model::Trainer;

use super::figures::{self, FigureRow};
use super::{ONLY_SLOT, checkpoint, stage, tensorboard};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The distance that the triplet loss was computed with and that ranks.
const DISTANCE: &str = "euclidean";

/// Closes a model: its manifest is created last, when all that it names is there.
pub async fn run(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    let Figures { rows, rounds } = all_figures(cx, &stage).await?;
    let Chosen { round, checkpoint } = choose(cx, &stage, rounds).await?;
    let weights = store_weights(cx, &stage, &checkpoint.object).await?;
    let (training, tensorboard) = store_figures(cx, rows).await?;
    let stopped_early = rounds < stage.rounds();
    let manifest = ModelManifest {
        model: cx.job().clone(),
        settings: stage.model,
        train: stage.train,
        vocabulary: stage.vocabulary,
        dataset: stage.dataset,
        weights,
        checkpoint: checkpoint.object,
        distance: DISTANCE.into(),
        steps: checkpoint.step,
        validation_loss: checkpoint.validation_loss,
        training,
        tensorboard,
        round: Some(round),
        validation_map: checkpoint.validation_map,
        stopped_early,
    };
    let key = keys::model_manifest(cx.job());
    cx.ensure_leased()?;
    cx.store.create_document(&key, &manifest).await?;
    Ok(TaskOutput::Manifest { key })
}

/// The round whose weights become the model.
struct Chosen {
    round: u32,
    checkpoint: CheckpointOutput,
}

/// The last of the rounds, or the best where the training keeps that and could measure it.
async fn choose(cx: &TaskContext, stage: &TrainStage, rounds: u32) -> Result<Chosen, TaskError> {
    let Some(last) = rounds.checked_sub(1) else {
        return Err(TaskError::invalid("a training without rounds has no model"));
    };
    let at_the_end = checkpoint(cx.record(&task_ids::outer(last)).await?.output)?;
    match at_the_end.best.filter(|_| stage.train.keep == Keep::Best) {
        Some(best) if best.round != last => {
            let checkpoint = checkpoint(cx.record(&task_ids::outer(best.round)).await?.output)?;
            Ok(Chosen { round: best.round, checkpoint })
        }
        _ => Ok(Chosen { round: last, checkpoint: at_the_end }),
    }
}

async fn store_weights(cx: &TaskContext, stage: &TrainStage, object: &ObjectRef) -> Result<ObjectRef, TaskError> {
    let theta = cx.store.read(object).await?;
    let stage = stage.clone();
    let weights = move |device: &Device| {
        let (attributes, steps) = (stage.vocabulary.len(), stage.total_steps());
        let trainer = Trainer::from_checkpoint(&theta, &stage.model, &stage.train, attributes, steps, device)?;
        Ok(trainer.serving()?.model().weights()?)
    };
    let bytes = cx.device.run(weights).await?;
    cx.create_object(|digest| keys::weights(cx.job(), digest), bytes).await
}

/// The figures of all rounds that trained, in order.
struct Figures {
    rows: Vec<FigureRow>,
    rounds: u32,
}

async fn all_figures(cx: &TaskContext, stage: &TrainStage) -> Result<Figures, TaskError> {
    let mut all = Figures { rows: Vec::new(), rounds: 0 };
    for round in 0..stage.rounds() {
        let slot = task_ids::slot(round, ONLY_SLOT);
        let record = checkpoint(cx.record(&slot).await?.output)?;
        if record.stopped {
            break;
        }
        let Some(metrics) = record.metrics else {
            return Err(TaskError::invalid(format!("the record of `{slot}` names no figures")));
        };
        let bytes = cx.store.read(&metrics).await?;
        all.rows.extend(blocking(move || figures::decode(bytes)).await?);
        all.rounds += 1;
    }
    Ok(all)
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
