//! Past versions of documents, as they are still read.

use serde::{Deserialize, Serialize};

use super::{ModelManifest, ObjectRef};
use crate::ids::JobId;
use crate::jobs::DatasetRef;
use crate::settings::{ModelSettings, TrainSettingsV1, Vocabulary};

/// Version 1: the last round always, measured by its loss.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelManifestV1 {
    model: JobId,
    settings: ModelSettings,
    train: TrainSettingsV1,
    vocabulary: Vocabulary,
    dataset: DatasetRef,
    weights: ObjectRef,
    checkpoint: ObjectRef,
    distance: String,
    steps: u64,
    validation_loss: Option<f64>,
    training: ObjectRef,
    tensorboard: ObjectRef,
}

impl From<ModelManifestV1> for ModelManifest {
    fn from(old: ModelManifestV1) -> Self {
        let ModelManifestV1 {
            model,
            settings,
            train,
            vocabulary,
            dataset,
            weights,
            checkpoint,
            distance,
            steps,
            validation_loss,
            training,
            tensorboard,
        } = old;
        Self {
            model,
            settings,
            train: train.into(),
            vocabulary,
            dataset,
            weights,
            checkpoint,
            distance,
            steps,
            validation_loss,
            training,
            tensorboard,
            round: None,
            validation_map: None,
            stopped_early: false,
        }
    }
}
