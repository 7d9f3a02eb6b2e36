//! Kernels for AVX2 and AVX-512.
//!
//! `unsafe` lives here alone. Two things make it sound, and every `SAFETY` comment below refers to them:
//! * **features**: a type of this module is made by the functions below, which look whether the processor has its
//!   instruction set;
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
mod vector;
mod weight_gradient;
mod winograd;

use std::fmt::Debug;

use gemm::GemmForward;
use input_gradient::GemmInputGradient;
use vector::{Avx2, Avx512, Simd};
use weight_gradient::GemmWeightGradient;
use winograd::{F2, F4, Two, Winograd, WinogradWeightGradient};

use super::{Algorithm, ChannelSums, ConvShape, Dims, Epilogue, Isa};

/// A convolution with its weights packed. Lengths are checked by the caller.
pub(super) trait ForwardKernel: Debug + Send + Sync {
    /// Takes the weights, each output channel times its `scale`.
    fn pack(&mut self, weight: &[f32], scale: Option<&[f32]>);
    /// `y = epilogue(conv(x))`, and the sums over its channels.
    fn run(&self, x: &[f32], dims: Dims, y: &mut [f32], epilogue: &Epilogue<'_>, sums: Option<&mut ChannelSums>);
    /// `y = conv(x)` and its sums with weights that are used this once; those that were packed may be lost.
    fn run_once(&mut self, weight: &[f32], x: &[f32], dims: Dims, y: &mut [f32], sums: &mut ChannelSums) {
        self.pack(weight, None);
        self.run(x, dims, y, &Epilogue::default(), Some(sums));
    }
}

/// The gradient of the input, with the weights packed for it. Lengths are checked by the caller.
pub(super) trait InputKernel: Debug + Send + Sync {
    /// Takes the convolution's weights.
    fn pack(&mut self, weight: &[f32]);
    /// `dx (+)= …` for an input of sizes `dims`.
    fn run(&self, dy: &[f32], dims: Dims, dx: &mut [f32], add: bool);
    /// The same with weights that are used this once; those that were packed may be lost.
    fn run_once(&mut self, weight: &[f32], dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        self.pack(weight);
        self.run(dy, dims, dx, add);
    }
}

/// The gradient of the weights. Lengths are checked by the caller.
pub(super) trait WeightKernel: Debug + Send + Sync {
    /// Writes `dw`.
    fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]);
}

/// Forward with the vectors of `isa`, if it has any.
///
/// # Panics
/// When the processor lacks it.
pub(super) fn forward(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Option<Box<dyn ForwardKernel>> {
    fn of<I: Simd>(shape: ConvShape, algorithm: Algorithm) -> Option<Box<dyn ForwardKernel>> {
        Some(match algorithm.or_gemm(&shape) {
            Algorithm::Gemm => Box::new(GemmForward::<I>::new(shape)),
            Algorithm::WinogradF2 => Box::new(Winograd::<I, F2>::forward(&shape)),
            Algorithm::WinogradF4 => Box::new(Winograd::<I, F4>::forward(&shape)),
            Algorithm::WinogradTwo => Box::new(Winograd::<I, Two>::forward(&shape)),
        })
    }
    match checked(isa) {
        Isa::Portable => None,
        Isa::Avx2Fma => of::<Avx2>(shape, algorithm),
        Isa::Avx512 => of::<Avx512>(shape, algorithm),
    }
}

/// The gradient of the input with the vectors of `isa`, if it has any.
///
/// # Panics
/// When the processor lacks it.
pub(super) fn input_gradient(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Option<Box<dyn InputKernel>> {
    fn of<I: Simd>(shape: ConvShape, algorithm: Algorithm) -> Option<Box<dyn InputKernel>> {
        Some(match algorithm.or_gemm(&shape) {
            Algorithm::Gemm => Box::new(GemmInputGradient::<I>::new(shape)),
            Algorithm::WinogradF2 => Box::new(Winograd::<I, F2>::input_gradient(&shape)),
            Algorithm::WinogradF4 => Box::new(Winograd::<I, F4>::input_gradient(&shape)),
            Algorithm::WinogradTwo => Box::new(Winograd::<I, Two>::input_gradient(&shape)),
        })
    }
    match checked(isa) {
        Isa::Portable => None,
        Isa::Avx2Fma => of::<Avx2>(shape, algorithm),
        Isa::Avx512 => of::<Avx512>(shape, algorithm),
    }
}

/// The gradient of the weights with the vectors of `isa`, if it has any.
///
/// # Panics
/// When the processor lacks it.
pub(super) fn weight_gradient(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Option<Box<dyn WeightKernel>> {
    fn of<I: Simd>(shape: ConvShape, algorithm: Algorithm) -> Option<Box<dyn WeightKernel>> {
        Some(match algorithm.or_gemm(&shape) {
            Algorithm::Gemm => Box::new(GemmWeightGradient::<I>::new(shape)),
            Algorithm::WinogradF2 => Box::new(WinogradWeightGradient::<I, F2>::new(shape)),
            Algorithm::WinogradF4 => Box::new(WinogradWeightGradient::<I, F4>::new(shape)),
            Algorithm::WinogradTwo => Box::new(WinogradWeightGradient::<I, Two>::new(shape)),
        })
    }
    match checked(isa) {
        Isa::Portable => None,
        Isa::Avx2Fma => of::<Avx2>(shape, algorithm),
        Isa::Avx512 => of::<Avx512>(shape, algorithm),
    }
}

fn checked(isa: Isa) -> Isa {
    assert!(isa.is_available(), "{isa:?} is not in this processor");
    isa
}
