//! One AdamW step in one pass over the parameter.

use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Shape, Tensor, Var, bail};
use rayon::prelude::*;

use crate::nhwc::vectorised;
use crate::storage::{Lent, cpu_slice, on_cpu, slice, tensor};

/// Elements of one task.
const CHUNK: usize = 16 * 1024;

/// The numbers of one step; names as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay, times `lr`.
    pub weight_decay: f64,
    /// Number of this step, from 1: corrects the bias of the moments.
    pub step: u64,
    /// What the gradient is multiplied by first: below 1 where it is clipped.
    pub gradient_scale: f32,
}

/// The same numbers as they meet an element.
#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    keep: f32,
    first: f32,
    second: f32,
    second_rest: f32,
    root_correction: f32,
    eps: f32,
    step_size: f32,
}

impl AdamWStep {
    fn factors(&self) -> Factors {
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        Factors {
            scale: self.gradient_scale,
            keep: (1.0 - self.lr * self.weight_decay) as f32,
            first: (1.0 - self.beta1) as f32,
            second: self.beta2 as f32,
            second_rest: (1.0 - self.beta2) as f32,
            root_correction: correction(self.beta2).sqrt() as f32,
            eps: self.eps as f32,
            step_size: (self.lr / correction(self.beta1)) as f32,
        }
    }
}

vectorised! {
    fn update(by: Factors, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for ((p, g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
            let g = *g * by.scale;
            *p *= by.keep;
            *m += (g - *m) * by.first;
            *v = *v * by.second + g * g * by.second_rest;
            *p -= by.step_size * *m / (v.sqrt() / by.root_correction + by.eps);
        }
    }
}

/// Updates the parameter `p` and its moments `m`, `v` by the gradient `g`; all four are of one length.
///
/// The arithmetic is PyTorch's single-tensor AdamW: decay, `m.lerp_(g)`, `v`, `p −= step · m / (√v / √c + eps)`.
///
/// # Panics
/// When the lengths differ.
pub fn adamw_step(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: &AdamWStep) {
    assert!(p.len() == g.len() && p.len() == m.len() && p.len() == v.len(), "lengths differ");
    let factors = step.factors();
    let state = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
    p.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(state)
        .for_each(|((p, g), (m, v))| update(factors, p, g, m, v));
}

/// [`adamw_step`] of all parameters at once, each with its gradient and its moments: on the CPU one pass over all
/// of them together.
///
/// # Errors
/// When lengths or shapes differ, a tensor is not `f32`, or the device fails; on the CPU nothing has changed then.
pub fn adamw_step_all(
    parameters: &[&Var],
    gradients: &[Tensor],
    moments: &mut [Moments],
    step: &AdamWStep,
) -> Result<()> {
    if parameters.len() != gradients.len() || parameters.len() != moments.len() {
        bail!("adamw: {} parameters, {} gradients, {} moments", parameters.len(), gradients.len(), moments.len());
    }
    let mut all = parameters.iter().zip(gradients).zip(moments.iter_mut());
    if !parameters.iter().all(|p| on_cpu(p)) {
        return all.try_for_each(|((p, g), m)| m.step(p, g, step));
    }
    all.try_for_each(|((p, g), m)| m.check(p, g))?;
    let gradients = gradients.iter().map(|g| g.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = gradients.iter().map(|g| g.storage_and_layout()).collect();
    let gradients = guards.iter().map(|(storage, layout)| cpu_slice(storage, layout)).collect::<Result<Vec<_>>>()?;
    let mut lent = parameters.iter().map(|p| Lent::of(p)).collect::<Result<Vec<_>>>()?;
    let mut parts = Vec::new();
    for ((p, g), m) in lent.iter_mut().zip(gradients).zip(moments) {
        let State::Host { first, second } = &mut m.state else { bail!("adamw: moments are not on the cpu") };
        let state = first.chunks_mut(CHUNK).zip(second.chunks_mut(CHUNK));
        parts.extend(p.values.chunks_mut(CHUNK).zip(g.chunks(CHUNK)).zip(state));
    }
    let factors = step.factors();
    parts.into_par_iter().for_each(|((p, g), (m, v))| update(factors, p, g, m, v));
    Ok(())
}

/// Moments of one parameter, on its device.
#[derive(Debug)]
pub struct Moments {
    shape: Shape,
    state: State,
}

#[derive(Debug)]
enum State {
    /// On the CPU: a step changes them in place.
    Host { first: Vec<f32>, second: Vec<f32> },
    /// Elsewhere: a step replaces them.
    Device { first: Tensor, second: Tensor },
}

impl Moments {
    /// Both zero, as before the first step.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn zeros_like(param: &Tensor) -> Result<Self> {
        let zeros = param.detach().zeros_like()?;
        Self::from_tensors(&zeros, &zeros)
    }

    /// Moments m and v read back from a checkpoint.
    ///
    /// # Errors
    /// When the two shapes differ or one is not `f32`.
    pub fn from_tensors(first: &Tensor, second: &Tensor) -> Result<Self> {
        if first.shape() != second.shape() {
            bail!("moments of shapes {:?} and {:?}", first.shape(), second.shape());
        }
        let state = if on_cpu(first) {
            State::Host { first: first.flatten_all()?.to_vec1()?, second: second.flatten_all()?.to_vec1()? }
        } else {
            State::Device { first: first.clone(), second: second.clone() }
        };
        Ok(Self { shape: first.shape().clone(), state })
    }

    /// m and v, of the parameter's shape.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn to_tensors(&self) -> Result<[Tensor; 2]> {
        match &self.state {
            State::Host { first, second } => {
                Ok([tensor(first.clone(), self.shape.clone())?, tensor(second.clone(), self.shape.clone())?])
            }
            State::Device { first, second } => Ok([first.clone(), second.clone()]),
        }
    }

    fn check(&self, param: &Var, gradient: &Tensor) -> Result<()> {
        if param.shape() != gradient.shape() || *param.shape() != self.shape {
            bail!("adamw: gradient {:?} of parameter {:?}", gradient.shape(), param.shape());
        }
        Ok(())
    }

    /// Updates `param` and these moments by `gradient`.
    ///
    /// # Errors
    /// When shapes differ, a tensor is not `f32`, or the device fails.
    pub fn step(&mut self, param: &Var, gradient: &Tensor, step: &AdamWStep) -> Result<()> {
        self.check(param, gradient)?;
        match &mut self.state {
            State::Host { first, second } => {
                let moments = (std::mem::take(first), std::mem::take(second));
                let op = Update { step: *step, moments: Mutex::new(moments) };
                let done = param.inplace_op2(&gradient.contiguous()?, &op);
                (*first, *second) = op.moments.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
                done
            }
            State::Device { first, second } => {
                let [m, v] = step_composed(param, gradient, [first, second], step)?;
                (*first, *second) = (m, v);
                Ok(())
            }
        }
    }
}

/// Updates `param` by tensor operations; returns the new moments.
fn step_composed(param: &Var, gradient: &Tensor, [m, v]: [&Tensor; 2], step: &AdamWStep) -> Result<[Tensor; 2]> {
    let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
    let gradient = &(gradient * f64::from(step.gradient_scale))?;
    let first = ((m * step.beta1)? + (gradient * (1.0 - step.beta1))?)?;
    let second = ((v * step.beta2)? + (gradient.sqr()? * (1.0 - step.beta2))?)?;
    let root = ((second.sqrt()? / correction(step.beta2).sqrt())? + step.eps)?;
    let kept = (param.as_detached_tensor() * (1.0 - step.lr * step.weight_decay))?;
    param.set(&(kept - ((&first / root)? * (step.lr / correction(step.beta1)))?)?)?;
    Ok([first, second])
}

struct Update {
    step: AdamWStep,
    moments: Mutex<(Vec<f32>, Vec<f32>)>,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "likeness-adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, pl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<()> {
        let Some((start, end)) = pl.contiguous_offsets() else { bail!("adamw: the parameter is not contiguous") };
        let CpuStorage::F32(p) = p else { bail!("adamw: the parameter is not f32") };
        let mut moments = self.moments.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (m, v) = &mut *moments;
        adamw_step(&mut p[start..end], slice(g, gl)?, m, v, &self.step);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::threads::with_threads;

    const STEP: AdamWStep =
        AdamWStep { lr: 2e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1, gradient_scale: 1.0 };

    // import torch; p = torch.tensor([0.5, -1.25, 3.0, 0.0]).requires_grad_()
    // o = torch.optim.AdamW([p], lr=2e-3, weight_decay=0.01)
    // for g in ([0.1, -0.02, 3.0, 1e-6], [-0.3, -0.02, 1.5, 0.0], [0.2, 0.0, -4.0, 1e-3]):
    //     p.grad = torch.tensor(g); o.step()
    // print(p, o.state[p]['exp_avg'], o.state[p]['exp_avg_sq'])
    const GRADIENTS: [[f32; 4]; 3] = [[0.1, -0.02, 3.0, 1e-6], [-0.3, -0.02, 1.5, 0.0], [0.2, 0.0, -4.0, 1e-3]];

    const PYTORCH_P: [f32; 4] = [4.989208281e-01, -1.244379044e+00, 2.996009111e+00, -4.580155481e-03];
    const PYTORCH_M: [f32; 4] = [1.100000693e-03, -3.419999965e-03, -2.199999802e-02, 1.000810080e-04];
    const PYTORCH_V: [f32; 4] = [1.398900204e-04, 7.988003858e-07, 2.722975984e-02, 1.000001193e-09];

    fn assert_pytorchs_numbers(got: [Vec<f32>; 3]) {
        for (got, want) in got.iter().flatten().zip([PYTORCH_P, PYTORCH_M, PYTORCH_V].iter().flatten()) {
            // m of the first element is what is left of values twenty times as large.
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-2), "{got} instead of {want}");
        }
    }

    #[test]
    fn three_steps_give_pytorchs_numbers() -> Result<()> {
        let p = Var::from_tensor(&tensor(vec![0.5, -1.25, 3.0, 0.0], 4)?)?;
        let mut moments = Moments::zeros_like(p.as_tensor())?;
        for (i, g) in GRADIENTS.iter().enumerate() {
            moments.step(&p, &tensor(g.to_vec(), 4)?, &AdamWStep { step: 1 + i as u64, ..STEP })?;
        }
        let [m, v] = moments.to_tensors()?;
        assert_pytorchs_numbers([p.to_vec1()?, m.to_vec1()?, v.to_vec1()?]);
        Ok(())
    }

    #[test]
    fn three_steps_by_tensor_operations_give_pytorchs_numbers() -> Result<()> {
        let p = Var::from_tensor(&tensor(vec![0.5, -1.25, 3.0, 0.0], 4)?)?;
        let [mut m, mut v] = Moments::zeros_like(p.as_tensor())?.to_tensors()?;
        for (i, g) in GRADIENTS.iter().enumerate() {
            [m, v] = step_composed(&p, &tensor(g.to_vec(), 4)?, [&m, &v], &AdamWStep { step: 1 + i as u64, ..STEP })?;
        }
        assert_pytorchs_numbers([p.to_vec1()?, m.to_vec1()?, v.to_vec1()?]);
        Ok(())
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        let n = 3 * CHUNK + 5;
        let once = |threads| {
            with_threads(threads, || {
                let g: Vec<f32> = (0..n).map(|i| (i as f32).sin()).collect();
                let (mut p, mut m, mut v) = (vec![1.0; n], vec![0.0; n], vec![0.0; n]);
                adamw_step(&mut p, &g, &mut m, &mut v, &STEP);
                (p, m, v)
            })
        };
        assert_eq!(once(1), once(2));
    }

    #[test]
    fn a_gradient_of_another_shape_is_refused() -> Result<()> {
        let p = Var::from_tensor(&tensor(vec![1.0, 2.0], 2)?)?;
        let g = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu)?;
        assert!(Moments::zeros_like(p.as_tensor())?.step(&p, &g, &STEP).is_err());
        Ok(())
    }
}
