//! The exponential moving average of a model's weights and statistics, step by step: `a ← d·a + (1 − d)·w`.
//!
//! d is the settings' decay, and early on `(1 + step) / (10 + step)`, so that the first weights, which know nothing, are soon
//! forgotten.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::tensors::{Stored, Tensors};

const PREFIX: &str = "average.";

/// In the order of the model's tensors.
#[derive(Debug)]
pub(crate) struct Average {
    decay: f64,
    values: Vec<Tensor>,
}

/// Whether a tensor of a checkpoint is of the average.
pub(crate) fn is_state(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// What of a checkpoint's state is of the average, and what is not.
pub(crate) fn split(state: Stored) -> (Stored, Stored) {
    state.into_iter().partition(|(name, _)| is_state(name))
}

impl Average {
    /// Starts with the weights as they are; none where the decay is 0.
    pub fn new(decay: f64, tensors: &Tensors) -> Result<Option<Self>> {
        if decay == 0.0 {
            return Ok(None);
        }
        let values = tensors.iter().map(|(_, tensor)| tensor.detach().copy()).collect::<candle_core::Result<_>>()?;
        Ok(Some(Self { decay, values }))
    }

    /// The same as it stands in a checkpoint.
    ///
    /// # Errors
    /// `Mismatch` names a tensor that is missing or of another shape.
    pub fn with_state(mut self, mut stored: Stored, tensors: &Tensors, device: &Device) -> Result<Self> {
        for ((name, tensor), value) in tensors.iter().zip(&mut self.values) {
            let found = stored.remove(&format!("{PREFIX}{name}")).filter(|found| found.shape == tensor.dims());
            let found =
                found.ok_or_else(|| Error::mismatch(format!("the checkpoint lacks the average of `{name}`")))?;
            *value = Tensor::from_vec(found.values, found.shape, device)?;
        }
        Ok(self)
    }

    /// By the names that a checkpoint gives it.
    pub fn state(&self, tensors: &Tensors) -> Vec<(String, Tensor)> {
        tensors.iter().zip(&self.values).map(|((name, _), value)| (format!("{PREFIX}{name}"), value.clone())).collect()
    }

    /// Takes in the weights after step `step`, counted from 0.
    pub fn follow(&mut self, tensors: &Tensors, step: u64) -> Result<()> {
        let decay = self.decay.min((1 + step) as f64 / (10 + step) as f64);
        for ((_, tensor), value) in tensors.iter().zip(&mut self.values) {
            *value = ((&*value * decay)? + (tensor.detach() * (1.0 - decay))?)?;
        }
        Ok(())
    }

    /// Makes the average the weights.
    pub fn put_into(&self, tensors: &Tensors) -> Result<()> {
        let vars = tensors.parameters.iter().chain(&tensors.statistics);
        vars.zip(&self.values).try_for_each(|((_, var), value)| Ok(var.set(value)?))
    }
}
