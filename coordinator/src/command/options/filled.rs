//! What options mean that were left open: every default that follows from the others, as an option of its own.
//! Filled options resolve to the same settings as they did before.

use likeness_contract::ids::Name;
use likeness_contract::jobs::{DeviceClass, EvaluateStage, Priority};
use likeness_contract::settings::{
    ColourJitter, EvaluateSettings, InnerOptimizer, ModelSettings, RoundSettings, TrainSettings,
};

use super::{EmbedOptions, EvaluateOptions, JobOptions, LossName, ModelOptions, OptimizerName, Recipe, TrainOptions};
use crate::command::exit::Outcome;

impl JobOptions {
    /// With what was left open.
    pub fn filled(&self) -> Self {
        let (device, priority) = (self.device.unwrap_or(DeviceClass::Any), self.priority.unwrap_or(Priority::Lo));
        Self { device: Some(device), priority: Some(priority), ..self.clone() }
    }
}

impl ModelOptions {
    /// With what was left open.
    pub fn filled(&self) -> Outcome<Self> {
        let ModelSettings { architecture, embedding_dim, encoding, preprocessing } = self.resolve()?;
        Ok(Self {
            recipe: Some(self.recipe()),
            architecture: Some(architecture),
            // 0 is for the vocabulary to decide.
            embedding_dim: (embedding_dim > 0).then_some(embedding_dim),
            encoding: Some(encoding),
            input_px: Some(preprocessing.input_px),
            crop: Some(preprocessing.crop),
        })
    }
}

impl TrainOptions {
    /// With what was left open; what the others rule out stays open.
    pub fn filled(&self, recipe: Recipe) -> Outcome<Self> {
        let TrainSettings {
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
            init: _,
            mirror,
            random_crop,
            resized_crop,
            colour,
            validate_every,
            keep,
            patience,
            seed,
            loss,
            average_decay,
            embed_mirrored,
        } = self.resolve(recipe)?;
        let (loss, temperature) = LossName::of(loss);
        let (name, weight_decay, momentum) = match optimizer.inner() {
            InnerOptimizer::AdamW(adamw) => (OptimizerName::Adamw, adamw.weight_decay, None),
            InnerOptimizer::Sgd(sgd) => (OptimizerName::Sgd, sgd.weight_decay, Some(sgd.momentum)),
        };
        let RoundSettings { slots, inner: _, outer_lr, outer_momentum, quorum, deadline_s } =
            optimizer.rounds().copied().unwrap_or(RoundSettings::averaging(1, optimizer.inner()));
        let ColourJitter { brightness, contrast, saturation, hue } = colour;
        let learns = self.freeze.is_none();
        Ok(Self {
            epochs: Some(epochs),
            batch_size: Some(batch_size),
            inner_steps: Some(inner_steps),
            slots: Some(slots),
            outer_lr: Some(outer_lr),
            outer_momentum: Some(outer_momentum),
            quorum: Some(quorum),
            round_deadline: Some(deadline_s),
            margin: Some(margin),
            negatives_random: Some(negatives.random),
            negatives_other: Some(negatives.other),
            negatives_flipped: Some(negatives.flipped),
            masked_share: Some(masked_share),
            optimizer: Some(name),
            lr: Some(optimizer.lr()),
            weight_decay: Some(weight_decay),
            momentum,
            clip_norm: Some(clip_norm),
            warmup_share: Some(warmup_share),
            mirror: Some(mirror),
            random_crop: resized_crop.is_none().then_some(random_crop),
            resized_crop: self.resized_crop,
            brightness: Some(brightness),
            contrast: Some(contrast),
            saturation: Some(saturation),
            hue: Some(hue),
            validate_every: Some(validate_every),
            patience: Some(patience),
            keep: Some(keep),
            init: self.init.clone(),
            backbone_lr: learns.then_some(backbone.lr_factor),
            warm_up_epochs: learns.then_some(backbone.frozen_epochs),
            freeze: self.freeze,
            seed: Some(seed),
            loss: Some(loss),
            temperature,
            average_decay: Some(average_decay),
            embed_mirrored: Some(embed_mirrored),
        })
    }
}

impl EmbedOptions {
    /// With what was left open, over a dataset if it is known.
    pub fn filled(&self, dataset: Option<&Name>) -> Self {
        let mut filled = self.clone();
        filled.gallery = filled.gallery.or_else(|| dataset.cloned());
        filled.rows = Some(self.rows.unwrap_or(likeness_contract::settings::Split::All));
        filled.shard_rows = Some(self.shard_rows.unwrap_or(super::DEFAULT_ROWS));
        filled
    }
}

impl EvaluateOptions {
    /// With what was left open.
    pub fn filled(&self) -> Outcome<Self> {
        let EvaluateStage { rows, settings } = self.resolve()?;
        let EvaluateSettings {
            pairs,
            triples,
            min_relevant,
            seed,
            queries_per_task,
            full,
            images,
            image_edit,
            own: _,
            floor,
        } = settings;
        Ok(Self {
            rows: Some(rows),
            pairs: Some(pairs),
            triples: Some(triples),
            full: Some(full),
            images: Some(images),
            image_edit: Some(image_edit),
            queries: self.queries.clone(),
            floor: Some(floor),
            min_relevant: Some(min_relevant),
            queries_per_task: Some(queries_per_task),
            seed: Some(seed),
        })
    }
}
