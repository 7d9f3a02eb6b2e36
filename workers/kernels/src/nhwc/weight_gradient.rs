//! Gradient of a convolution with respect to its weights.

use super::portable;
#[cfg(target_arch = "x86_64")]
use super::simd::{self, WeightKernel};
use super::{Algorithm, ConvShape, Dims, Isa};

/// `dw` from `x` and `dy`.
#[derive(Debug)]
pub struct WeightGradient {
    shape: ConvShape,
    engine: Engine,
}

/// Who does it.
#[derive(Debug)]
enum Engine {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Simd(Box<dyn WeightKernel>),
}

impl Engine {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
    fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = simd::weight_gradient(shape, algorithm, isa) {
            return Self::Simd(kernel);
        }
        Self::Portable
    }
}

impl WeightGradient {
    /// For the convolution `shape`; `algorithm` as in [`super::Forward::new`].
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        Self { shape, engine: Engine::new(shape, algorithm, isa) }
    }

    /// Writes the gradient `(C_out, C_in, k, k)` for an input of sizes `dims`.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        assert_eq!(x.len(), dims.len(), "input");
        assert_eq!(dy.len(), self.shape.out(dims).len(), "gradient of the output");
        assert_eq!(dw.len(), self.shape.weights(), "gradient of the weights");
        match &self.engine {
            Engine::Portable => portable::conv_weight_gradient(&self.shape, x, dims, dy, dw),
            #[cfg(target_arch = "x86_64")]
            Engine::Simd(kernel) => kernel.run(x, dims, dy, dw),
        }
    }
}
