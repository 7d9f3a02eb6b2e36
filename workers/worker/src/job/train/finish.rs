//! Writes the weights, the training figures and `model.json`.

use candle_core::Device;
use likeness_contract::documents::{ModelManifest, ObjectRef, RoundFigures};
use likeness_contract::jobs::{CheckpointOutput, TaskOutput, TrainStage, task_ids};
use likeness_contract::keys;
use likeness_contract::settings::Keep;

use super::figures::{self, FigureRow};
use super::{ONLY_SLOT, blocking, checkpoint, rounds, stage, tensorboard, trainer};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The distance that the triplet loss was computed with and that ranks.
const DISTANCE: &str = "euclidean";

/// Closes a model: its manifest is created last, when all that it names is there.
pub async fn run(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    let Figures { rows, trained, rounds } = all_figures(cx, &stage).await?;
    let Chosen { round, checkpoint } = choose(cx, &stage, trained).await?;
    let weights = store_weights(cx, &stage, &checkpoint.object).await?;
    let (training, tensorboard) = store_figures(cx, rows).await?;
    let stopped_early = trained < stage.rounds();
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
        rounds,
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
    let weights = move |device: &Device| Ok(trainer(&stage, &theta, None, device)?.serving()?.model().weights()?);
    let bytes = cx.device.run(weights).await?;
    cx.create_object(|digest| keys::weights(cx.job(), digest), bytes).await
}

/// The figures of all rounds that trained, in order.
#[derive(Default)]
struct Figures {
    rows: Vec<FigureRow>,
    /// How many rounds that were.
    trained: u32,
    /// Where slots are brought together: how each round went.
    rounds: Vec<RoundFigures>,
}

async fn all_figures(cx: &TaskContext, stage: &TrainStage) -> Result<Figures, TaskError> {
    let together = stage.train.optimizer.rounds().is_some();
    let mut all = Figures::default();
    for round in 0..stage.rounds() {
        let rows = if together {
            let Some((rows, figures)) = rounds::figures(cx, round).await? else { break };
            all.rounds.push(figures);
            rows
        } else {
            let slot = task_ids::slot(round, ONLY_SLOT);
            let record = checkpoint(cx.record(&slot).await?.output)?;
            if record.stopped {
                break;
            }
            rounds::rows(cx, &slot, &record).await?
        };
        all.rows.extend(rows);
        all.trained += 1;
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
