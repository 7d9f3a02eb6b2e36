//! The model as it learns.

use candle_core::{Device, Tensor};

use likeness_contract::settings::{ModelSettings, TrainSettings};

use crate::backbone::CpuCompute;
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::layers::BatchStatistics;
use crate::loss::StepFigures;
use crate::model::Model;
use crate::optimizer::AdamW;
use crate::schedule::learning_rate;

/// A model, its optimizer's moments and the number of steps behind it.
///
/// Pure: the same checkpoint and the same batches give the same bytes, on any number of threads, in one go or
/// with a checkpoint in between.
#[derive(Debug)]
pub struct Trainer {
    model: Model,
    optimizer: AdamW,
    settings: TrainSettings,
    step: u64,
    total_steps: u64,
}

impl Trainer {
    /// Fresh weights from the settings' seed, no step behind it; `total_steps` shapes the learning rate.
    ///
    /// # Errors
    /// As [`Model::fresh`].
    pub fn fresh(
        model: &ModelSettings,
        train: &TrainSettings,
        attributes: usize,
        total_steps: u64,
        device: &Device,
    ) -> Result<Self> {
        let model = Model::fresh(model, attributes, train.seed, device)?;
        let optimizer = AdamW::new(train.optimizer, model.tensors())?;
        Ok(Self { model, optimizer, settings: train.clone(), step: 0, total_steps })
    }

    /// Goes on where [`Trainer::checkpoint`] was called.
    ///
    /// # Errors
    /// As [`Model::load`]; also `Mismatch` when the bytes are weights without moments.
    pub fn from_checkpoint(
        bytes: &[u8],
        model: &ModelSettings,
        train: &TrainSettings,
        attributes: usize,
        total_steps: u64,
        device: &Device,
    ) -> Result<Self> {
        let contents = checkpoint::read(bytes)?;
        let Some(step) = contents.step else {
            return Err(Error::mismatch("these are weights, not a checkpoint: `step` is missing"));
        };
        let (weights, moments) = checkpoint::split_moments(contents.tensors);
        let model = Model::from_stored(model, attributes, weights, device)?;
        let optimizer = AdamW::new(train.optimizer, model.tensors())?.with_moments(moments, model.tensors(), device)?;
        Ok(Self { model, optimizer, settings: train.clone(), step, total_steps })
    }

    /// The same trainer, computing on the CPU as `compute` says.
    #[must_use]
    pub fn with_compute(self, compute: CpuCompute) -> Self {
        Self { model: self.model.with_compute(compute), ..self }
    }

    /// Everything that training goes on from, as safetensors.
    ///
    /// # Errors
    /// `NotFinite` when a weight or moment is NaN or infinite: nothing is to be saved then.
    pub fn checkpoint(&self) -> Result<Vec<u8>> {
        checkpoint::write_checkpoint(self.model.tensors(), &self.optimizer, self.step)
    }

    /// One optimizer step on B triplets: images `(B, 3, H, W)`, positives and negatives `(B, A)`.
    ///
    /// # Errors
    /// `NotFinite` when the loss is; then neither weights nor statistics have changed.
    pub fn step(&mut self, images: &Tensor, positives: &Tensor, negatives: &Tensor) -> Result<StepFigures> {
        let margin = f64::from(self.settings.margin);
        let lr = learning_rate(&self.settings, self.step, self.total_steps);
        let mut statistics = BatchStatistics::default();
        let triplets = self.model.triplets_in_training(images, positives, negatives, &mut statistics)?;
        let figures = triplets.figures(margin, lr).map_err(|e| self.at_this_step(e))?;
        let gradients = self.model.gradients(&triplets.loss(margin)?)?;
        self.optimizer.step(self.model.tensors(), &gradients, lr, self.step + 1)?;
        statistics.apply()?;
        self.model.on_weights_changed();
        self.step += 1;
        Ok(figures)
    }

    /// Figures of B triplets in inference mode; nothing changes.
    ///
    /// # Errors
    /// `NotFinite` when a distance is.
    pub fn validate(&self, images: &Tensor, positives: &Tensor, negatives: &Tensor) -> Result<StepFigures> {
        let lr = learning_rate(&self.settings, self.step, self.total_steps);
        let triplets = self.model.triplets_in_inference(images, positives, negatives)?;
        triplets.figures(f64::from(self.settings.margin), lr).map_err(|e| self.at_this_step(e))
    }

    /// Optimizer steps behind it.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model, without what only training needs.
    pub fn into_model(self) -> Model {
        self.model
    }

    fn at_this_step(&self, e: Error) -> Error {
        Error::not_finite(format!("training diverged at step {}: lower the learning rate", self.step)).because(e)
    }
}
