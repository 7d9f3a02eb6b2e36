//! Gradient of a convolution with respect to its weights.

use super::portable;
use super::{Algorithm, ConvShape, Dims, Isa};

/// `dw` from `x` and `dy`, with the memory it needs between calls.
#[derive(Clone, Debug)]
pub struct WeightGradient {
    shape: ConvShape,
}

impl WeightGradient {
    /// For the convolution `shape`; `algorithm` as in [`super::Forward::new`].
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn new(shape: ConvShape, _algorithm: Algorithm, isa: Isa) -> Self {
        assert!(isa.is_available(), "{isa:?} is not in this processor");
        Self { shape }
    }

    /// Writes the gradient `(C_out, C_in, k, k)` for an input of sizes `dims`.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run(&mut self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        assert_eq!(x.len(), dims.len(), "input");
        assert_eq!(dy.len(), self.shape.out(dims).len(), "gradient of the output");
        assert_eq!(dw.len(), self.shape.weights(), "gradient of the weights");
        portable::conv_weight_gradient(&self.shape, x, dims, dy, dw);
    }
}
