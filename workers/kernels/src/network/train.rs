//! Forward and backward of a network in training.

use rayon::prelude::*;

use super::shape::{BlockUnits, Plan, units};
use super::unit::{Products, Unit, products};
use super::{NetworkShape, PER_UNIT, at_least, inside_pool};
use crate::nhwc::{ConvShape, Dims, Isa, average_pool, average_pool_backward, from_nchw, table};

/// What one batch norm saw: what running statistics move towards.
#[derive(Clone, Debug, PartialEq)]
pub struct NormStatistics {
    /// Mean of every channel over the batch.
    pub mean: Vec<f32>,
    /// Unbiased variance of every channel.
    pub variance: Vec<f32>,
}

/// A network that learns.
///
/// From forward to backward it keeps what PyTorch keeps: every convolution's output, and every activation that a
/// convolution reads; of the stem's activation only what pooling leaves of it. Gradients of activations live in
/// three buffers that change roles.
#[derive(Debug)]
pub struct TrainNetwork {
    shape: NetworkShape,
    isa: Isa,
    winograd: bool,
    units: Vec<ConvShape>,
    blocks: Vec<BlockUnits>,
    buffers: Option<Buffers>,
}

/// Everything that depends on the size of the batch.
#[derive(Debug)]
struct Buffers {
    plan: Plan,
    products: Vec<Products>,
    units: Vec<Unit>,
    images: Vec<f32>,
    pooled: Vec<f32>,
    pool_index: Vec<u8>,
    /// Of every convolution that another one reads, in the order of [`Buffers::units`]; empty for the others.
    activations: Vec<Vec<f32>>,
    gradients: Gradients,
}

/// Gradients of activations. In the forward pass they hold what nobody needs later.
#[derive(Debug, Default)]
struct Gradients {
    /// Of the current block's output.
    block: Vec<f32>,
    /// Of the convolution at hand.
    branch: Vec<f32>,
    spare: Vec<f32>,
    /// Of the stem, often larger than all others.
    stem: Vec<f32>,
}

impl TrainNetwork {
    /// A network of `shape`; with `winograd`, 3×3 convolutions go the faster and less exact way where the table
    /// says so.
    pub fn new(shape: NetworkShape, isa: Isa, winograd: bool) -> Self {
        let (units, blocks) = units(&shape);
        Self { shape, isa, winograd, units, blocks, buffers: None }
    }

    /// What it computes.
    pub fn shape(&self) -> &NetworkShape {
        &self.shape
    }

    /// Images `(n, 3, h, w)` into `features (n, F)`.
    ///
    /// # Panics
    /// When a slice has another length, or the last stage has fewer than two values per channel.
    pub fn forward(
        &mut self,
        images: &[f32],
        (n, h, w): (usize, usize, usize),
        parameters: &[&[f32]],
        features: &mut [f32],
    ) {
        assert_eq!(parameters.len(), PER_UNIT * self.units.len(), "parameters");
        let plan = Plan::new(&self.shape, n, h, w);
        assert!(plan.last.pixels() > 1, "batch statistics need more than one value per channel");
        if self.buffers.as_ref().is_none_or(|buffers| buffers.plan != plan) {
            // The old ones go first: both at once would be the peak.
            self.buffers = None;
        }
        let Self { isa, winograd, units, blocks, buffers, .. } = self;
        let buffers = buffers.get_or_insert_with(|| Buffers::new(plan, units, blocks, *isa, *winograd));
        inside_pool(|| buffers.forward(blocks, images, parameters, features));
    }

    /// What every norm saw in the last [`TrainNetwork::forward`], in the order of parameters.
    pub fn statistics(&self) -> impl Iterator<Item = &NormStatistics> {
        self.buffers.iter().flat_map(|buffers| &buffers.units).map(Unit::seen)
    }

    /// From the gradient of the features to that of every parameter, for the last [`TrainNetwork::forward`].
    ///
    /// # Panics
    /// When there was none, or a slice has another length.
    pub fn backward(&mut self, d_features: &[f32], parameters: &[&[f32]], gradients: &mut [&mut [f32]]) {
        let Self { blocks, buffers, .. } = self;
        let buffers = buffers.as_mut().expect("backward follows a forward");
        assert_eq!(gradients.len(), parameters.len(), "gradients");
        inside_pool(|| buffers.backward(blocks, d_features, parameters, gradients));
    }
}

impl Buffers {
    fn new(plan: Plan, units: &[ConvShape], blocks: &[BlockUnits], isa: Isa, winograd: bool) -> Self {
        let choose = |shape: &ConvShape, dims: Dims| table::choose(shape, dims, isa, winograd);
        let (products, positions) = products(units, &plan.inputs, isa, choose);
        let unit = |(i, p): (usize, usize)| Unit::new(i, p, plan.outputs[i]);
        let read = |i: &usize| blocks.iter().any(|block| block.branch.contains(i));
        let activation = |i: usize| vec![0.0; if read(&i) { plan.outputs[i].len() } else { 0 }];
        Self {
            products,
            units: positions.into_iter().enumerate().map(unit).collect(),
            images: vec![0.0; plan.images.len()],
            pooled: vec![0.0; plan.pooled.len()],
            pool_index: vec![0; plan.pooled.len()],
            activations: (0..units.len()).map(activation).collect(),
            gradients: Gradients::default(),
            plan,
        }
    }

    fn forward(&mut self, blocks: &[BlockUnits], images: &[f32], parameters: &[&[f32]], features: &mut [f32]) {
        let Dims { n, h, w, c } = self.plan.images;
        from_nchw(images, n, c, h, w, &mut self.images);
        self.stem_forward(parameters);
        for (i, block) in blocks.iter().enumerate() {
            self.block_forward(blocks, i, block, parameters);
        }
        let last = blocks.last().map_or(&self.pooled, |block| &self.activations[block.last()]);
        average_pool(last, self.plan.last, features);
    }

    fn stem_forward(&mut self, parameters: &[&[f32]]) {
        let Self { plan, products, units, images, pooled, pool_index, .. } = self;
        let stem = &mut units[0];
        stem.convolve(&mut products[stem.products], parameters, images, plan.inputs[0]);
        stem.activate_and_pool(plan.outputs[0], pooled, pool_index);
    }

    /// The input of block `i`.
    fn block_input<'a>(blocks: &[BlockUnits], i: usize, pooled: &'a [f32], activations: &'a [Vec<f32>]) -> &'a [f32] {
        if i == 0 { pooled } else { &activations[blocks[i - 1].last()] }
    }

    fn block_forward(&mut self, blocks: &[BlockUnits], i: usize, block: &BlockUnits, parameters: &[&[f32]]) {
        let Self { plan, products, units, pooled, activations, gradients, .. } = self;
        let (before, own) = activations.split_at_mut(block.branch.start);
        let x = Self::block_input(blocks, i, pooled, before);
        let mut shortcut = x;
        if let Some(d) = block.downsample {
            let unit = &mut units[d];
            unit.convolve(&mut products[unit.products], parameters, x, plan.inputs[d]);
            let z = at_least(&mut gradients.block, plan.outputs[d].len());
            unit.activate(None, false, z);
            shortcut = z;
        }
        for u in block.branch.clone() {
            let (done, rest) = own.split_at_mut(u - block.branch.start);
            let input = done.last().map_or(x, |z| z);
            let unit = &mut units[u];
            unit.convolve(&mut products[unit.products], parameters, input, plan.inputs[u]);
            unit.activate((u == block.last()).then_some(shortcut), true, &mut rest[0]);
        }
    }

    fn backward(
        &mut self,
        blocks: &[BlockUnits],
        d_features: &[f32],
        parameters: &[&[f32]],
        gradients: &mut [&mut [f32]],
    ) {
        let g = at_least(&mut self.gradients.block, self.plan.last.len());
        average_pool_backward(d_features, self.plan.last, g);
        for (i, block) in blocks.iter().enumerate().rev() {
            self.block_backward(blocks, i, block, parameters, gradients);
        }
        self.stem_backward(parameters, gradients);
    }

    /// From the gradient of a block's output to that of its input, both in `gradients.block`.
    fn block_backward(
        &mut self,
        blocks: &[BlockUnits],
        i: usize,
        block: &BlockUnits,
        parameters: &[&[f32]],
        gradients: &mut [&mut [f32]],
    ) {
        self.branch_backward(block, parameters, gradients);
        let Self { plan, products, units, pooled, activations, gradients: buffers, .. } = self;
        let x = Self::block_input(blocks, i, pooled, activations);
        let (first, dims) = (block.branch.start, plan.inputs[block.branch.start]);
        let unit = &units[first];
        let weights = unit.weight(parameters);
        let dy = &buffers.branch[..plan.outputs[first].len()];
        products[unit.products].weight_gradient(x, dims, dy, unit.weight_slot(gradients));
        let Some(d) = block.downsample else {
            let g = &mut buffers.block[..dims.len()];
            products[unit.products].input_gradient(weights, dy, dims, g, true);
            return;
        };
        let dx = at_least(&mut buffers.spare, dims.len());
        products[unit.products].input_gradient(weights, dy, dims, dx, false);
        let unit = &units[d];
        let g = &mut buffers.block[..plan.outputs[d].len()];
        unit.norm_backward(parameters, None, g, None, gradients);
        products[unit.products].weight_gradient(x, dims, g, unit.weight_slot(gradients));
        products[unit.products].input_gradient(unit.weight(parameters), g, dims, dx, true);
        std::mem::swap(&mut buffers.block, &mut buffers.spare);
    }

    /// From the gradient of a block's output to that of its first convolution's output, in `gradients.branch`;
    /// what is left in `gradients.block` is the shortcut's.
    fn branch_backward(&mut self, block: &BlockUnits, parameters: &[&[f32]], gradients: &mut [&mut [f32]]) {
        let Self { plan, products, units, activations, gradients: buffers, .. } = self;
        let len = plan.outputs[block.last()].len();
        let (g, dy) = (&mut buffers.block[..len], at_least(&mut buffers.branch, len));
        let z = Some(&activations[block.last()][..]);
        units[block.last()].norm_backward(parameters, z, g, Some(dy), gradients);
        for u in block.branch.clone().skip(1).rev() {
            let (unit, dims) = (&units[u], plan.inputs[u]);
            let dy = &buffers.branch[..plan.outputs[u].len()];
            let products = &mut products[unit.products];
            products.weight_gradient(&activations[u - 1], dims, dy, unit.weight_slot(gradients));
            let dx = at_least(&mut buffers.spare, dims.len());
            products.input_gradient(unit.weight(parameters), dy, dims, dx, false);
            units[u - 1].norm_backward(parameters, Some(&activations[u - 1]), dx, None, gradients);
            std::mem::swap(&mut buffers.branch, &mut buffers.spare);
        }
    }

    /// The gradient of the pooled activation is in `gradients.block`. It counts where the maximum is positive: the
    /// same as where the ReLU before the pooling let it through.
    fn stem_backward(&mut self, parameters: &[&[f32]], gradients: &mut [&mut [f32]]) {
        let Self { plan, products, units, images, pooled, pool_index, gradients: buffers, .. } = self;
        let g = &mut buffers.block[..plan.pooled.len()];
        mask(g, pooled);
        let dy = at_least(&mut buffers.stem, plan.outputs[0].len());
        let stem = &units[0];
        stem.pooled_backward(parameters, (g, pool_index), plan.outputs[0], dy, gradients);
        products[stem.products].weight_gradient(images, plan.inputs[0], dy, stem.weight_slot(gradients));
    }
}

/// Values of one task of [`mask`].
const MASK_CHUNK: usize = 32 * 1024;

/// `g` where `z` is positive, 0 elsewhere.
fn mask(g: &mut [f32], z: &[f32]) {
    g.par_chunks_mut(MASK_CHUNK).zip(z.par_chunks(MASK_CHUNK)).for_each(|(g, z)| {
        g.iter_mut().zip(z).for_each(|(g, z)| *g = if *z > 0.0 { *g } else { 0.0 });
    });
}
