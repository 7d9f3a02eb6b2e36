//! Fast CPU operations behind candle custom ops.
//!
//! Stock candle trains a ResNet on a CPU many times slower than it could: its convolutions go backward without
//! a GEMM, batch norm is a dozen passes, and `max_pool2d` with overlapping windows has no backward at all. The
//! functions here take and return candle tensors, stand on its tape, and replace just those operations. On any
//! other device the same functions compose candle's own operations.
//!
//! Faster still is a whole residual network as one operation: [`mod@network`], made of the operations on plain slices
//! in [`mod@nhwc`]. On the CPU it takes the place of the single layers, which are its oracle.
//!
//! What always holds:
//! * tensors are `f32`; images are `(B, C, H, W)`;
//! * **bytes do not depend on the number of threads**: work is cut by shape alone, and every reduction that is
//!   cut is cut into a fixed number of parts summed in order;
//! * a plain loop stands beside each fast operation in [`mod@reference`] and is its oracle in the tests.
//!
//! Absent on purpose: dilation, groups, convolution bias, half precision.

mod adamw;
mod blocks;
mod clip;
mod conv;
mod matmul;
pub mod network;
pub mod nhwc;
mod norm;
mod pool;
pub mod reference;
mod sgd;
mod storage;
mod threads;

pub use adamw::{AdamWStep, Moments, adamw_step, adamw_step_all};
pub use blocks::{add_relu, global_avg_pool2d};
pub use clip::{clip_factor, gradient_norm};
pub use conv::conv2d;
pub use norm::{BatchNormTrain, batch_norm_eval, batch_norm_train};
pub use pool::max_pool2d_3x3;
pub use sgd::{SgdStep, Velocity, sgd_step_all};
pub use threads::configure_threads;
