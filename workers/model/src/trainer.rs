//! The model as it learns.

use candle_core::{Device, Tensor};

use likeness_contract::settings::{ModelSettings, TrainSettings};
use likeness_contract::weights::WholeParts;

use crate::backbone::CpuCompute;
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::BatchStatistics;
use crate::loss::StepFigures;
use crate::model::Model;
use crate::optimizer::{At, Optimizer};
use crate::schedule::{frozen_steps, learning_rate};

/// A model, its optimizer's state and the number of steps behind it.
///
/// Pure: the same checkpoint and the same batches give the same bytes, on any number of threads, in one go or
/// with a checkpoint in between.
#[derive(Debug)]
pub struct Trainer {
    model: Model,
    optimizer: Optimizer,
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
        Self::before_step_0(Model::fresh(model, attributes, train.seed, device)?, train, total_steps)
    }

    /// As [`Trainer::fresh`], with the weights that [`Model::started`] takes from a file.
    ///
    /// # Errors
    /// As [`Model::started`].
    pub fn started(
        model: &ModelSettings,
        train: &TrainSettings,
        attributes: usize,
        total_steps: u64,
        (safetensors, parts): (&[u8], WholeParts),
        device: &Device,
    ) -> Result<Self> {
        let model = Model::started(model, attributes, train.seed, safetensors, parts, device)?;
        Self::before_step_0(model, train, total_steps)
    }

    fn before_step_0(model: Model, train: &TrainSettings, total_steps: u64) -> Result<Self> {
        let optimizer = Optimizer::new(train, model.tensors())?;
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
        let (weights, state) = checkpoint::split_state(contents.tensors);
        let model = Model::from_stored(model, attributes, weights, device)?;
        let optimizer = Optimizer::new(train, model.tensors())?.with_state(state, model.tensors(), device)?;
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
    /// `NotFinite` when the loss is not, or the gradients that are to be clipped are not; then neither weights nor
    /// statistics have changed.
    pub fn step(&mut self, images: &Tensor, positives: &Tensor, negatives: &Tensor) -> Result<StepFigures> {
        let margin = f64::from(self.settings.margin);
        let lr = learning_rate(&self.settings, self.step, self.total_steps);
        let frozen_steps = frozen_steps(&self.settings, self.total_steps);
        let frozen = self.step < frozen_steps;
        let mut statistics = BatchStatistics::default();
        let triplets = self.model.triplets_in_training(images, positives, negatives, frozen, &mut statistics)?;
        let figures = triplets.figures(margin, lr).map_err(|e| self.at_this_step(e))?;
        let gradients = self.model.gradients(&triplets.loss(margin)?, frozen)?;
        let at = At { lr, step: self.step, frozen_steps };
        let stepped = self.optimizer.step(self.model.tensors(), &gradients, at);
        stepped.map_err(|e| if matches!(e.kind, ErrorKind::NotFinite(_)) { self.at_this_step(e) } else { e })?;
        statistics.apply()?;
        if !frozen {
            self.model.on_weights_changed();
        }
        self.step += 1;
        Ok(figures)
    }

    /// Figures of B triplets in inference mode, their images embedded before `(B, D)`; nothing changes.
    ///
    /// # Errors
    /// `NotFinite` when a distance is.
    pub fn validate(&self, anchors: &Tensor, positives: &Tensor, negatives: &Tensor) -> Result<StepFigures> {
        let lr = learning_rate(&self.settings, self.step, self.total_steps);
        let triplets = self.model.triplets_in_inference(anchors, positives, negatives)?;
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
