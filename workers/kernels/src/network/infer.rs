//! A network that serves.

use std::sync::{Mutex, PoisonError};

use super::shape::{BlockUnits, Plan, units};
use super::{NORM_EPS, NetworkShape, at_least, inside_pool};
use crate::nhwc::{Dims, Epilogue, Forward, Isa, average_pool, from_nchw, max_pool_3x3_s2, table};

/// Pixels of the input that one micro-batch is about: two images of 224 pixels. By trials on a Zen 4 with 1 MiB of second
/// cache per core, in which ResNet-50 was slower both one by one and four at once.
const MICRO_BATCH_PIXELS: usize = 2 * 224 * 224;
/// Most images of a micro-batch: ResNet-18 at 64 pixels was slower by 8 and by 32.
const MICRO_BATCH_IMAGES: usize = 16;

/// Micro-batches that go through the last stage together: its maps are small and its weights many.
const TOGETHER: usize = 4;

/// A convolution and what its batch norm does in inference.
#[derive(Clone, Copy, Debug)]
pub struct Folded<'a> {
    /// `(C_out, C_in, k, k)`
    pub weight: &'a [f32],
    /// The norm's weight.
    pub gamma: &'a [f32],
    /// The norm's bias.
    pub beta: &'a [f32],
    /// Running mean.
    pub mean: &'a [f32],
    /// Running variance.
    pub variance: &'a [f32],
}

impl<'a> Folded<'a> {
    /// Of the weight, and the norm's weight, bias, running mean and running variance.
    pub fn of([weight, gamma, beta, mean, variance]: [&'a [f32]; 5]) -> Self {
        Self { weight, gamma, beta, mean, variance }
    }
}

/// A network with its batch norms folded into its weights, for images of one size.
///
/// A batch is cut into micro-batches whose activations stay in the cache; a few of them go through the last stage
/// together, so that its weights are read for many images. Every image's features are the same bytes whichever images
/// stand beside it.
#[derive(Debug)]
pub struct InferNetwork {
    shape: NetworkShape,
    /// All stages but the last.
    blocks: Vec<BlockUnits>,
    last_stage: Vec<BlockUnits>,
    layers: Vec<Layer>,
    size: (usize, usize),
    micro_batch: usize,
    /// Buffers that no call is using.
    idle: Mutex<Vec<Buffers>>,
}

#[derive(Debug)]
struct Layer {
    forward: Forward,
    bias: Vec<f32>,
}

/// What one micro-batch is computed in.
#[derive(Debug, Default)]
struct Buffers {
    /// Input of the current block.
    x: Vec<f32>,
    /// Outputs of the branch, in turn.
    branch: [Vec<f32>; 2],
    /// Output of a downsampling shortcut.
    shortcut: Vec<f32>,
    /// Input of the last stage, of several micro-batches.
    together: Vec<f32>,
}

impl InferNetwork {
    /// Packs a network of `shape` for images of `(h, w)`; `convolutions` in the order of parameters.
    ///
    /// # Panics
    /// When there are too few or too many of them, or a slice has another length.
    pub fn new(
        shape: NetworkShape,
        (h, w): (usize, usize),
        convolutions: &[Folded<'_>],
        isa: Isa,
        winograd: bool,
    ) -> Self {
        let (units, mut blocks) = units(&shape);
        assert_eq!(convolutions.len(), units.len(), "convolutions");
        let last_stage = blocks.split_off(blocks.len() - shape.depths[3]);
        let micro_batch = (MICRO_BATCH_PIXELS / (h * w)).clamp(1, MICRO_BATCH_IMAGES);
        // The way of every convolution is that of whole micro-batches, however few images come.
        let plans = [1, TOGETHER].map(|number| Plan::new(&shape, number * micro_batch, h, w));
        let first_of_last = last_stage.first().map_or(units.len(), |block| block.branch.start);
        let layer = |i: usize| {
            let dims = plans[usize::from(i >= first_of_last)].inputs[i];
            let algorithm = table::choose(&units[i], dims, isa, winograd).forward;
            Layer::new(Forward::new(units[i], algorithm, isa), &convolutions[i])
        };
        let layers = (0..units.len()).map(layer).collect();
        Self { shape, blocks, last_stage, layers, size: (h, w), micro_batch, idle: Mutex::default() }
    }

    /// Height and width of the images that it takes.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Images `(n, 3, h, w)` into `features (n, F)`.
    ///
    /// # Panics
    /// When the slices do not belong to one number of images of [`InferNetwork::size`].
    pub fn forward(&self, images: &[f32], features: &mut [f32]) {
        let image = 3 * self.size.0 * self.size.1;
        assert_eq!(images.len() / image * self.shape.features(), features.len(), "features");
        inside_pool(|| {
            let mut buffers = self.take_buffers();
            let many = TOGETHER * self.micro_batch;
            let outputs = features.chunks_mut(many * self.shape.features());
            for (images, features) in images.chunks(many * image).zip(outputs) {
                self.some_images(&mut buffers, images, images.len() / image, features);
            }
            self.give_back(buffers);
        });
    }

    fn take_buffers(&self) -> Buffers {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_back(&self, buffers: Buffers) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffers);
    }

    /// The features of `n` images, few enough for the last stage.
    fn some_images(&self, buffers: &mut Buffers, images: &[f32], n: usize, features: &mut [f32]) {
        let (h, w) = self.size;
        let plan = Plan::new(&self.shape, n, h, w);
        let joint = self.last_stage.first().map_or(plan.last, |block| plan.inputs[block.branch.start]);
        let mut together = std::mem::take(&mut buffers.together);
        let inputs = at_least(&mut together, joint.len());
        let image = 3 * h * w;
        let parts = inputs.chunks_mut(self.micro_batch * joint.len() / n);
        for (images, input) in images.chunks(self.micro_batch * image).zip(parts) {
            let plan = Plan::new(&self.shape, images.len() / image, h, w);
            self.stem(buffers, images, &plan);
            self.blocks.iter().for_each(|block| self.block(buffers, block, &plan));
            input.copy_from_slice(&buffers.x[..input.len()]);
        }
        buffers.together = std::mem::replace(&mut buffers.x, together);
        self.last_stage.iter().for_each(|block| self.block(buffers, block, &plan));
        average_pool(&buffers.x[..plan.last.len()], plan.last, features);
    }

    fn stem(&self, buffers: &mut Buffers, images: &[f32], plan: &Plan) {
        let Buffers { x, branch: [nhwc, y], .. } = buffers;
        let Dims { n, h, w, c } = plan.images;
        let nhwc = at_least(nhwc, plan.images.len());
        from_nchw(images, n, c, h, w, nhwc);
        let y = at_least(y, plan.outputs[0].len());
        self.layers[0].run(nhwc, plan.images, y, None, true);
        max_pool_3x3_s2(y, plan.outputs[0], at_least(x, plan.pooled.len()), None);
    }

    /// From a block's input to its output, both in `buffers.x`.
    fn block(&self, buffers: &mut Buffers, block: &BlockUnits, plan: &Plan) {
        let Buffers { x, branch: [y, spare], shortcut, .. } = buffers;
        let input = plan.inputs[block.branch.start];
        let mut residual = &x[..input.len()];
        if let Some(d) = block.downsample {
            let out = at_least(shortcut, plan.outputs[d].len());
            self.layers[d].run(residual, input, out, None, false);
            residual = out;
        }
        for u in block.branch.clone() {
            let (dims, last) = (plan.inputs[u], u == block.last());
            let from = if u == block.branch.start { &x[..dims.len()] } else { &y[..dims.len()] };
            let out = at_least(spare, plan.outputs[u].len());
            self.layers[u].run(from, dims, out, last.then_some(residual), true);
            std::mem::swap(y, spare);
        }
        std::mem::swap(x, y);
    }
}

impl Layer {
    fn new(mut forward: Forward, folded: &Folded<'_>) -> Self {
        let Folded { weight, gamma, beta, mean, variance } = *folded;
        let scale = |(gamma, variance): (&f32, &f32)| f64::from(*gamma) / (f64::from(*variance) + NORM_EPS).sqrt();
        let scales: Vec<f64> = gamma.iter().zip(variance).map(scale).collect();
        let shift = |((beta, mean), scale): ((&f32, &f32), &f64)| (f64::from(*beta) - f64::from(*mean) * scale) as f32;
        let bias = beta.iter().zip(mean).zip(&scales).map(shift).collect();
        forward.pack(weight, Some(&scales.iter().map(|s| *s as f32).collect::<Vec<_>>()));
        Self { forward, bias }
    }

    fn run(&self, x: &[f32], dims: Dims, y: &mut [f32], residual: Option<&[f32]>, relu: bool) {
        self.forward.run(x, dims, y, &Epilogue { bias: Some(&self.bias), residual, relu });
    }
}
