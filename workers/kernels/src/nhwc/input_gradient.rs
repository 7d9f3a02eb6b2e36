//! Gradient of a convolution with respect to its input.

use super::portable::{self, Packed};
use super::{Algorithm, ConvShape, Dims, Isa};

/// `dx` from `dy`, with the weights packed for it.
#[derive(Clone, Debug)]
pub struct InputGradient {
    shape: ConvShape,
    packed: Packed,
}

impl InputGradient {
    /// For the convolution `shape`; `algorithm` as in [`super::Forward::new`].
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn new(shape: ConvShape, _algorithm: Algorithm, isa: Isa) -> Self {
        assert!(isa.is_available(), "{isa:?} is not in this processor");
        Self { shape, packed: Packed::default() }
    }

    /// Takes the convolution's weights `(C_out, C_in, k, k)`.
    ///
    /// # Panics
    /// When the slice has another length.
    pub fn pack(&mut self, weight: &[f32]) {
        assert_eq!(weight.len(), self.shape.weights(), "weights");
        self.packed = Packed::input_gradient(&self.shape, weight);
    }

    /// Gradient with respect to an input of sizes `dims`: `dx = …`, or `dx += …` where `add` is set.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run(&self, dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        assert_eq!(dy.len(), self.shape.out(dims).len(), "gradient of the output");
        assert_eq!(dx.len(), dims.len(), "gradient of the input");
        portable::conv_input_gradient(&self.shape, &self.packed, dy, dims, dx, add);
    }
}
