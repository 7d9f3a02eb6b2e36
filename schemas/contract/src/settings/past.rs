//! Past versions of settings, as they are still read.

use serde::{Deserialize, Serialize};

use super::{AdamWSettings, EvaluateSettings, NegativeMix, Optimizer, TrainSettings};

/// Version 1: AdamW alone, fresh weights alone, always the last round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettingsV1 {
    epochs: u32,
    batch_size: u32,
    inner_steps: u32,
    margin: f32,
    negatives: NegativeMix,
    masked_share: f32,
    optimizer: AdamWSettings,
    warmup_share: f32,
    mirror: bool,
    random_crop: f32,
    validate_every: u32,
    seed: u64,
}

impl TrainSettingsV1 {
    /// The same settings as version 1 wrote them; none where it could not say them.
    pub fn of(settings: TrainSettings) -> Option<Self> {
        let Optimizer::AdamW(optimizer) = settings.optimizer else { return None };
        let old = Self {
            epochs: settings.epochs,
            batch_size: settings.batch_size,
            inner_steps: settings.inner_steps,
            margin: settings.margin,
            negatives: settings.negatives,
            masked_share: settings.masked_share,
            optimizer,
            warmup_share: settings.warmup_share,
            mirror: settings.mirror,
            random_crop: settings.random_crop,
            validate_every: settings.validate_every,
            seed: settings.seed,
        };
        (TrainSettings::from(old.clone()) == settings).then_some(old)
    }
}

impl From<TrainSettingsV1> for TrainSettings {
    fn from(old: TrainSettingsV1) -> Self {
        let TrainSettingsV1 {
            epochs,
            batch_size,
            inner_steps,
            margin,
            negatives,
            masked_share,
            optimizer,
            warmup_share,
            mirror,
            random_crop,
            validate_every,
            seed,
        } = old;
        Self {
            epochs,
            batch_size,
            inner_steps,
            margin,
            negatives,
            masked_share,
            optimizer: Optimizer::AdamW(optimizer),
            warmup_share,
            mirror,
            random_crop,
            validate_every,
            seed,
            ..Self::default()
        }
    }
}

/// Version 1: 300 full vectors and 300 images always, the image held out, no queries of the user's, no floor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateSettingsV1 {
    pairs: u32,
    triples: u32,
    min_relevant: u32,
    seed: u64,
    queries_per_task: u32,
}

impl EvaluateSettingsV1 {
    /// The same settings as version 1 wrote them; none where it could not say them.
    pub fn of(settings: EvaluateSettings) -> Option<Self> {
        let EvaluateSettings { pairs, triples, min_relevant, seed, queries_per_task, .. } = settings;
        let old = Self { pairs, triples, min_relevant, seed, queries_per_task };
        (EvaluateSettings::from(old.clone()) == settings).then_some(old)
    }
}

impl From<EvaluateSettingsV1> for EvaluateSettings {
    fn from(old: EvaluateSettingsV1) -> Self {
        let EvaluateSettingsV1 { pairs, triples, min_relevant, seed, queries_per_task } = old;
        Self { pairs, triples, min_relevant, seed, queries_per_task, ..Self::default() }
    }
}
