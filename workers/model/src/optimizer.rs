//! AdamW over all parameters of a model.
//!
//! Weight decay acts on every parameter, norms and biases included, as PyTorch's `AdamW(model.parameters())`.

use candle_core::backprop::GradStore;
use candle_core::{Device, Var};

use likeness_contract::settings::AdamWSettings;
use likeness_kernels::{AdamWStep, Moments, adamw_step_all};

use crate::checkpoint;
use crate::error::{Error, Result};
use crate::tensors::{Stored, Tensors};

/// Moments in the order of the model's parameters.
#[derive(Debug)]
pub(crate) struct AdamW {
    settings: AdamWSettings,
    moments: Vec<Moments>,
}

impl AdamW {
    pub fn new(settings: AdamWSettings, tensors: &Tensors) -> Result<Self> {
        let moments =
            tensors.parameters.iter().map(|(_, p)| Moments::zeros_like(p)).collect::<candle_core::Result<_>>()?;
        Ok(Self { settings, moments })
    }

    /// The same with moments out of a checkpoint.
    ///
    /// # Errors
    /// `Mismatch` names the parameters whose moments are missing or of another shape, or moments of no use.
    pub fn with_moments(self, mut stored: Stored, tensors: &Tensors, device: &Device) -> Result<Self> {
        let moments = checkpoint::take_moments(&mut stored, &tensors.parameters, device)?;
        match stored.first_key_value() {
            Some((name, _)) => Err(Error::mismatch(format!("`{name}` belongs to no parameter of this model"))),
            None => Ok(Self { moments, ..self }),
        }
    }

    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Changes every parameter by its gradient; `step` counts from 1.
    pub fn step(&mut self, tensors: &Tensors, gradients: &GradStore, lr: f64, step: u64) -> Result<()> {
        let AdamWSettings { lr: _, beta1, beta2, eps, weight_decay } = self.settings;
        let numbers = AdamWStep { lr, beta1, beta2, eps, weight_decay, step };
        let gradient = |(name, parameter): &'_ (String, Var)| match gradients.get(parameter) {
            Some(gradient) => Ok(gradient.clone()),
            None => Err(Error::mismatch(format!("the loss does not reach `{name}`"))),
        };
        let gradients = tensors.parameters.iter().map(gradient).collect::<Result<Vec<_>>>()?;
        let parameters: Vec<&Var> = tensors.parameters.iter().map(|(_, parameter)| parameter).collect();
        Ok(adamw_step_all(&parameters, &gradients, &mut self.moments, &numbers)?)
    }
}
