//! The outer step: what several slots learned from one checkpoint, brought together into the next.
//!
//! For every parameter, with θ′ of the slots: Δ = mean(θ′) − θ, v ← μ v + Δ, θ ← θ + lr (Δ + μ v), which is SGD with Nesterov
//! momentum as PyTorch has it, with −Δ as the gradient. Without momentum and with lr = 1 that is the mean itself, and it is computed as
//! such. Statistics of batch norms, and the average where one is kept, are the means of the slots': each has seen as many samples.
//!
//! Sums are in f64 and in the order in which slots are added, so the bytes are a function of those of the slots. One slot is in
//! memory at a time, however many there are.

use std::collections::BTreeMap;

use likeness_contract::settings::RoundSettings;

use crate::average;
use crate::checkpoint::{self, Contents};
use crate::error::{Error, Result};
use crate::tensors::{Stored, StoredTensor};

/// Before the name of a parameter: its momentum.
const MOMENTUM: &str = "outer.momentum.";

/// An outer step in the making.
#[derive(Debug)]
pub struct OuterStep {
    theta: Stored,
    before: u64,
    /// Steps behind the slots, once one was added.
    after: Option<u64>,
    sums: BTreeMap<String, Vec<f64>>,
    slots: u32,
}

/// What it leaves.
#[derive(Debug)]
pub struct NextRound {
    /// What the slots of the next round start from.
    pub theta: Vec<u8>,
    /// What the next outer step goes on from; none where there is no momentum.
    pub momentum: Option<Vec<u8>>,
}

impl OuterStep {
    /// From the checkpoint that the slots started from.
    ///
    /// # Errors
    /// `Corrupt`, `NotFinite` or `Mismatch` when it is none.
    pub fn new(theta: &[u8]) -> Result<Self> {
        let (tensors, before) = read(theta)?;
        let sums = tensors.iter().map(|(name, tensor)| (name.clone(), vec![0.0; tensor.values.len()])).collect();
        Ok(Self { theta: tensors, before, after: None, sums, slots: 0 })
    }

    /// Adds what a slot learned. The order of the slots is part of the result.
    ///
    /// # Errors
    /// As [`OuterStep::new`]; also `Mismatch` when it is of another model or another round.
    pub fn add(&mut self, slot: &[u8]) -> Result<()> {
        let (tensors, step) = read(slot)?;
        if step <= self.before || self.after.is_some_and(|after| after != step) {
            let expected = self.after.map_or(format!("more than {}", self.before), |after| after.to_string());
            return Err(Error::mismatch(format!("a slot with {step} steps behind it, expected {expected}")));
        }
        if tensors.len() != self.theta.len() {
            return Err(Error::mismatch(format!("a slot of {} tensors, expected {}", tensors.len(), self.theta.len())));
        }
        for (name, tensor) in &tensors {
            if self.theta.get(name).is_none_or(|theta| theta.shape != tensor.shape) {
                return Err(Error::mismatch(format!("`{name}` of a slot does not fit the checkpoint before it")));
            }
        }
        for (name, tensor) in tensors {
            let sums = self.sums.get_mut(&name).ok_or_else(|| Error::mismatch(format!("`{name}` is of no use")))?;
            sums.iter_mut().zip(tensor.values).for_each(|(sum, value)| *sum += f64::from(value));
        }
        self.after = Some(step);
        self.slots += 1;
        Ok(())
    }

    /// The next checkpoint, from the momentum that the outer step before it left.
    ///
    /// # Errors
    /// `Mismatch` when no slot was added or the momentum is of another model; `NotFinite` when a number of the result is.
    pub fn finish(self, settings: &RoundSettings, momentum: Option<&[u8]>) -> Result<NextRound> {
        let Self { mut theta, after, sums, slots, .. } = self;
        let Some(step) = after else { return Err(Error::mismatch("an outer step of no slot")) };
        let (lr, mu) = (settings.outer_lr, settings.outer_momentum);
        let mut before =
            momentum.map(checkpoint::read).transpose()?.map_or(Stored::new(), |Contents { tensors, .. }| tensors);
        let mut velocities = Stored::new();
        for (name, tensor) in &mut theta {
            let mean = sums[name].iter().map(|sum| sum / f64::from(slots));
            if is_averaged(name) || (lr, mu) == (1.0, 0.0) {
                tensor.values = mean.map(|mean| mean as f32).collect();
                continue;
            }
            let key = format!("{MOMENTUM}{name}");
            let mut velocity = velocity(&mut before, &key, tensor)?;
            for ((theta, mean), v) in tensor.values.iter_mut().zip(mean).zip(&mut velocity) {
                let delta = mean - f64::from(*theta);
                *v = (mu * f64::from(*v) + delta) as f32;
                *theta = (f64::from(*theta) + lr * (delta + mu * f64::from(*v))) as f32;
            }
            velocities.insert(key, StoredTensor { shape: tensor.shape.clone(), values: velocity });
        }
        if let Some(name) = before.keys().next() {
            return Err(Error::mismatch(format!("`{name}` belongs to no parameter of this model")));
        }
        let theta = checkpoint::write_stored(&theta, Some(step))?;
        let momentum = (mu > 0.0).then(|| checkpoint::write_stored(&velocities, None)).transpose()?;
        Ok(NextRound { theta, momentum })
    }
}

/// The momentum of a parameter; zero where there is none yet.
fn velocity(before: &mut Stored, key: &str, parameter: &StoredTensor) -> Result<Vec<f32>> {
    match before.remove(key) {
        None => Ok(vec![0.0; parameter.values.len()]),
        Some(tensor) if tensor.shape == parameter.shape => Ok(tensor.values),
        Some(tensor) => Err(Error::mismatch(format!("`{key}` is {:?} instead of {:?}", tensor.shape, parameter.shape))),
    }
}

/// What is no parameter: statistics of batch norms, and the average of the weights.
fn is_averaged(name: &str) -> bool {
    average::is_state(name) || name.ends_with(".running_mean") || name.ends_with(".running_var")
}

fn read(bytes: &[u8]) -> Result<(Stored, u64)> {
    let Contents { tensors, step } = checkpoint::read(bytes)?;
    let step = step.ok_or_else(|| Error::mismatch("no checkpoint of a round: `step` is missing"))?;
    Ok((tensors, step))
}

#[cfg(test)]
mod tests {
    use likeness_contract::settings::{InnerOptimizer, SgdSettings};

    use super::*;

    fn settings(outer_lr: f64, outer_momentum: f64) -> RoundSettings {
        let averaging = RoundSettings::averaging(2, InnerOptimizer::Sgd(SgdSettings::default()));
        RoundSettings { outer_lr, outer_momentum, ..averaging }
    }

    fn file(weight: [f32; 2], variance: f32, step: u64) -> Vec<u8> {
        let tensor = |values: &[f32]| StoredTensor { shape: vec![values.len()], values: values.to_vec() };
        let tensors = [("bn.running_var".to_owned(), tensor(&[variance])), ("fc.weight".to_owned(), tensor(&weight))];
        checkpoint::write_stored(&tensors.into(), Some(step)).unwrap()
    }

    fn numbers(bytes: &[u8]) -> (Vec<f32>, f32) {
        let tensors = checkpoint::read(bytes).unwrap().tensors;
        (tensors["fc.weight"].values.clone(), tensors["bn.running_var"].values[0])
    }

    fn round(theta: &[u8], slots: &[Vec<u8>], settings: &RoundSettings, momentum: Option<&[u8]>) -> NextRound {
        let mut step = OuterStep::new(theta).unwrap();
        slots.iter().for_each(|slot| step.add(slot).unwrap());
        step.finish(settings, momentum).unwrap()
    }

    #[test]
    fn without_momentum_and_at_rate_1_it_is_the_mean() {
        let next = round(
            &file([0.3, 7.0], 1.0, 4),
            &[file([0.1, 1.0], 2.0, 6), file([0.2, 4.0], 4.0, 6)],
            &settings(1.0, 0.0),
            None,
        );
        let mean = ((f64::from(0.1f32) + f64::from(0.2f32)) / 2.0) as f32;
        assert_eq!(numbers(&next.theta), (vec![mean, 2.5], 3.0));
        assert!(next.momentum.is_none());
        assert_eq!(checkpoint::read(&next.theta).unwrap().step, Some(6));
    }

    /// ```python
    /// import torch
    /// w = torch.nn.Parameter(torch.tensor([1., 2.])); o = torch.optim.SGD([w], lr=.5, momentum=.8, nesterov=True)
    /// for mean in ([2., 4.], [3., 3.]):
    ///     w.grad = w.detach() - torch.tensor(mean); o.step(); print(w.tolist(), o.state[w]["momentum_buffer"].neg().tolist())
    /// ```
    #[test]
    fn two_steps_are_those_of_pytorchs_sgd_with_nesterov_momentum() {
        let settings = settings(0.5, 0.8);
        let first =
            round(&file([1.0, 2.0], 1.0, 0), &[file([1.0, 3.0], 1.0, 1), file([3.0, 5.0], 1.0, 1)], &settings, None);
        let (weight, variance) = numbers(&first.theta);
        assert_eq!((weight, variance), (vec![1.9, 3.8], 1.0));
        let slots = [file([3.0, 3.0], 0.5, 2), file([3.0, 3.0], 1.5, 2)];
        let second = round(&first.theta, &slots, &settings, first.momentum.as_deref());
        let (weight, variance) = numbers(&second.theta);
        let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(close(weight[0], 3.21) && close(weight[1], 3.72) && variance == 1.0, "{weight:?}");
        let velocity = &checkpoint::read(&second.momentum.unwrap()).unwrap().tensors["outer.momentum.fc.weight"].values;
        assert!(close(velocity[0], 1.9) && close(velocity[1], 0.8), "{velocity:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let mut step = OuterStep::new(&file([1.0, 2.0], 1.0, 4)).unwrap();
        let refused = |step: &mut OuterStep, slot: &[u8], word: &str| {
            let error = step.add(slot).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refused(&mut step, &file([1.0, 2.0], 1.0, 4), "more than 4");
        step.add(&file([1.0, 2.0], 1.0, 8)).unwrap();
        refused(&mut step, &file([1.0, 2.0], 1.0, 9), "expected 8");
        let tensor = StoredTensor { shape: vec![2], values: vec![0.0; 2] };
        let other = [("bn.running_var".to_owned(), tensor.clone()), ("fc.bias".to_owned(), tensor)];
        refused(&mut step, &checkpoint::write_stored(&other.into(), Some(8)).unwrap(), "running_var");
        assert!(OuterStep::new(&file([1.0, 2.0], 1.0, 4)).unwrap().finish(&settings(1.0, 0.0), None).is_err());
        let nothing = checkpoint::write_stored(&Stored::new(), None).unwrap();
        assert!(OuterStep::new(&nothing).unwrap_err().to_string().contains("step"));
    }
}
