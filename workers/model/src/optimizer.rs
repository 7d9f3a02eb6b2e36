//! The optimizer over all parameters of a model: AdamW or SGD, gradients clipped by their norm before.
//!
//! Weight decay acts on every parameter, norms and biases included, as PyTorch's `AdamW(model.parameters())`. The
//! backbone's parameters come first and are a group of their own: its learning rate is a multiple of the others', and
//! while it is frozen its parameters, their state and their count of steps stay what they are, as PyTorch's do that
//! have no gradient.

use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use likeness_contract::settings::{AdamWSettings, BackboneSettings, InnerOptimizer, SgdSettings, TrainSettings};
use likeness_contract::weights::IMAGE_PREFIX;
use likeness_kernels::{
    AdamWStep, Moments, SgdStep, Velocity, adamw_step_all, clip_factor, gradient_norm, sgd_step_all,
};

use crate::error::{Error, Result};
use crate::tensors::{Stored, StoredTensor, Tensors};

const FIRST: &str = "adamw.first.";
const SECOND: &str = "adamw.second.";
const VELOCITY: &str = "sgd.momentum.";
/// The head of the image tower is no part of the backbone.
const HEAD: &str = "image.fc.";
/// Most names that an error lists.
const LISTED: usize = 8;

/// The optimizer with its state, in the order of the model's parameters.
#[derive(Debug)]
pub(crate) struct Optimizer {
    state: State,
    clip_norm: f64,
    backbone: BackboneSettings,
    backbone_parameters: usize,
}

#[derive(Debug)]
enum State {
    AdamW { settings: AdamWSettings, moments: Vec<Moments> },
    Sgd { settings: SgdSettings, velocities: Vec<Velocity> },
}

/// Where a training is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    /// Learning rate of this step.
    pub lr: f64,
    /// Steps behind it.
    pub step: u64,
    /// Steps behind the optimizer's state: fewer where a round went without it.
    pub learned: u64,
    /// Steps at the start in which the backbone is frozen.
    pub frozen_steps: u64,
}

/// A group of parameters in one step.
#[derive(Debug, PartialEq)]
struct Group {
    range: Range<usize>,
    lr: f64,
    /// The group's own count of steps, from 1.
    step: u64,
}

/// Whether a tensor of a checkpoint is the optimizer's.
pub(crate) fn is_state(name: &str) -> bool {
    [FIRST, SECOND, VELOCITY].iter().any(|prefix| name.starts_with(prefix))
}

impl Optimizer {
    /// Before the first step.
    pub fn new(train: &TrainSettings, tensors: &Tensors) -> Result<Self> {
        let parameters = tensors.parameters.iter().map(|(_, p)| p.as_tensor());
        let state = match train.optimizer.inner() {
            InnerOptimizer::AdamW(settings) => {
                let moments = parameters.map(Moments::zeros_like).collect::<candle_core::Result<_>>()?;
                State::AdamW { settings, moments }
            }
            InnerOptimizer::Sgd(settings) => {
                let velocities = parameters.map(Velocity::zeros_like).collect::<candle_core::Result<_>>()?;
                State::Sgd { settings, velocities }
            }
        };
        let of_backbone = |(name, _): &&(String, Var)| name.starts_with(IMAGE_PREFIX) && !name.starts_with(HEAD);
        let backbone_parameters = tensors.parameters.iter().take_while(of_backbone).count();
        Ok(Self { state, clip_norm: train.clip_norm, backbone: train.backbone, backbone_parameters })
    }

    /// The same with its state out of a checkpoint.
    ///
    /// # Errors
    /// `Mismatch` names the parameters whose state is missing or of another shape, or state of no use.
    pub fn with_state(mut self, mut stored: Stored, tensors: &Tensors, device: &Device) -> Result<Self> {
        let mut taking = Taking { stored: &mut stored, device, missing: Vec::new() };
        for (i, (name, parameter)) in tensors.parameters.iter().enumerate() {
            match &mut self.state {
                State::AdamW { moments, .. } => {
                    if let Some([first, second]) = taking.all([FIRST, SECOND], name, parameter)? {
                        moments[i] = Moments::from_tensors(&first, &second)?;
                    }
                }
                State::Sgd { velocities, .. } => {
                    if let Some([velocity]) = taking.all([VELOCITY], name, parameter)? {
                        velocities[i] = Velocity::from_tensor(&velocity)?;
                    }
                }
            }
        }
        taking.finish()?;
        match stored.first_key_value() {
            Some((name, _)) => Err(Error::mismatch(format!("`{name}` belongs to no parameter of this model"))),
            None => Ok(self),
        }
    }

    /// Its state by the names that a checkpoint gives it.
    pub fn state(&self, tensors: &Tensors) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for (i, (name, _)) in tensors.parameters.iter().enumerate() {
            match &self.state {
                State::AdamW { moments, .. } => {
                    let [first, second] = moments[i].to_tensors()?;
                    state.push((format!("{FIRST}{name}"), first));
                    state.push((format!("{SECOND}{name}"), second));
                }
                State::Sgd { velocities, .. } => {
                    state.push((format!("{VELOCITY}{name}"), velocities[i].to_tensor()?));
                }
            }
        }
        Ok(state)
    }

    /// Changes every parameter that is not frozen by its gradient.
    ///
    /// # Errors
    /// `NotFinite` when gradients are to be clipped and their norm is none; then nothing has changed.
    pub fn step(&mut self, tensors: &Tensors, gradients: &GradStore, at: At) -> Result<()> {
        let groups = self.groups(tensors.parameters.len(), at);
        let first = groups[0].range.start;
        let learning = &tensors.parameters[first..];
        let gradient = |(name, parameter): &'_ (String, Var)| match gradients.get(parameter) {
            Some(gradient) => Ok(gradient.clone()),
            None => Err(Error::mismatch(format!("the loss does not reach `{name}`"))),
        };
        let gradients = learning.iter().map(gradient).collect::<Result<Vec<_>>>()?;
        let parameters: Vec<&Var> = learning.iter().map(|(_, parameter)| parameter).collect();
        let gradient_scale = self.gradient_scale(&gradients)?;
        for Group { range, lr, step } in groups {
            let own = range.start - first..range.end - first;
            let (parameters, gradients) = (&parameters[own.clone()], &gradients[own]);
            match &mut self.state {
                State::AdamW { settings, moments } => {
                    let AdamWSettings { lr: _, beta1, beta2, eps, weight_decay } = *settings;
                    let numbers = AdamWStep { lr, beta1, beta2, eps, weight_decay, step, gradient_scale };
                    adamw_step_all(parameters, gradients, &mut moments[range], &numbers)?;
                }
                State::Sgd { settings, velocities } => {
                    let SgdSettings { lr: _, momentum, weight_decay } = *settings;
                    let numbers = SgdStep { lr, momentum, weight_decay, gradient_scale };
                    sgd_step_all(parameters, gradients, &mut velocities[range], &numbers)?;
                }
            }
        }
        Ok(())
    }

    /// The groups that learn, one where both do the same.
    fn groups(&self, parameters: usize, At { lr, step, learned, frozen_steps }: At) -> Vec<Group> {
        let rest = Group { range: self.backbone_parameters..parameters, lr, step: learned + 1 };
        let Some(own) = step.checked_sub(frozen_steps).map(|own| own.min(learned)) else { return vec![rest] };
        let backbone = Group { range: 0..self.backbone_parameters, lr: lr * self.backbone.lr_factor, step: own + 1 };
        if (backbone.lr, backbone.step) == (rest.lr, rest.step) {
            return vec![Group { range: 0..parameters, ..rest }];
        }
        vec![backbone, rest]
    }

    fn gradient_scale(&self, gradients: &[Tensor]) -> Result<f32> {
        if self.clip_norm == 0.0 {
            return Ok(1.0);
        }
        let norm = gradient_norm(gradients)?;
        if !norm.is_finite() {
            return Err(Error::not_finite(format!("the norm of the gradients is {norm}")));
        }
        Ok(clip_factor(norm, self.clip_norm as f32))
    }
}

/// Takes state out of a checkpoint's tensors and remembers what is missing.
struct Taking<'a> {
    stored: &'a mut Stored,
    device: &'a Device,
    missing: Vec<String>,
}

impl Taking<'_> {
    /// What stands behind each prefix for a parameter.
    fn all<const N: usize>(&mut self, prefixes: [&str; N], name: &str, parameter: &Var) -> Result<Option<[Tensor; N]>> {
        let taken = prefixes.map(|prefix| self.stored.remove(&format!("{prefix}{name}")));
        if taken.iter().any(|t| t.as_ref().is_none_or(|t| t.shape != parameter.dims())) {
            self.missing.push(format!("`{name}`"));
            return Ok(None);
        }
        let tensor = |t: StoredTensor| Tensor::from_vec(t.values, t.shape, self.device);
        let tensors = taken.into_iter().flatten().map(tensor).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(tensors.try_into().ok())
    }

    fn finish(mut self) -> Result<()> {
        let count = self.missing.len();
        if count == 0 {
            return Ok(());
        }
        self.missing.truncate(LISTED);
        let names = self.missing.join(", ");
        Err(Error::mismatch(format!("the checkpoint lacks the optimizer's state of {count} parameters: {names}")))
    }
}
