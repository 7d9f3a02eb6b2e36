//! A whole residual network as one operation: every buffer planned, no layout change between layers, no tape.
//!
//! [`NetworkShape`] says what is computed: ResNet v1.5 of any depths and width. [`TrainNetwork`] goes forward with
//! the batch's own statistics and backward by a chain written out by hand; [`InferNetwork`] serves, its batch
//! norms folded into the weights. Both work on slices; [`TapeNetwork`] puts the first on candle's tape as one
//! operation, [`FoldedNetwork`] takes and returns tensors for the second.
//!
//! What always holds:
//! * inside, images are NHWC; weights come and gradients go as PyTorch has them, `(C_out, C_in, k, k)`;
//! * parameters are listed per convolution as weight, then weight and bias of its norm: the stem, then every
//!   block's convolutions in order, its downsampling last;
//! * buffers live from call to call: once warm, nothing is allocated;
//! * bytes depend neither on the number of threads nor, in inference, on how a batch is cut.

mod folded;
mod infer;
mod shape;
mod tape;
#[cfg(test)]
mod tests;
mod train;
mod unit;

pub use folded::FoldedNetwork;
pub use infer::{Folded, InferNetwork};
pub use shape::{BlockKind, BlockShape, NetworkShape};
pub use tape::{OnTape, TapeNetwork};
pub use train::{NormStatistics, TrainNetwork};

/// PyTorch's and torchvision's default, added to a batch norm's variance.
const NORM_EPS: f64 = 1e-5;
/// Tensors that are trained per convolution: its weight, its norm's weight and bias.
const PER_UNIT: usize = 3;

/// A buffer of at least `len` elements. What it held is lost when it grows: nothing is copied.
fn at_least(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        *buffer = Vec::new();
        *buffer = vec![0.0; len];
    }
    &mut buffer[..len]
}

/// Runs `f` on a thread of rayon's current pool, so that the many small steps within start without a hand-over.
fn inside_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}
