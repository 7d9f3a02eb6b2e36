//! One convolution with its batch norm as training runs it.

use std::ops::Range;

use super::{NORM_EPS, NormStatistics, PER_UNIT};
use crate::nhwc::{
    ChannelSums, Choice, ConvShape, Dims, Forward, InputGradient, Isa, WeightGradient, norm_backward, norm_max_pool,
    norm_max_pool_backward, scale_shift,
};

/// The three products of a convolution. Weights are packed just before each use, so that all convolutions of one
/// shape and choice share the memory of one.
#[derive(Debug)]
pub(super) struct Products {
    forward: Forward,
    input: InputGradient,
    weight: WeightGradient,
}

impl Products {
    pub fn new(shape: ConvShape, choice: Choice, isa: Isa) -> Self {
        let Choice { forward, input, weight } = choice;
        Self {
            forward: Forward::new(shape, forward, isa),
            input: InputGradient::new(shape, input, isa),
            weight: WeightGradient::new(shape, weight, isa),
        }
    }

    /// The gradient of the input, added to `dx` if asked for.
    pub fn input_gradient(&mut self, weight: &[f32], dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        self.input.run_once(weight, dy, dims, dx, add);
    }

    /// The gradient of the weights.
    pub fn weight_gradient(&mut self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        self.weight.run(x, dims, dy, dw);
    }
}

/// What one convolution and its norm keep from forward to backward.
#[derive(Debug)]
pub(super) struct Unit {
    /// Position of the weights among the parameters; the norm's weight and bias follow.
    weight: usize,
    /// Which [`Products`] it uses.
    pub products: usize,
    /// The convolution's output.
    y: Vec<f32>,
    seen: NormStatistics,
    inv_std: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
    sums: ChannelSums,
}

impl Unit {
    /// The convolution at `position` of the network's list, its output of sizes `output`.
    pub fn new(position: usize, products: usize, output: Dims) -> Self {
        let channels = || vec![0.0; output.c];
        Self {
            weight: PER_UNIT * position,
            products,
            y: vec![0.0; output.len()],
            seen: NormStatistics { mean: channels(), variance: channels() },
            inv_std: channels(),
            scale: channels(),
            shift: channels(),
            sums: ChannelSums::default(),
        }
    }

    /// Its weights among `parameters`.
    pub fn weight<'a>(&self, parameters: &[&'a [f32]]) -> &'a [f32] {
        parameters[self.weight]
    }

    /// Its weights' gradient among `gradients`.
    pub fn weight_slot<'a>(&self, gradients: &'a mut [&mut [f32]]) -> &'a mut [f32] {
        gradients[self.weight]
    }

    /// Convolves and takes the batch's statistics; the output stays within.
    pub fn convolve(&mut self, products: &mut Products, parameters: &[&[f32]], x: &[f32], dims: Dims) {
        products.forward.run_once(self.weight(parameters), x, dims, &mut self.y, &mut self.sums);
        self.normalize(parameters[self.weight + 1], parameters[self.weight + 2]);
    }

    /// From sums over the batch to the factors of the norm.
    fn normalize(&mut self, gamma: &[f32], beta: &[f32]) {
        let channels = self.inv_std.len();
        let n = (self.y.len() / channels) as f64;
        for c in 0..channels {
            let mean = self.sums.sum[c] / n;
            // Rounding of the sums can leave a constant channel just below zero.
            let variance = (self.sums.square[c] / n - mean * mean).max(0.0);
            let inv_std = 1.0 / (variance + NORM_EPS).sqrt();
            let scale = f64::from(gamma[c]) * inv_std;
            self.inv_std[c] = inv_std as f32;
            (self.scale[c], self.shift[c]) = (scale as f32, (f64::from(beta[c]) - mean * scale) as f32);
            (self.seen.mean[c], self.seen.variance[c]) = (mean as f32, (variance * n / (n - 1.0)) as f32);
        }
    }

    /// What the norm saw.
    pub fn seen(&self) -> &NormStatistics {
        &self.seen
    }

    /// `z = norm(y) (+ residual)`, then ReLU if asked for.
    pub fn activate(&self, residual: Option<&[f32]>, relu: bool, z: &mut [f32]) {
        scale_shift(&self.y, &self.scale, &self.shift, residual, relu, z);
    }

    /// From the gradient `g` of the norm's output to that of the convolution's, in `dy` or in place; where `z` is
    /// given, `g` counts only where it is positive.
    pub fn norm_backward(
        &self,
        parameters: &[&[f32]],
        z: Option<&[f32]>,
        g: &mut [f32],
        dy: Option<&mut [f32]>,
        gradients: &mut [&mut [f32]],
    ) {
        let gamma = parameters[self.weight + 1];
        let [dgamma, dbeta] = &mut gradients[self.norm_slots()] else {
            unreachable!("a norm has two parameters");
        };
        norm_backward(&self.y, z, g, &self.seen.mean, &self.inv_std, gamma, dy, dgamma, dbeta);
    }

    /// `z = max_pool(relu(norm(y)))`, and where the maxima were.
    pub fn activate_and_pool(&self, dims: Dims, z: &mut [f32], index: &mut [u8]) {
        norm_max_pool(&self.y, dims, &self.scale, &self.shift, z, index);
    }

    /// From the gradient `dz` of what [`Self::activate_and_pool`] made, 0 where that is, to that of the convolution.
    pub fn pooled_backward(
        &self,
        parameters: &[&[f32]],
        (dz, index): (&[f32], &[u8]),
        dims: Dims,
        dy: &mut [f32],
        gradients: &mut [&mut [f32]],
    ) {
        let gamma = parameters[self.weight + 1];
        let [dgamma, dbeta] = &mut gradients[self.norm_slots()] else {
            unreachable!("a norm has two parameters");
        };
        let (mean, inv_std) = (&self.seen.mean, &self.inv_std);
        norm_max_pool_backward(&self.y, dz, index, dims, mean, inv_std, gamma, dy, dgamma, dbeta);
    }

    fn norm_slots(&self) -> Range<usize> {
        self.weight + 1..self.weight + PER_UNIT
    }
}

/// Equal convolutions share their products: the list of these, and which one every convolution uses.
pub(super) fn products(
    units: &[ConvShape],
    inputs: &[Dims],
    isa: Isa,
    choose: impl Fn(&ConvShape, Dims) -> Choice,
) -> (Vec<Products>, Vec<usize>) {
    let mut keys: Vec<(ConvShape, Choice)> = Vec::new();
    let position = |(shape, dims): (&ConvShape, &Dims)| {
        let key = (*shape, choose(shape, *dims));
        keys.iter().position(|k| *k == key).unwrap_or_else(|| {
            keys.push(key);
            keys.len() - 1
        })
    };
    let positions = units.iter().zip(inputs).map(position).collect();
    (keys.into_iter().map(|(shape, choice)| Products::new(shape, choice, isa)).collect(), positions)
}
