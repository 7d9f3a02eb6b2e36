//! One step of SGD with Nesterov momentum in one pass over the parameter.

use candle_core::{Result, Shape, Tensor, Var, bail};
use rayon::prelude::*;

use crate::nhwc::vectorised;
use crate::storage::{Lent, cpu_slice, on_cpu, tensor};

/// Elements of one task.
const CHUNK: usize = 16 * 1024;

/// The numbers of one step; names as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Momentum, without dampening.
    pub momentum: f64,
    /// Share of the parameter that is added to its gradient.
    pub weight_decay: f64,
    /// What the gradient is multiplied by first: below 1 where it is clipped.
    pub gradient_scale: f32,
}

/// The same numbers as they meet an element.
#[derive(Clone, Copy)]
struct Factors {
    lr: f32,
    momentum: f32,
    decay: f32,
    scale: f32,
}

impl SgdStep {
    fn factors(&self) -> Factors {
        let Self { lr, momentum, weight_decay, gradient_scale } = *self;
        Factors { lr: lr as f32, momentum: momentum as f32, decay: weight_decay as f32, scale: gradient_scale }
    }
}

vectorised! {
    fn update(by: Factors, p: &mut [f32], g: &[f32], b: &mut [f32]) {
        for ((p, g), b) in p.iter_mut().zip(g).zip(b) {
            let g = *g * by.scale + *p * by.decay;
            *b = *b * by.momentum + g;
            *p -= by.lr * (g + by.momentum * *b);
        }
    }
}

/// Updates all parameters, each by its gradient and with its velocity: on the CPU one pass over all of them together.
///
/// The arithmetic is PyTorch's `SGD(nesterov=True)`: `g += λp`, `b = μb + g`, `p −= lr (g + μb)`; a velocity of
/// zeros is PyTorch's first step, which has none.
///
/// # Errors
/// When lengths or shapes differ, a tensor is not `f32`, or the device fails; on the CPU nothing has changed then.
pub fn sgd_step_all(
    parameters: &[&Var],
    gradients: &[Tensor],
    velocities: &mut [Velocity],
    step: &SgdStep,
) -> Result<()> {
    if parameters.len() != gradients.len() || parameters.len() != velocities.len() {
        bail!("sgd: {} parameters, {} gradients, {} velocities", parameters.len(), gradients.len(), velocities.len());
    }
    let mut all = parameters.iter().zip(gradients).zip(velocities.iter_mut());
    all.by_ref().try_for_each(|((p, g), b)| b.check(p, g))?;
    if !parameters.iter().all(|p| on_cpu(p)) {
        return parameters.iter().zip(gradients).zip(velocities).try_for_each(|((p, g), b)| b.step(p, g, step));
    }
    let gradients = gradients.iter().map(|g| g.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = gradients.iter().map(|g| g.storage_and_layout()).collect();
    let gradients = guards.iter().map(|(storage, layout)| cpu_slice(storage, layout)).collect::<Result<Vec<_>>>()?;
    let mut lent = parameters.iter().map(|p| Lent::of(p)).collect::<Result<Vec<_>>>()?;
    let mut parts = Vec::new();
    for ((p, g), b) in lent.iter_mut().zip(gradients).zip(velocities) {
        let State::Host(b) = &mut b.state else { bail!("sgd: velocities are not on the cpu") };
        parts.extend(p.values.chunks_mut(CHUNK).zip(g.chunks(CHUNK)).zip(b.chunks_mut(CHUNK)));
    }
    let factors = step.factors();
    parts.into_par_iter().for_each(|((p, g), b)| update(factors, p, g, b));
    Ok(())
}

/// The momentum buffer of one parameter, on its device.
#[derive(Debug)]
pub struct Velocity {
    shape: Shape,
    state: State,
}

#[derive(Debug)]
enum State {
    /// On the CPU: a step changes it in place.
    Host(Vec<f32>),
    /// Elsewhere: a step replaces it.
    Device(Tensor),
}

impl Velocity {
    /// Zero, as before the first step.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn zeros_like(param: &Tensor) -> Result<Self> {
        Self::from_tensor(&param.detach().zeros_like()?)
    }

    /// Read back from a checkpoint.
    ///
    /// # Errors
    /// When it is not `f32`.
    pub fn from_tensor(velocity: &Tensor) -> Result<Self> {
        let state = if on_cpu(velocity) {
            State::Host(velocity.flatten_all()?.to_vec1()?)
        } else {
            State::Device(velocity.clone())
        };
        Ok(Self { shape: velocity.shape().clone(), state })
    }

    /// Of the parameter's shape.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match &self.state {
            State::Host(values) => tensor(values.clone(), self.shape.clone()),
            State::Device(values) => Ok(values.clone()),
        }
    }

    fn check(&self, param: &Var, gradient: &Tensor) -> Result<()> {
        if param.shape() != gradient.shape() || *param.shape() != self.shape {
            bail!("sgd: gradient {:?} of parameter {:?}", gradient.shape(), param.shape());
        }
        Ok(())
    }

    /// By tensor operations.
    fn step(&mut self, param: &Var, gradient: &Tensor, step: &SgdStep) -> Result<()> {
        let p = param.as_detached_tensor();
        let g = ((gradient * f64::from(step.gradient_scale))? + (&p * step.weight_decay)?)?;
        let b = ((self.to_tensor()? * step.momentum)? + &g)?;
        param.set(&(p - ((g + (&b * step.momentum)?)? * step.lr)?)?)?;
        *self = Self::from_tensor(&b)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::threads::with_threads;

    const STEP: SgdStep = SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 1e-3, gradient_scale: 1.0 };
    const GRADIENTS: [[f32; 4]; 3] = [[0.1, -0.02, 3.0, 1e-6], [-0.3, -0.02, 1.5, 0.0], [0.2, 0.0, -4.0, 1e-3]];

    // import torch; p = torch.tensor([0.5, -1.25, 3.0, 0.0]).requires_grad_()
    // o = torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    // for g in ([0.1, -0.02, 3.0, 1e-6], [-0.3, -0.02, 1.5, 0.0], [0.2, 0.0, -4.0, 1e-3]):
    //     p.grad = torch.tensor(g); o.step()
    // print(p, o.state[p]['momentum_buffer'])
    const PYTORCH_P: [f32; 4] = [5.085071325e-01, -1.236698866e+00, 2.319748640e+00, -1.903438097e-04];
    const PYTORCH_B: [f32; 4] = [1.236747205e-02, -3.757407144e-02, -2.134828568e-01, 1.000809600e-03];

    fn assert_pytorchs_numbers(got: [Vec<f32>; 2]) {
        for (got, want) in got.iter().flatten().zip([PYTORCH_P, PYTORCH_B].iter().flatten()) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-2), "{got} instead of {want}");
        }
    }

    fn three_steps(mut each: impl FnMut(&Var, &Tensor, &mut Velocity) -> Result<()>) -> Result<[Vec<f32>; 2]> {
        let p = Var::from_tensor(&tensor(vec![0.5, -1.25, 3.0, 0.0], 4)?)?;
        let mut velocity = Velocity::zeros_like(p.as_tensor())?;
        for g in GRADIENTS {
            each(&p, &tensor(g.to_vec(), 4)?, &mut velocity)?;
        }
        Ok([p.to_vec1()?, velocity.to_tensor()?.to_vec1()?])
    }

    #[test]
    fn three_steps_give_pytorchs_numbers() -> Result<()> {
        let all = |p: &Var, g: &Tensor, b: &mut Velocity| {
            sgd_step_all(&[p], std::slice::from_ref(g), std::slice::from_mut(b), &STEP)
        };
        assert_pytorchs_numbers(three_steps(all)?);
        Ok(())
    }

    #[test]
    fn three_steps_by_tensor_operations_give_pytorchs_numbers() -> Result<()> {
        assert_pytorchs_numbers(three_steps(|p, g, b| b.step(p, g, &STEP))?);
        Ok(())
    }

    #[test]
    fn a_scaled_gradient_is_the_gradient_scaled() -> Result<()> {
        let scaled = SgdStep { gradient_scale: 0.25, ..STEP };
        let quarter = three_steps(|p, g, b| b.step(p, &(g * 0.25)?, &STEP))?;
        let by_step =
            three_steps(|p, g, b| sgd_step_all(&[p], std::slice::from_ref(g), std::slice::from_mut(b), &scaled))?;
        let close = quarter.iter().flatten().zip(by_step.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close, "{quarter:?} {by_step:?}");
        Ok(())
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        let n = 3 * CHUNK + 5;
        let once = |threads| {
            with_threads(threads, || -> Result<Vec<f32>> {
                let g = tensor((0..n).map(|i| (i as f32).sin()).collect(), n)?;
                let p = Var::from_tensor(&Tensor::ones(n, candle_core::DType::F32, &Device::Cpu)?)?;
                let mut velocity = Velocity::zeros_like(p.as_tensor())?;
                for _ in 0..2 {
                    let (g, velocity) = (std::slice::from_ref(&g), std::slice::from_mut(&mut velocity));
                    sgd_step_all(&[&p], g, velocity, &STEP)?;
                }
                p.to_vec1()
            })
        };
        assert_eq!(once(1).unwrap(), once(2).unwrap());
    }

    #[test]
    fn a_gradient_of_another_shape_is_refused() -> Result<()> {
        let p = Var::from_tensor(&tensor(vec![1.0, 2.0], 2)?)?;
        let g = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu)?;
        let mut velocity = Velocity::zeros_like(p.as_tensor())?;
        assert!(sgd_step_all(&[&p], &[g], std::slice::from_mut(&mut velocity), &STEP).is_err());
        Ok(())
    }
}
