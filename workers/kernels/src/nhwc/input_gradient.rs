//! Gradient of a convolution with respect to its input.

use super::portable::{self, Packed};
#[cfg(target_arch = "x86_64")]
use super::simd::{self, InputKernel};
use super::{Algorithm, ConvShape, Dims, Isa};

/// `dx` from `dy`, with the weights packed for it.
#[derive(Debug)]
pub struct InputGradient {
    shape: ConvShape,
    engine: Engine,
}

/// Who does it, with the weights as it wants them.
#[derive(Debug)]
enum Engine {
    Portable(Packed),
    #[cfg(target_arch = "x86_64")]
    Simd(Box<dyn InputKernel>),
}

impl Engine {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
    fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = simd::input_gradient(shape, algorithm, isa) {
            return Self::Simd(kernel);
        }
        Self::Portable(Packed::default())
    }
}

impl InputGradient {
    /// For the convolution `shape`; `algorithm` as in [`super::Forward::new`].
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        Self { shape, engine: Engine::new(shape, algorithm, isa) }
    }

    /// Takes the convolution's weights `(C_out, C_in, k, k)`.
    ///
    /// # Panics
    /// When the slice has another length.
    pub fn pack(&mut self, weight: &[f32]) {
        assert_eq!(weight.len(), self.shape.weights(), "weights");
        match &mut self.engine {
            Engine::Portable(packed) => *packed = Packed::input_gradient(&self.shape, weight),
            #[cfg(target_arch = "x86_64")]
            Engine::Simd(kernel) => kernel.pack(weight),
        }
    }

    /// Gradient with respect to an input of sizes `dims`: `dx = …`, or `dx += …` where `add` is set.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run(&self, dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        let out = self.shape.out(dims);
        assert_eq!(dy.len(), out.len(), "gradient of the output");
        assert_eq!(dx.len(), dims.len(), "gradient of the input");
        match &self.engine {
            Engine::Portable(packed) => portable::conv_input_gradient(&self.shape, packed, dy, dims, dx, add),
            #[cfg(target_arch = "x86_64")]
            Engine::Simd(kernel) => kernel.run(dy, dims, dx, add),
        }
    }

    /// [`Self::pack`], then [`Self::run`], for weights that are used this once: pack them again before any other call.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run_once(&mut self, weight: &[f32], dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        #[cfg(target_arch = "x86_64")]
        if let Engine::Simd(kernel) = &mut self.engine {
            assert_eq!(weight.len(), self.shape.weights(), "weights");
            assert_eq!(dy.len(), self.shape.out(dims).len(), "gradient of the output");
            assert_eq!(dx.len(), dims.len(), "gradient of the input");
            return kernel.run_once(weight, dy, dims, dx, add);
        }
        self.pack(weight);
        self.run(dy, dims, dx, add);
    }
}
