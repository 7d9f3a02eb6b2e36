//! Kernels for AVX2 and FMA.
//!
//! `unsafe` lives here alone. Two things make it sound, and every `SAFETY` comment below refers to them:
//! * **features**: a type of this module is made by its `new`, which is called only where the processor has both;
//! * **lengths**: the public types check the lengths of all slices against the sizes of the convolution before they
//!   call in, and every address here is computed from those sizes.
//!
//! Tasks that write one tensor write disjoint parts of it, by construction of the cut; [`parallel::Shared`] carries
//! the pointer to them.

mod gather;
mod gemm;
mod input_gradient;
mod microkernel;
mod pack;
mod parallel;
mod weight_gradient;
mod winograd;

pub(super) use gemm::GemmForward;
pub(super) use input_gradient::GemmInputGradient;
pub(super) use weight_gradient::GemmWeightGradient;
pub(super) use winograd::{F2, F4, Winograd, WinogradWeightGradient};
