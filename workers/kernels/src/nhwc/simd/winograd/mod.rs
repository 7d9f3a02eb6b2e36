//! Winograd's convolution for 3×3 kernels at stride 1: `C_in` and `C_out` multiples of 16.

mod convolution;
mod tiles;
mod transforms;
mod weight_gradient;

pub(super) use convolution::Winograd;
pub(super) use transforms::{F2, F4, Two};
pub(super) use weight_gradient::WinogradWeightGradient;
