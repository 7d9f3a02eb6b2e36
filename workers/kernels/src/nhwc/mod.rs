//! Operations of a convolutional network on plain `f32` slices in NHWC order.
//!
//! A pixel's channels lie side by side, so a 1×1 convolution is a matrix product as the data stands, a batch norm
//! reads in a straight line, and nothing has to be turned round between two layers. Weights come and go in
//! PyTorch's order, `(C_out, C_in, k, k)`; a layer packs them once per change.
//!
//! What always holds:
//! * work is cut by shape alone and every reduction that is cut is cut into a fixed number of parts, summed in
//!   order: **bytes do not depend on the number of threads**. Threads come from rayon's current pool;
//! * which algorithm a layer takes stands in [`mod@table`], never in a timing at run time;
//! * [`mod@portable`] holds every operation as plain loops: what runs on a processor without AVX2 and FMA, and the
//!   oracle of what runs on one with them, or with AVX-512;
//! * which instruction set is used, [`Isa::detect`] decides once; between two of them bytes may differ;
//! * once warm no operation allocates: scratch memory is kept per thread or in the layer;
//! * lengths are checked once, at the door; a wrong one is a bug of the caller and panics.
//!
//! The vector code is all `unsafe` there is. Its tests run clean under AddressSanitizer (every instruction set); the smallest
//! shapes with AVX2 can be run in Miri too, which checks every access and takes very long. Both need a nightly compiler:
//!
//! ```text
//! RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p likeness-kernels --lib --target x86_64-unknown-linux-gnu nhwc
//! RUSTFLAGS=-Ctarget-feature=+avx2,+fma RAYON_NUM_THREADS=1 LIKENESS_ISA=avx2 \
//! MIRIFLAGS='-Zmiri-disable-isolation -Zmiri-disable-stacked-borrows -Zmiri-ignore-leaks -Zmiri-permissive-provenance' \
//!     cargo +nightly miri test -p likeness-kernels --lib smallest_shapes
//! ```
//!
//! Stacked borrows are left out because rayon's own queues do not keep to them.
//!
//! Absent on purpose: dilation, groups, half precision.

mod buffer;
mod dims;
mod forward;
mod input_gradient;
mod isa;
mod layout;
mod norm;
mod pool;
pub mod portable;
#[cfg(target_arch = "x86_64")]
mod simd;
mod stem;
mod sums;
pub mod table;
#[cfg(test)]
mod tests;
mod weight_gradient;

pub use buffer::Buffer;
pub use dims::{ConvShape, Dims};
pub use forward::{Epilogue, Forward};
pub use input_gradient::InputGradient;
pub use isa::Isa;
pub(crate) use isa::vectorised;
pub use layout::from_nchw;
pub use norm::{channel_sums, norm_backward, scale_shift};
pub use pool::{average_pool, average_pool_backward, max_pool_3x3_s2, max_pool_backward};
pub use stem::{norm_max_pool, norm_max_pool_backward};
pub use sums::ChannelSums;
pub use table::{Algorithm, Choice};
pub use weight_gradient::WeightGradient;
