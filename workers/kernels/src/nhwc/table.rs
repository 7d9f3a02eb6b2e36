//! Which algorithm a layer takes.

use super::{ConvShape, Dims, Isa};

/// A way to convolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Matrix product over gathered windows: any shape, error about 5e-7 of the largest output.
    Gemm,
    /// Winograd F(2×2, 3×3): 2.25 times fewer products, error about 6e-7.
    WinogradF2,
    /// Winograd F(4×4, 3×3): 4 times fewer products, error about 5e-6.
    WinogradF4,
}

impl Algorithm {
    /// Whether this way can do `shape`.
    pub fn supports(self, shape: &ConvShape) -> bool {
        let ConvShape { c_in, c_out, kernel, stride, padding } = *shape;
        let winograd = kernel == 3 && stride == 1 && padding < 3 && c_in.is_multiple_of(16) && c_out.is_multiple_of(16);
        self == Self::Gemm || winograd
    }

    /// Itself where it can do `shape`, else the way that can do any.
    pub(super) fn or_gemm(self, shape: &ConvShape) -> Self {
        if self.supports(shape) { self } else { Self::Gemm }
    }
}

/// The ways of one layer's three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Of the output.
    pub forward: Algorithm,
    /// Of the gradient of the input.
    pub input: Algorithm,
    /// Of the gradient of the weights.
    pub weight: Algorithm,
}

/// The table's entry for a convolution over an input of sizes `dims`; without `winograd` always the matrix product.
pub fn choose(shape: &ConvShape, dims: Dims, isa: Isa, winograd: bool) -> Choice {
    let out = shape.out(dims);
    let algorithm = match out.h.min(out.w) {
        _ if isa == Isa::Portable || !winograd || !Algorithm::WinogradF2.supports(shape) => Algorithm::Gemm,
        0..2 => Algorithm::Gemm,
        2..4 => Algorithm::WinogradF2,
        _ => Algorithm::WinogradF4,
    };
    Choice { forward: algorithm, input: algorithm, weight: algorithm }
}
