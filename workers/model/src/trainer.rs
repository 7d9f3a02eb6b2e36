//! The model as it learns.

use candle_core::{Device, Tensor};

use likeness_contract::settings::{Loss, ModelSettings, TrainSettings};
use likeness_contract::weights::WholeParts;

use crate::average::{self, Average};
use crate::backbone::CpuCompute;
use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::layers::BatchStatistics;
use crate::loss::{StepFigures, Triplets};
use crate::losses::{self, Embedded};
use crate::model::{Batch, Model, Placed};
use crate::optimizer::{At, Optimizer};
use crate::schedule::{frozen_steps, learning_rate};
use crate::tensors::Stored;

/// A model, its optimizer's state and the number of steps behind it.
///
/// Pure: the same checkpoint and the same batches give the same bytes, on any number of threads, in one go or
/// with a checkpoint in between.
#[derive(Debug)]
pub struct Trainer {
    model: Model,
    optimizer: Optimizer,
    average: Option<Average>,
    settings: TrainSettings,
    step: u64,
    /// Steps behind the optimizer's state: fewer than `step` where rounds went without this slot.
    learned: u64,
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
        check_loss(&model, train)?;
        let optimizer = Optimizer::new(train, model.tensors())?;
        let average = Average::new(train.average_decay, model.tensors())?;
        let model = model.with_mirrored(train.embed_mirrored);
        Ok(Self { model, optimizer, average, settings: train.clone(), step: 0, learned: 0, total_steps })
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
        let (trainer, state) = Self::stored(bytes, model, train, attributes, total_steps, device)?;
        let learned = trainer.step;
        trainer.remembering(state, learned, device)
    }

    /// A slot of a round: `theta` is what all slots of the round start from ([`Trainer::theta`], or an outer step's), `state`
    /// what this one's optimizer remembers ([`Trainer::optimizer_state`]); without it has done no step yet.
    ///
    /// # Errors
    /// As [`Model::load`]; also `Mismatch` when the state is not of this model's optimizer.
    pub fn in_round(
        (theta, state): (&[u8], Option<&[u8]>),
        model: &ModelSettings,
        train: &TrainSettings,
        attributes: usize,
        total_steps: u64,
        device: &Device,
    ) -> Result<Self> {
        let (trainer, rest) = Self::stored(theta, model, train, attributes, total_steps, device)?;
        if let Some(name) = rest.keys().next() {
            return Err(Error::mismatch(format!("`{name}` is no part of what a round starts from")));
        }
        let Some(state) = state else { return Ok(trainer) };
        let contents = checkpoint::read(state)?;
        let learned = contents.step.ok_or_else(|| Error::mismatch("the optimizer's state lacks its `step`"))?;
        trainer.remembering(contents.tensors, learned, device)
    }

    /// Weights, average and step out of a file, and what else is in it.
    fn stored(
        bytes: &[u8],
        model: &ModelSettings,
        train: &TrainSettings,
        attributes: usize,
        total_steps: u64,
        device: &Device,
    ) -> Result<(Self, Stored)> {
        let contents = checkpoint::read(bytes)?;
        let Some(step) = contents.step else {
            return Err(Error::mismatch("these are weights, not a checkpoint: `step` is missing"));
        };
        let (weights, state) = checkpoint::split_state(contents.tensors);
        let (followed, state) = average::split(state);
        let mut trainer =
            Self::before_step_0(Model::from_stored(model, attributes, weights, device)?, train, total_steps)?;
        let tensors = trainer.model.tensors();
        trainer.average = trainer.average.map(|average| average.with_state(followed, tensors, device)).transpose()?;
        Ok((Self { step, ..trainer }, state))
    }

    /// With the optimizer's state after so many of its steps.
    fn remembering(self, state: Stored, learned: u64, device: &Device) -> Result<Self> {
        let optimizer = self.optimizer.with_state(state, self.model.tensors(), device)?;
        Ok(Self { optimizer, learned, ..self })
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
        let average = self.average.as_ref().map_or(Vec::new(), |average| average.state(self.model.tensors()));
        checkpoint::write_checkpoint(self.model.tensors(), &self.optimizer, &average, self.step)
    }

    /// What others may start from after it: weights, statistics, average and step.
    ///
    /// # Errors
    /// As [`Trainer::checkpoint`].
    pub fn theta(&self) -> Result<Vec<u8>> {
        let average = self.average.as_ref().map_or(Vec::new(), |average| average.state(self.model.tensors()));
        checkpoint::write_theta(self.model.tensors(), &average, self.step)
    }

    /// What the optimizer remembers.
    ///
    /// # Errors
    /// As [`Trainer::checkpoint`].
    pub fn optimizer_state(&self) -> Result<Vec<u8>> {
        checkpoint::write_state(self.model.tensors(), &self.optimizer, self.learned)
    }

    /// One optimizer step on a batch.
    ///
    /// # Errors
    /// `NotFinite` when the loss is not, or the gradients that are to be clipped are not; then neither weights nor
    /// statistics have changed.
    pub fn step(&mut self, batch: &Batch) -> Result<StepFigures> {
        let lr = learning_rate(&self.settings, self.step, self.total_steps);
        let frozen_steps = frozen_steps(&self.settings, self.total_steps);
        let frozen = self.step < frozen_steps;
        let mut statistics = BatchStatistics::default();
        let placed = self.model.place_in_training(batch, frozen, &mut statistics)?;
        let (loss, figures) = self.measured(&placed, batch, lr).map_err(|e| self.at_this_step(e))?;
        let gradients = self.model.gradients(&loss, frozen)?;
        let at = At { lr, step: self.step, learned: self.learned, frozen_steps };
        let stepped = self.optimizer.step(self.model.tensors(), &gradients, at);
        stepped.map_err(|e| self.at_this_step(e))?;
        statistics.apply()?;
        if !frozen {
            self.model.on_weights_changed();
        }
        if let Some(average) = &mut self.average {
            average.follow(self.model.tensors(), self.step)?;
        }
        self.step += 1;
        self.learned += 1;
        Ok(figures)
    }

    /// Places of a batch's images in inference mode `(B, D)`, and its figures; nothing changes.
    ///
    /// # Errors
    /// `NotFinite` when a distance or the loss is.
    pub fn validate(&self, batch: &Batch) -> Result<(Tensor, StepFigures)> {
        let lr = learning_rate(&self.settings, self.step, self.total_steps);
        let placed = self.model.place_in_inference(batch)?;
        let (_, figures) = self.measured(&placed, batch, lr).map_err(|e| self.at_this_step(e))?;
        Ok((placed.anchors, figures))
    }

    /// The loss on the tape, and the figures: of triplets whatever the loss is, with the loss that is made small.
    fn measured(&self, placed: &Placed, batch: &Batch, lr: f64) -> Result<(Tensor, StepFigures)> {
        let (margin, loss) = (f64::from(self.settings.margin), self.settings.loss);
        let triplets = Triplets::new(&placed.anchors, &placed.positives, &placed.negatives)?;
        let figures = triplets.figures(margin, lr)?;
        if loss == Loss::Triplet {
            return Ok((triplets.loss(margin)?, figures));
        }
        let Placed { logits, anchors, positives, negatives } = placed;
        let (labels, words) = (&batch.labels, &batch.positives);
        let loss = losses::of(loss, margin, &Embedded { logits, anchors, positives, negatives, labels, words })?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(Error::not_finite(format!("the loss is {value}")));
        }
        Ok((loss, StepFigures { loss: value, ..figures }))
    }

    /// The trainer with the weights that serve: their average where the settings ask for one. No step is to follow.
    ///
    /// # Errors
    /// When the device fails.
    pub fn serving(self) -> Result<Self> {
        if let Some(average) = &self.average {
            average.put_into(self.model.tensors())?;
            self.model.on_weights_changed();
        }
        Ok(self)
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

    /// Says of numbers that are none at which step they came up.
    fn at_this_step(&self, e: Error) -> Error {
        if !matches!(e.kind, ErrorKind::NotFinite(_)) {
            return e;
        }
        Error::not_finite(format!("training diverged at step {}: lower the learning rate", self.step)).because(e)
    }
}

/// Logits are what binary cross-entropy and a space of log-probabilities are both about.
fn check_loss(model: &Model, train: &TrainSettings) -> Result<()> {
    match (train.loss == Loss::BinaryCrossEntropy, model.has_logits()) {
        (true, false) => Err(Error::settings("binary cross-entropy needs an encoding of log-probabilities")),
        (false, true) => Err(Error::settings("an encoding of log-probabilities is trained with binary cross-entropy")),
        _ => Ok(()),
    }
}
