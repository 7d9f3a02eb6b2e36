//! Layers with their tensors: convolution, batch norm, linear.

use candle_core::{Tensor, Var};

use likeness_kernels::{batch_norm_eval, batch_norm_train, conv2d};

use crate::backbone::Mode;
use crate::error::Result;
use crate::init::Init;
use crate::tensors::Builder;

/// PyTorch's and torchvision's default, added to the variance.
const BATCH_NORM_EPS: f64 = 1e-5;
/// PyTorch's default: share of the new batch in a running statistic.
const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// What the batch norms of one forward pass saw, in their order.
#[derive(Debug, Default)]
pub struct BatchStatistics {
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    running_mean: Var,
    running_variance: Var,
    mean: Tensor,
    variance: Tensor,
}

impl BatchStatistics {
    /// Adds what `norm` saw: mean and unbiased variance, each `(C)`.
    pub(crate) fn push(&mut self, norm: &BatchNorm, mean: Tensor, variance: Tensor) {
        let (running_mean, running_variance) = (norm.running_mean.clone(), norm.running_variance.clone());
        self.seen.push(Seen { running_mean, running_variance, mean, variance });
    }

    /// Moves every running statistic towards what was seen: `r ← 0.9·r + 0.1·s`, as PyTorch.
    pub(crate) fn apply(self) -> Result<()> {
        for Seen { running_mean, running_variance, mean, variance } in self.seen {
            move_towards(&running_mean, &mean)?;
            move_towards(&running_variance, &variance)?;
        }
        Ok(())
    }
}

fn move_towards(running: &Var, seen: &Tensor) -> Result<()> {
    let kept = (running.as_detached_tensor() * (1.0 - BATCH_NORM_MOMENTUM))?;
    Ok(running.set(&(kept + (seen * BATCH_NORM_MOMENTUM)?)?)?)
}

/// The tensor on the tape in training, off it otherwise.
fn used(var: &Var, mode: &Mode<'_>) -> Tensor {
    match mode {
        Mode::Train(_) => var.as_tensor().clone(),
        Mode::Eval => var.as_detached_tensor(),
    }
}

/// Square kernel, no bias.
#[derive(Debug)]
pub(crate) struct Conv {
    pub weight: Var,
    stride: usize,
    padding: usize,
}

impl Conv {
    /// `shape` is `(C_out, C_in, k)`.
    pub fn new(
        b: &mut Builder<'_>,
        name: &str,
        (c_out, c_in, k): (usize, usize, usize),
        stride: usize,
    ) -> Result<Self> {
        let weight = b.parameter(format!("{name}.weight"), &[c_out, c_in, k, k], Init::KaimingFanOut)?;
        Ok(Self { weight, stride, padding: k / 2 })
    }

    /// `(B, C_in, H, W)` → `(B, C_out, ⌈H/stride⌉, ⌈W/stride⌉)`
    pub fn forward(&self, x: &Tensor, mode: &Mode<'_>) -> Result<Tensor> {
        Ok(conv2d(x, &used(&self.weight, mode), self.stride, self.padding)?)
    }
}

/// Batch norm over the second dimension.
#[derive(Debug)]
pub(crate) struct BatchNorm {
    pub weight: Var,
    pub bias: Var,
    pub running_mean: Var,
    pub running_variance: Var,
}

impl BatchNorm {
    pub fn new(b: &mut Builder<'_>, name: &str, channels: usize) -> Result<Self> {
        Ok(Self {
            weight: b.parameter(format!("{name}.weight"), &[channels], Init::Constant(1.0))?,
            bias: b.parameter(format!("{name}.bias"), &[channels], Init::Constant(0.0))?,
            running_mean: b.statistic(format!("{name}.running_mean"), channels, 0.0)?,
            running_variance: b.statistic(format!("{name}.running_var"), channels, 1.0)?,
        })
    }

    /// Normalises, then ReLU if `with_relu`; the shape stays.
    pub fn forward(&self, x: &Tensor, with_relu: bool, mode: &mut Mode<'_>) -> Result<Tensor> {
        let (weight, bias) = (used(&self.weight, mode), used(&self.bias, mode));
        let (mean, variance) = (self.running_mean.as_detached_tensor(), self.running_variance.as_detached_tensor());
        let Mode::Train(statistics) = mode else {
            return Ok(batch_norm_eval(x, [&weight, &bias, &mean, &variance], BATCH_NORM_EPS, with_relu)?);
        };
        let out = batch_norm_train(x, &weight, &bias, BATCH_NORM_EPS, with_relu)?;
        statistics.push(self, out.mean, out.variance);
        Ok(out.y)
    }
}

/// `x Wᵀ + b`
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Var,
    bias: Var,
}

impl Linear {
    pub fn new(b: &mut Builder<'_>, name: &str, inputs: usize, outputs: usize) -> Result<Self> {
        let init = Init::FanIn(inputs);
        Ok(Self {
            weight: b.parameter(format!("{name}.weight"), &[outputs, inputs], init)?,
            bias: b.parameter(format!("{name}.bias"), &[outputs], init)?,
        })
    }

    /// `(B, inputs)` → `(B, outputs)`
    pub fn forward(&self, x: &Tensor, mode: &Mode<'_>) -> Result<Tensor> {
        let (weight, bias) = (used(&self.weight, mode), used(&self.bias, mode));
        Ok(x.matmul(&weight.t()?)?.broadcast_add(&bias)?)
    }
}
