//! Past versions of settings, as they are still read.

use serde::{Deserialize, Serialize};

use super::{
    AdamWSettings, BackboneSettings, ColourJitter, EvaluateSettings, InitWeights, Keep, NegativeMix, Optimizer,
    ResizedCrop, TrainSettings,
};

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

/// Version 2: triplets alone, the weights of the last step, an image seen once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSettingsV2 {
    epochs: u32,
    batch_size: u32,
    inner_steps: u32,
    margin: f32,
    negatives: NegativeMix,
    masked_share: f32,
    optimizer: Optimizer,
    clip_norm: f64,
    warmup_share: f32,
    backbone: BackboneSettings,
    init: Option<InitWeights>,
    mirror: bool,
    random_crop: f32,
    resized_crop: Option<ResizedCrop>,
    colour: ColourJitter,
    validate_every: u32,
    keep: Keep,
    patience: u32,
    seed: u64,
}

impl TrainSettingsV2 {
    /// The same settings as version 2 wrote them; none where it could not say them.
    pub fn of(settings: TrainSettings) -> Option<Self> {
        settings.optimizer.rounds().is_none().then_some(())?;
        let old = Self {
            epochs: settings.epochs,
            batch_size: settings.batch_size,
            inner_steps: settings.inner_steps,
            margin: settings.margin,
            negatives: settings.negatives,
            masked_share: settings.masked_share,
            optimizer: settings.optimizer,
            clip_norm: settings.clip_norm,
            warmup_share: settings.warmup_share,
            backbone: settings.backbone,
            init: settings.init.clone(),
            mirror: settings.mirror,
            random_crop: settings.random_crop,
            resized_crop: settings.resized_crop,
            colour: settings.colour,
            validate_every: settings.validate_every,
            keep: settings.keep,
            patience: settings.patience,
            seed: settings.seed,
        };
        (TrainSettings::from(old.clone()) == settings).then_some(old)
    }
}

impl From<TrainSettingsV2> for TrainSettings {
    fn from(old: TrainSettingsV2) -> Self {
        let TrainSettingsV2 {
            epochs,
            batch_size,
            inner_steps,
            margin,
            negatives,
            masked_share,
            optimizer,
            clip_norm,
            warmup_share,
            backbone,
            init,
            mirror,
            random_crop,
            resized_crop,
            colour,
            validate_every,
            keep,
            patience,
            seed,
        } = old;
        Self {
            epochs,
            batch_size,
            inner_steps,
            margin,
            negatives,
            masked_share,
            optimizer,
            clip_norm,
            warmup_share,
            backbone,
            init,
            mirror,
            random_crop,
            resized_crop,
            colour,
            validate_every,
            keep,
            patience,
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
